//! What a trace can hold: every quantity with its name, axes and meaning, computed by the functions that answer the window's
//! probes, so that both show the same bits.

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use statescope_engine::mixer::Mixer;
use statescope_engine::probes::{self, StateNorms, mixing_error, mixing_rows, reach, series_row};
use statescope_engine::protocol::{
    Geometry, MixerKind, MixingView, Point, Probe, REACH_HEADS, Reduction, Scale, Span, Stage,
};
use statescope_engine::session::Session;
use statescope_engine::tape::LayerTape;

/// A quantity of a layer.
#[derive(Debug, PartialEq)]
pub struct Quantity {
    /// As in `--probe` and in the tensor's name.
    pub name: &'static str,
    what: What,
    pub meaning: &'static str,
}

#[derive(Debug, PartialEq)]
enum What {
    /// One row a token.
    Row(Point),
    State,
    StateNorm,
    Mixing,
    MixingError,
    Reach,
}

const fn row(name: &'static str, point: Point, meaning: &'static str) -> Quantity {
    Quantity { name, what: What::Row(point), meaning }
}

/// Everything that `--probe` knows.
pub const QUANTITIES: [Quantity; 27] = [
    row("resid", Point::Resid, "residual stream after the layer"),
    row("conv_in", Point::ConvIn, "input of the short convolution, value channels"),
    row("conv", Point::Conv, "output of the short convolution before its SiLU, value channels"),
    row("delta", Point::Delta, "step size Δ after softplus and clamp"),
    row(
        "beta",
        Point::Beta,
        "delta rule: share β by which what is stored under the key is replaced; RWKV-7: the rate a of its correction",
    ),
    row("input_gate", Point::InputGate, "input gate: RG-LRU i; mLSTM exp(ĩ − m); RWKV-4 a token's share of the mean"),
    row("recurrence_gate", Point::RecurrenceGate, "RG-LRU: recurrence gate r"),
    row("forget_gate", Point::ForgetGate, "mLSTM: forget gate σ(f̃)"),
    row(
        "bonus",
        Point::Bonus,
        "what a token takes of its own value before it is written: RWKV-4 a share, RWKV-5 and RWKV-6 Σ r u k",
    ),
    row(
        "form",
        Point::Form,
        "S4, S4D, H3: 1 where tokens were read together by the convolution, 0 where the recurrence made a step",
    ),
    row("normaliser", Point::Normaliser, "mLSTM: what the read is divided by, relative to the stabiliser"),
    row(
        "decay",
        Point::Decay,
        "factor by which the state is kept, exp(ΔA); delta rule: exp(g); mLSTM: of the stabilised state",
    ),
    row(
        "key",
        Point::Key,
        "write direction: B, or the key after norm and RoPE; of a short convolution, H3 and Hyena the gate before it",
    ),
    row(
        "query",
        Point::Query,
        "read direction: C, or the query after norm and RoPE; of a short convolution, H3 and Hyena the gate after it",
    ),
    row(
        "inner_gate",
        Point::InnerGate,
        "Hyena of order above 2: the gates between its filters, the one met first first",
    ),
    row("value", Point::Value, "what is mixed: x after convolution and SiLU, or the value vector"),
    row(
        "write_norm",
        Point::Write,
        "write strength ‖Δ B xᵀ‖_F; delta rule: β‖k‖‖v‖; attention, linear attention: ‖k‖‖v‖; with an input gate i‖k‖‖v‖; short convolution: |B x|",
    ),
    row("read_norm", Point::Read, "norm of what is read out of state or cache, skip D·x excluded"),
    row(
        "gate",
        Point::Gate,
        "output gate z before its activation: SiLU; σ for attention, mLSTM and RWKV-4's receptance; GELU for RG-LRU; none for RWKV-7; of Mamba-3 MIMO the factor of each of the r reads after it, in core already",
    ),
    row("core", Point::Core, "mixer output y before gate and norm, D·x included"),
    row("out", Point::Out, "what the mixer adds to the residual stream"),
    row("entropy", Point::Entropy, "entropy of the softmax row in bits"),
    Quantity {
        name: "state",
        what: What::State,
        meaning: "recurrent state S after the token; of a short convolution its last inputs, oldest first",
    },
    Quantity { name: "state_norm", what: What::StateNorm, meaning: "‖S‖_F after the token" },
    Quantity {
        name: "mixing",
        what: What::Mixing,
        meaning: "mixing matrix M on post-convolution values, M·value = core: Δ_j and the skip D (on the diagonal) are in, convolution and gate are not",
    },
    Quantity {
        name: "mixing_error",
        what: What::MixingError,
        meaning: "max |M·value − core| of the row, relative to the largest |core| of the head so far",
    },
    Quantity {
        name: "reach",
        what: What::Reach,
        meaning: "how far back the token looks, from its row of |mixing| as shares: mean distance in tokens, entropy in bits, fewest newest tokens that hold nine tenths",
    },
];

/// The last axis of `reach`.
const REACH_FIGURES: [&str; 3] = ["mean_distance", "entropy_bits", "field"];

/// The quantity of that name.
pub fn find(name: &str) -> Result<&'static Quantity> {
    QUANTITIES.iter().find(|quantity| quantity.name == name).ok_or_else(|| {
        let known: Vec<&str> = QUANTITIES.iter().map(|quantity| quantity.name).collect();
        anyhow!("--probe {name:?} is not known: choose from {}", known.join(", "))
    })
}

/// A tensor to be written: the quantity of one mixer over `tokens` tokens.
pub struct Plan {
    /// `layers.{i}.{quantity}`, or `layers.{i}.{part}.{quantity}` where a layer has several mixers and the quantity is one of them.
    pub name: String,
    pub quantity: &'static Quantity,
    pub axes: Vec<(&'static str, usize)>,
    layer: usize,
    part: usize,
    /// Heads (or channels) that the tensor speaks of, where it may be some.
    heads: Vec<usize>,
    /// Tokens after which the state is wanted; none means after the last.
    positions: Option<Vec<usize>>,
}

impl Plan {
    /// None if the mixer has no such quantity. `heads`: of matrices only, all if none. `every`: states after every so many tokens.
    pub fn new(
        quantity: &'static Quantity,
        (layer, part): (usize, usize),
        session: &Session,
        tokens: usize,
        heads: Option<Vec<usize>>,
        every: Option<usize>,
    ) -> Option<Self> {
        let (model, of_layer) = (session.model(), quantity.what == What::Row(Point::Resid));
        let mixer = model.mixer(layer, part);
        let geometry = mixer.geometry();
        let exists = match quantity.what {
            What::Row(Point::Resid) => part == 0,
            What::Row(point) => probes::exists(mixer, point),
            What::State | What::StateNorm => probes::exists(mixer, Point::State) && geometry.state_dim > 0,
            What::Mixing | What::MixingError => geometry.kind.mixes() && heads.as_ref().is_none_or(|h| !h.is_empty()),
            What::Reach => geometry.kind.mixes(),
        };
        let heads = match quantity.what {
            What::Reach => {
                let count = geometry.heads.min(REACH_HEADS);
                (0..count).map(|index| index * geometry.heads / count).collect()
            }
            _ => heads.unwrap_or_else(|| (0..geometry.heads).collect()),
        };
        let place = if of_layer || model.parts(layer) == 1 { format!("{layer}") } else { format!("{layer}.{part}") };
        let mut plan = Self {
            name: format!("layers.{place}.{}", quantity.name),
            quantity,
            axes: Vec::new(),
            layer,
            part,
            heads,
            positions: every.map(|every| (every - 1..tokens).step_by(every).collect()),
        };
        plan.axes = plan.axes(&geometry, model.spec().hidden_size, tokens);
        exists.then_some(plan)
    }

    fn axes(&self, geometry: &Geometry, hidden_size: usize, tokens: usize) -> Vec<(&'static str, usize)> {
        let Geometry { kind, heads, head_dim, state_dim, groups, rank, decay_dim, .. } = *geometry;
        let (token, noun) = (("token", tokens), kind.head_noun());
        let (head, dim, state) = ((noun, heads), ("head_dim", head_dim), ("state", state_dim));
        let chosen = (noun, self.heads.len());
        // Where a channel is a head, it is one number wide.
        let channels = noun == "channel";
        match self.quantity.what {
            What::Row(Point::Form) => vec![token],
            What::Row(Point::Resid | Point::Out) => vec![token, ("hidden", hidden_size)],
            What::Row(Point::Decay) if kind.is_time_invariant() => vec![token, head, ("complex_state", decay_dim)],
            What::Row(Point::Decay) if decay_dim > 1 => vec![token, head, state],
            What::Row(Point::LogDecay) if decay_dim > 1 => vec![token, head, state],
            What::Row(Point::Beta) if kind == MixerKind::Rwkv7 => vec![token, head, state],
            What::Row(
                Point::Delta
                | Point::Beta
                | Point::Decay
                | Point::LogDecay
                | Point::InputGate
                | Point::RecurrenceGate
                | Point::ForgetGate
                | Point::Bonus
                | Point::Normaliser
                | Point::Write
                | Point::Read
                | Point::Entropy,
            )
            | What::StateNorm => {
                vec![token, head]
            }
            What::Row(point @ (Point::Key | Point::Query)) => match (kind, point) {
                // All channels share one key and one query; Zamba's fall into groups.
                (MixerKind::Mamba1, _) if groups == 1 => vec![token, state],
                (MixerKind::Mamba1 | MixerKind::Mamba2, _) => vec![token, ("group", groups), state],
                (MixerKind::Mamba3Mimo, _) => vec![token, ("group", groups), ("rank", rank), state],
                (MixerKind::DeltaRule, _) => vec![token, ("key_head", groups), ("key_dim", state_dim)],
                (
                    MixerKind::LinearAttention
                    | MixerKind::Retention
                    | MixerKind::Gla
                    | MixerKind::Hgrn2
                    | MixerKind::Rwkv5
                    | MixerKind::Rwkv6
                    | MixerKind::Rwkv7
                    | MixerKind::Mlstm
                    | MixerKind::Mamba3,
                    _,
                ) => {
                    vec![token, head, ("key_dim", state_dim)]
                }
                (MixerKind::Attention, _) => {
                    let heads = if point == Point::Key { ("kv_head", groups) } else { head };
                    // Hymba's values are wider than its keys.
                    vec![token, heads, if state_dim == head_dim { dim } else { ("key_dim", state_dim) }]
                }
                _ if channels => vec![token, head],
                _ => vec![token, head, dim],
            },
            What::Row(Point::Value) if kind == MixerKind::Attention => vec![token, ("kv_head", groups), dim],
            What::Row(Point::InnerGate) => vec![token, head, ("inner_gate", rank - 1)],
            What::Row(Point::Gate) if kind == MixerKind::Mamba3Mimo => vec![token, head, ("rank", rank)],
            What::Row(_) if channels => vec![token, head],
            What::Row(_) => vec![token, head, dim],
            What::State => {
                let snapshots = self.positions.as_ref().map(|positions| ("snapshot", positions.len()));
                let shape = if channels { vec![head, state] } else { vec![head, dim, state] };
                snapshots.into_iter().chain(shape).collect()
            }
            What::Mixing => vec![chosen, ("query_token", tokens), ("key_token", tokens)],
            What::MixingError => vec![token, chosen],
            What::Reach => vec![token, chosen, ("figure", REACH_FIGURES.len())],
        }
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        self.axes.iter().fold(size_of::<f32>(), |bytes, (_, size)| bytes.saturating_mul(*size))
    }

    pub fn shape(&self) -> Vec<usize> {
        self.axes.iter().map(|(_, size)| *size).collect()
    }

    /// What the metadata says of the tensor.
    pub fn describe(&self) -> Value {
        let axes: Vec<&str> = self.axes.iter().map(|(name, _)| *name).collect();
        let mut object = json!({ "axes": axes, "meaning": self.quantity.meaning });
        match self.quantity.what {
            What::Mixing | What::MixingError => object["heads"] = json!(self.heads),
            What::Reach => {
                object["heads"] = json!(self.heads);
                object["figures"] = json!(REACH_FIGURES);
            }
            What::State => {
                object["positions"] = self.positions.as_ref().map_or(json!("last"), |positions| json!(positions))
            }
            _ => {}
        }
        object
    }

    /// The values, row-major.
    ///
    /// # Errors
    /// The session has not recorded what it takes.
    pub fn compute(&self, session: &Session) -> Result<Vec<f32>> {
        let (layer, part, tokens) = (self.layer, self.part, session.position());
        let (mixer, tape) = (session.model().mixer(layer, part), session.tape().part(layer, part));
        let lost =
            || anyhow!("{} cannot be computed: layer {layer} was not recorded from the first token on", self.name);
        if tape.positions() != (0..tokens) {
            return Err(lost());
        }
        let mut values = Vec::with_capacity(self.shape().iter().product());
        match self.quantity.what {
            What::Row(point) => {
                let probe = Probe::series(layer, point, Reduction::Full);
                if !(0..tokens).all(|token| series_row(mixer, tape, &probe, token, &mut values)) {
                    return Err(lost());
                }
            }
            What::State => {
                for position in self.positions.clone().unwrap_or_else(|| vec![tokens - 1]) {
                    values.extend(session.state_at(layer, part, position).ok_or_else(lost)?);
                }
            }
            What::StateNorm => {
                let mut norms = StateNorms::default();
                for token in 0..tokens {
                    values.extend(norms.row(mixer, tape, token, |_| Some(mixer.slot().state)).ok_or_else(lost)?);
                }
            }
            What::Mixing => {
                let view = MixingView { stage: Stage::Core, scale: Scale::Raw };
                for head in &self.heads {
                    values.extend(mixing_rows(mixer, tape, *head, Span::All, view, 0..tokens));
                }
            }
            What::MixingError => values = self.mixing_errors(mixer, tape, tokens),
            What::Reach => values.extend((0..tokens).flat_map(|token| reach(mixer, tape, token))),
        }
        Ok(values)
    }

    fn mixing_errors(&self, mixer: &dyn Mixer, tape: &LayerTape, tokens: usize) -> Vec<f32> {
        let mut peaks = vec![0.0f32; self.heads.len()];
        let mut values = Vec::with_capacity(tokens * self.heads.len());
        for token in 0..tokens {
            for (head, largest) in self.heads.iter().zip(&mut peaks) {
                let (error, peak) = mixing_error(mixer, tape, *head, token);
                *largest = largest.max(peak);
                values.push(if *largest > 0.0 { error / *largest } else { error });
            }
        }
        values
    }
}
