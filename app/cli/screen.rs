//! What the window asks the engine for, so that `bench` measures what its user gets.

use statescope_engine::protocol::{
    Fold, Geometry, MixerKind, MixingView, ModelInfo, Observation, Point, Positions, Probe, Reduction, Scale, Stage,
};

/// Likely next tokens that the window shows.
const CANDIDATES: usize = 12;
/// Side of a matrix among all heads.
const POOLED: u16 = 64;
/// Matrices shown at once at most; of more heads (channels) a selection of `CHANNELS`.
const MOST_HEADS: usize = 64;
const CHANNELS: usize = 16;

/// What is observed while measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Probes {
    /// Nothing
    None,
    /// What the window's default layout shows, of the middle layer
    Screen,
    /// Every quantity of every layer
    All,
}

impl Probes {
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Screen => "screen",
            Self::All => "all",
        }
    }

    pub fn observation(self, info: &ModelInfo) -> Observation {
        match self {
            Self::None => Observation::default(),
            Self::Screen => screen(info),
            Self::All => all(info),
        }
    }
}

/// The layer map over all layers; state, gates, matrices and inspector of the middle layer that mixes, and of its middle head.
fn screen(info: &ModelInfo) -> Observation {
    let middle = info.layers.len() / 2;
    let mixing = (0..info.layers.len()).filter(|layer| info.layers[*layer].mixer().kind.mixes());
    let layer = mixing.min_by_key(|layer| layer.abs_diff(middle)).unwrap_or(middle);
    let mixer = info.layers[layer].mixer();
    let head = mixer.heads / 2;
    let norm = Reduction::Head(Fold::Norm);
    let series = |point, reduction| Probe::series(layer, point, reduction);
    let view = |scale| Point::Mixing(MixingView { stage: Stage::Core, scale });

    let mut probes: Vec<Probe> =
        (0..info.layers.len()).map(|layer| Probe::series(layer, Point::Write, Reduction::Layer(Fold::Norm))).collect();
    probes.extend([Point::Write, Point::Read].map(|point| series(point, Reduction::Full)));
    probes.extend([Point::Value, Point::Core].map(|point| series(point, norm)));
    if mixer.kind.has_key() {
        probes.push(series(Point::Key, norm));
    }
    if mixer.kind.has_query() {
        probes.push(series(Point::Query, norm));
    }
    if mixer.kind.has_input_gate() {
        probes.push(series(Point::InputGate, Reduction::Full));
    }
    probes.push(series(Point::Resid, Reduction::Layer(Fold::Norm)));
    if mixer.gated {
        probes.push(series(Point::Gate, norm));
    }
    if mixer.kind.has_delta() {
        probes.push(series(Point::Delta, Reduction::Full));
    }
    if mixer.kind == MixerKind::DeltaRule {
        probes.push(series(Point::Beta, Reduction::Full));
    }
    if mixer.kind.decays() {
        probes.extend(decays(layer, mixer, head));
    }
    if mixer.kind.is_recurrent() {
        probes.push(series(Point::State, norm));
        probes.push(series(Point::State, Reduction::Layer(Fold::Norm)));
        probes.push(Probe::latest(layer, Point::State, Reduction::Full, Positions::Live));
    } else {
        if mixer.kind == MixerKind::Attention {
            probes.push(series(Point::Entropy, Reduction::Full));
        }
        probes.extend([Point::Key, Point::Value].map(|point| series(point, Reduction::Full).head(head)));
    }
    probes.push(series(view(Scale::Raw), Reduction::Full).head(head));
    probes.push(series(Point::MixingError, Reduction::Full).head(head));
    let pooled =
        Probe::latest(layer, view(Scale::RowShare), Reduction::Pool { rows: POOLED, cols: POOLED }, Positions::All);
    if mixer.heads <= MOST_HEADS {
        probes.push(pooled);
    } else {
        probes.extend((0..CHANNELS).map(|index| pooled.head(index * mixer.heads / CHANNELS)));
    }
    Observation { probes, candidates: CANDIDATES }
}

/// Mamba-1 has N decays a channel: the window shows the largest of all channels, and all of the selected channel.
fn decays(layer: usize, mixer: &Geometry, head: usize) -> Vec<Probe> {
    let series = |reduction| Probe::series(layer, Point::Decay, reduction);
    if mixer.decay_dim > 1 {
        vec![series(Reduction::Head(Fold::Max)), series(Reduction::Full).head(head)]
    } else {
        vec![series(Reduction::Full)]
    }
}

/// More than any screen holds: every series of every mixer in full, and the state and one matrix of each.
fn all(info: &ModelInfo) -> Observation {
    use Point::*;
    let points = [
        Resid,
        ConvIn,
        Conv,
        Delta,
        Beta,
        LogDecay,
        Erase,
        InputGate,
        RecurrenceGate,
        ForgetGate,
        Bonus,
        Normaliser,
        Decay,
        Key,
        Query,
        Value,
        Write,
        Read,
        Gate,
        Core,
        Out,
        Entropy,
    ];
    let matrix = Mixing(MixingView { stage: Stage::Core, scale: Scale::Raw });
    let mixer = |layer: usize, part: usize| {
        let mut probes = points.map(|point| Probe::series(layer, point, Reduction::Full)).to_vec();
        probes.push(Probe::series(layer, State, Reduction::Head(Fold::Norm)));
        probes.push(Probe::latest(layer, State, Reduction::Full, Positions::Live));
        probes.push(Probe::series(layer, matrix, Reduction::Full).head(0));
        probes.push(Probe::series(layer, MixingError, Reduction::Full).head(0));
        probes.iter_mut().for_each(|probe| probe.site.part = part as u8);
        probes
    };
    let sites =
        info.layers.iter().enumerate().flat_map(|(layer, of)| (0..of.parts.len()).map(move |part| (layer, part)));
    Observation { probes: sites.flat_map(|(layer, part)| mixer(layer, part)).collect(), candidates: CANDIDATES }
}
