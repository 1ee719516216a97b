//! Answers the probes: remembers per series how far it has been sent, per newest-value probe what it was computed from, and works in
//! slices of time so that commands and tokens never wait for a picture.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use statescope_kernels::pool::{pool_row, pool_signed_absmax, pooled_row};
use statescope_kernels::reduce::min_max;

use crate::allowance::thread_time;
use crate::hooks::Depth;
use crate::mixer::Mixer;
use crate::probes::{MATRIX_TOKENS, StateNorms, exists, mixing_rows, reach, reduce_row, row_errors, series_row};
use crate::protocol::{
    Cadence, Fold, MixingView, Point, Positions, Probe, Reading, Reduction, Scale, Site, Span, Stage,
};
use crate::session::Session;
use crate::tape::LayerTape;

/// Values that one probe may send at once.
const CEILING: usize = 1 << 22;
/// Heads that a pooled picture of a whole layer may have.
const POOLED_HEADS: usize = 64;
/// While tokens are being made, an expensive picture may take one part in so many of the time.
const LATEST_SHARE: u32 = 64;
/// How long a new text runs before its first expensive picture.
const FIRST_PICTURE: Duration = Duration::from_millis(300);
/// The matrix that the error badge speaks of.
const CORE: MixingView = MixingView { stage: Stage::Core, scale: Scale::Raw };
/// Rows of a matrix drawn at once for a picture.
const BLOCK: usize = 64;
/// Rows of a series computed between two looks at the clock.
const ROWS: usize = 32;
/// Tokens behind the text that count as far, and frames (an eighth of a second): whichever is more.
const FAR: usize = 64;
const FAR_FRAMES: usize = 8;

/// Progress of one `EveryToken` probe.
#[derive(Default)]
struct Series {
    /// First position not sent yet.
    next: usize,
    /// Largest |y| so far, the scale of the matrix error.
    peak: f32,
}

impl Series {
    /// The error of a row against the largest output so far.
    fn relative_error(&mut self, (error, peak): (f32, f32)) -> f32 {
        self.peak = self.peak.max(peak);
        if self.peak > 0.0 { error / self.peak } else { error }
    }
}

/// The core rows drawn last: the matrix and its error badge ask for the same ones, one after the other.
#[derive(Default)]
struct Drawn {
    key: Option<(Site, usize, Range<usize>)>,
    rows: Vec<f32>,
}

impl Drawn {
    /// `[positions.len(), positions.end]` as [`mixing_rows`] draws them.
    fn core(
        &mut self,
        mixer: &dyn Mixer,
        tape: &LayerTape,
        site: Site,
        head: usize,
        positions: Range<usize>,
    ) -> &[f32] {
        let site = Site { point: Point::Mixing(CORE), ..site };
        let key = Some((site, head, positions.clone()));
        if self.key != key {
            self.rows = mixing_rows(mixer, tape, head, Span::All, CORE, positions);
            self.key = key;
        }
        &self.rows
    }
}

/// What a `Latest` probe was last computed from: (tokens processed or position, first recorded token).
type Stamp = (usize, usize);

/// A pooled picture under way, one head after another.
struct Pooling {
    probe: Probe,
    /// The first recorded token when it began, and one past the last.
    first: usize,
    tokens: usize,
    heads: Range<usize>,
    values: Vec<f32>,
}

/// The state of all answers to one observation.
#[derive(Default)]
pub struct Collector {
    probes: Vec<Probe>,
    series: HashMap<Probe, Series>,
    sent: HashMap<Probe, Stamp>,
    /// By layer and part.
    norms: HashMap<(u16, u8), StateNorms>,
    drawn: Drawn,
    pooling: Option<Pooling>,
    /// Expensive pictures wait until then.
    rest_until: Option<Instant>,
    /// Tokens that the slowest series is behind.
    lag: usize,
}

impl Collector {
    /// Replaces the probes; series that stay keep their progress.
    pub fn observe(&mut self, probes: &[Probe]) {
        self.probes = probes.to_vec();
        self.series.retain(|p, _| probes.contains(p));
        self.sent.retain(|p, _| probes.contains(p));
        self.norms.retain(|place, _| probes.iter().any(|p| place_of(p) == *place && p.site.point == Point::State));
        self.pooling = self.pooling.take().filter(|p| probes.contains(&p.probe));
    }

    /// How much of a layer the probes look at.
    pub fn looks_at(&self, layer: usize) -> Depth {
        let strength = |p: &Probe| {
            (p.site.point, p.site.part, p.reduction) == (Point::Write, 0, Reduction::Layer(Fold::Norm))
                && p.select.heads == Span::All
        };
        let depth = |p: &Probe| if strength(p) { Depth::Strength } else { Depth::Everything };
        let here = self.probes.iter().filter(|p| p.site.layer as usize == layer);
        here.map(depth).max().unwrap_or_default()
    }

    /// Whether a series is so far behind the text that it had better catch up, where so many tokens are made a frame.
    pub fn is_far_behind(&self, made: usize) -> bool {
        self.lag > FAR.max(FAR_FRAMES * made)
    }

    /// Everything from `keep` on is void.
    pub fn truncate(&mut self, keep: usize) {
        for series in self.series.values_mut() {
            if series.next > keep {
                series.next = keep;
            }
        }
        self.norms.clear();
        self.drawn = Drawn::default();
        self.sent.clear();
        self.pooling = None;
    }

    /// Computes readings until the deadline. Returns them and whether more is to be done right away.
    pub fn collect(&mut self, session: &Session, deadline: Instant, running: bool) -> (Vec<Reading>, bool) {
        let mut readings = Vec::new();
        let mut more = false;
        self.lag = 0;
        // Whoever is furthest behind comes first, so that a short slice starves nobody. Whole matrices take turns in the same way, after the
        // cheap answers.
        let mut probes = self.probes.clone();
        probes.sort_by_key(|p| {
            let reached = match p.cadence {
                Cadence::EveryToken => self.series.get(p).map_or(0, |series| series.next),
                Cadence::Latest if is_expensive(p) => self.sent.get(p).map_or(0, |stamp| stamp.0),
                Cadence::Latest => 0,
            };
            (is_expensive(p), reached, self.pooling_of(p))
        });
        for probe in probes {
            if !answerable(session, &probe.site) {
                continue;
            }
            match probe.cadence {
                Cadence::EveryToken => more |= self.collect_series(session, probe, deadline, &mut readings),
                Cadence::Latest => more |= self.collect_latest(session, probe, deadline, running, &mut readings),
            }
        }
        (readings, more)
    }

    fn collect_series(
        &mut self,
        session: &Session,
        probe: Probe,
        deadline: Instant,
        readings: &mut Vec<Reading>,
    ) -> bool {
        let (layer, part) = (probe.site.layer as usize, probe.site.part as usize);
        let (mixer, tape) = place(session, &probe.site);
        let recorded = tape.positions();
        let series = self.series.entry(probe).or_default();
        let mut start = series.next.max(recorded.start);
        if matches!(probe.site.point, Point::Mixing(_)) {
            start = start.max(recorded.end.saturating_sub(MATRIX_TOKENS));
        }
        while start < recorded.end {
            if Instant::now() >= deadline {
                self.lag = self.lag.max(recorded.end - start);
                return true;
            }
            let end = (start + ROWS).min(recorded.end);
            let values = match probe.site.point {
                Point::Mixing(view) => {
                    let Span::One(head) = probe.select.heads else { return false };
                    let head = (head as usize).min(mixer.geometry().heads - 1);
                    if view == CORE {
                        self.drawn.core(mixer, tape, probe.site, head, start..end).to_vec()
                    } else {
                        mixing_rows(mixer, tape, head, probe.select.channels, view, start..end)
                    }
                }
                Point::MixingError => {
                    let Span::One(head) = probe.select.heads else { return false };
                    let head = (head as usize).min(mixer.geometry().heads - 1);
                    // Without the first tokens the rows are not whole and say nothing of the truth.
                    if recorded.start > 0 {
                        vec![f32::NAN; end - start]
                    } else {
                        let block = self.drawn.core(mixer, tape, probe.site, head, start..end);
                        let errors = row_errors(mixer, tape, head, start..end, block);
                        errors.into_iter().map(|error| series.relative_error(error)).collect()
                    }
                }
                Point::State => {
                    let before = |t: usize| match t {
                        0 => Some(mixer.slot().state),
                        _ => session.state_at(layer, part, t - 1),
                    };
                    let norms = self.norms.entry(place_of(&probe)).or_default();
                    let mut values = Vec::new();
                    for t in start..end {
                        let Some(row) = norms.row(mixer, tape, t, before) else { return false };
                        reduce_norms(row, &probe, &mut values);
                    }
                    values
                }
                _ => {
                    let mut values = Vec::new();
                    if !(start..end).all(|t| series_row(mixer, tape, &probe, t, &mut values)) {
                        return false;
                    }
                    values
                }
            };
            let rows = end - start;
            readings.push(reading(probe, start..end, vec![rows, values.len() / rows], values));
            series.next = end;
            start = end;
        }
        false
    }

    fn collect_latest(
        &mut self,
        session: &Session,
        probe: Probe,
        deadline: Instant,
        running: bool,
        readings: &mut Vec<Reading>,
    ) -> bool {
        let (layer, part) = (probe.site.layer as usize, probe.site.part as usize);
        match probe.site.point {
            Point::Mixing(view) => self.collect_pooled(session, probe, view, deadline, running, readings),
            Point::State => {
                let Some(position) = position_of(&probe, session) else { return false };
                let stamp = (position, session.tape().part(layer, part).positions().start);
                if self.sent.get(&probe) == Some(&stamp) {
                    return false;
                }
                let Some(state) = session.state_at(layer, part, position) else { return false };
                readings.push(state_reading(session, probe, position, &state));
                self.sent.insert(probe, stamp);
                false
            }
            Point::Reach => {
                let Some(position) = position_of(&probe, session) else { return false };
                let (mixer, tape) = place(session, &probe.site);
                let stamp = (position, tape.positions().start);
                if self.sent.get(&probe) == Some(&stamp) || self.rests(running) || !tape.positions().contains(&position)
                {
                    return false;
                }
                let began = thread_time();
                let values = reach(mixer, tape, position);
                readings.push(reading(probe, position..position + 1, vec![values.len() / 3, 3], values));
                self.sent.insert(probe, stamp);
                self.rest(thread_time().saturating_sub(began));
                false
            }
            _ => {
                let Some(position) = position_of(&probe, session) else { return false };
                if self.sent.get(&probe) == Some(&(position, 0)) {
                    return false;
                }
                let mut values = Vec::new();
                let (mixer, tape) = place(session, &probe.site);
                if series_row(mixer, tape, &probe, position, &mut values) {
                    readings.push(reading(probe, position..position + 1, vec![values.len()], values));
                    self.sent.insert(probe, (position, 0));
                }
                false
            }
        }
    }

    /// Small pictures of whole matrices, head by head.
    fn collect_pooled(
        &mut self,
        session: &Session,
        probe: Probe,
        view: MixingView,
        deadline: Instant,
        running: bool,
        readings: &mut Vec<Reading>,
    ) -> bool {
        let Reduction::Pool { rows, cols } = probe.reduction else { return false };
        let (rows, cols) = (rows.max(1) as usize, cols.max(1) as usize);
        let (mixer, tape) = place(session, &probe.site);
        let recorded = tape.positions();
        let heads = match probe.select.heads {
            Span::One(head) => head as usize..head as usize + 1,
            Span::All => 0..mixer.geometry().heads,
        };
        if recorded.is_empty() || heads.len() > POOLED_HEADS || heads.end > mixer.geometry().heads {
            return false;
        }
        let stamp = (recorded.end, recorded.start);
        // While a prompt is read every picture would be out of date before it is seen.
        if self.rests(running) || session.is_reading() {
            return false;
        }
        // What it was begun from may have been dropped meanwhile.
        self.pooling = self.pooling.take().filter(|p| p.probe != probe || p.first == recorded.start);
        if self.pooling.is_none() {
            if self.sent.get(&probe) == Some(&stamp) {
                return false;
            }
            let (first, tokens) = (recorded.start, recorded.end);
            self.pooling = Some(Pooling { probe, first, tokens, heads: heads.clone(), values: Vec::new() });
        }
        let Some(pooling) = self.pooling.as_mut().filter(|p| p.probe == probe) else { return true };
        let tokens = pooling.tokens;
        let start = recorded.start.max(tokens.saturating_sub(MATRIX_TOKENS));
        let began = thread_time();
        while let Some(head) = pooling.heads.next() {
            let side = tokens - start;
            let (rows, cols) = (rows.min(side), cols.min(side));
            let at = pooling.values.len();
            pooling.values.resize(at + rows * cols, 0.0);
            // A few rows at a time stay in the cache.
            for first in (start..tokens).step_by(BLOCK) {
                let block = first..(first + BLOCK).min(tokens);
                let drawn = mixing_rows(mixer, tape, head, probe.select.channels, view, block.clone());
                for (t, row) in block.clone().zip(drawn.chunks_exact(block.end)) {
                    let at = at + pooled_row(t - start, side, rows) * cols;
                    // Columns before the window belong to rows that are not drawn.
                    pool_row(&row[start..], side, &mut pooling.values[at..at + cols]);
                }
            }
            if (running || Instant::now() >= deadline) && !pooling.heads.is_empty() {
                self.rest(thread_time().saturating_sub(began));
                return true;
            }
        }
        if let Some(done) = self.pooling.take() {
            let side = tokens - start;
            let shape = vec![heads.len(), rows.min(side), cols.min(side)];
            readings.push(reading(probe, start..tokens, shape, done.values));
            self.sent.insert(probe, (tokens, recorded.start));
        }
        self.rest(thread_time().saturating_sub(began));
        // Tokens may have come meanwhile; whether to start again is decided on the next call.
        !running && stamp.0 != tokens
    }

    /// Sorts a picture under way before one that has not begun.
    fn pooling_of(&self, probe: &Probe) -> bool {
        self.pooling.as_ref().is_none_or(|p| p.probe != *probe)
    }

    /// Whether expensive pictures have had their share of the time; of a run that has only begun they have.
    fn rests(&mut self, running: bool) -> bool {
        running && Instant::now() < *self.rest_until.get_or_insert_with(|| Instant::now() + FIRST_PICTURE)
    }

    fn rest(&mut self, spent: Duration) {
        self.rest_until = Some(Instant::now() + spent * LATEST_SHARE);
    }
}

/// (layer, part).
fn place_of(probe: &Probe) -> (u16, u8) {
    (probe.site.layer, probe.site.part)
}

/// The mixer of a site, which must be [`answerable`], and its record.
fn place<'a>(session: &'a Session, site: &Site) -> (&'a dyn Mixer, &'a LayerTape) {
    let (layer, part) = (site.layer as usize, site.part as usize);
    (session.model().mixer(layer, part), session.tape().part(layer, part))
}

/// Whether the model has the mixer, and the mixer the quantity.
fn answerable(session: &Session, site: &Site) -> bool {
    let (layer, part) = (site.layer as usize, site.part as usize);
    let model = session.model();
    // The residual stream is the layer's and kept with its first mixer.
    let has = |mixer| exists(mixer, site.point) && (part == 0 || site.point != Point::Resid);
    layer < model.layer_count() && part < model.parts(layer) && has(model.mixer(layer, part))
}

/// What takes turns while tokens are being made.
fn is_expensive(probe: &Probe) -> bool {
    probe.cadence == Cadence::Latest && matches!(probe.site.point, Point::Mixing(_) | Point::Reach)
}

/// The token a `Latest` probe speaks of, if it is processed.
fn position_of(probe: &Probe, session: &Session) -> Option<usize> {
    let recorded = session.tape().part(probe.site.layer as usize, probe.site.part as usize).positions().end;
    let last = session.position().checked_sub(1)?;
    match probe.select.positions {
        Positions::At(position) => {
            (position as usize <= last.max(recorded.saturating_sub(1))).then_some(position as usize)
        }
        Positions::Live | Positions::All => Some(last),
    }
}

/// Per-head norms of a state, reduced as the probe says.
fn reduce_norms(norms: &[f32], probe: &Probe, out: &mut Vec<f32>) {
    // Norm and largest norm per head are the numbers themselves; a layer's norm is the norm of the norms.
    reduce_row(
        norms,
        norms.len(),
        norms.len(),
        &probe.select,
        match probe.reduction {
            Reduction::Layer(fold) => Reduction::Layer(fold),
            _ => Reduction::Full,
        },
        out,
    );
}

fn state_reading(session: &Session, probe: Probe, position: usize, state: &[f32]) -> Reading {
    let geometry = place(session, &probe.site).0.geometry();
    let (p, n) = (geometry.head_dim, geometry.state_dim);
    let (heads, state) = match probe.select.heads {
        Span::All => (geometry.heads, state),
        Span::One(head) => {
            let head = (head as usize).min(geometry.heads - 1);
            (1, &state[head * p * n..(head + 1) * p * n])
        }
    };
    let (shape, values) = match probe.reduction {
        Reduction::Pool { rows, cols } => {
            let (rows, cols) = ((rows as usize).clamp(1, p), (cols as usize).clamp(1, n));
            let mut pooled = vec![0.0; heads * rows * cols];
            for (from, to) in state.chunks_exact(p * n).zip(pooled.chunks_exact_mut(rows * cols)) {
                pool_signed_absmax(from, p, n, rows, cols, to);
            }
            (vec![heads, rows, cols], pooled)
        }
        _ => (vec![heads, p, n], state[..state.len().min(CEILING)].to_vec()),
    };
    reading(probe, position..position + 1, shape, values)
}

fn reading(probe: Probe, positions: Range<usize>, shape: Vec<usize>, values: Vec<f32>) -> Reading {
    let range = min_max(&values).unwrap_or((0.0, 0.0));
    Reading { probe, positions, shape, values: values.into(), range }
}
