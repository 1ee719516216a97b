//! What the window knows: events in, read by the views. Nothing else is shared with the engine.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use statescope_engine::protocol::{
    Backfill, Cadence, Event, Failure, FinishReason, Frame, ModelInfo, Performance, Point, Prediction, Probe, Reading,
    RunState, TokenRecord,
};

use crate::widget::format::thousands;

mod matrix;
mod series;
mod text;

pub use matrix::{CausalMatrix, MAX_ROWS};
pub use series::Series;

/// Readings kept of probes that no view asks for now, so that going back to a layer is instant.
const CACHE_BYTES: usize = 192 << 20;
/// Numbers kept of one series (64 MB); older rows are dropped, and it is said.
const MAX_SERIES_VALUES: usize = 16 << 20;
/// Points of the performance curves; every second one is dropped when full.
const MAX_LOG: usize = 4096;

/// How far a model has been loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Loading {
    pub fraction: f32,
    pub what: String,
}

/// One point of the performance curves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerformancePoint {
    /// Tokens processed.
    pub length: usize,
    pub tokens_per_s: f32,
    pub state_bytes: usize,
    pub kv_bytes: usize,
}

enum Data {
    Series(Series),
    Matrix(CausalMatrix),
    Latest(Reading, u64),
}

struct Entry {
    data: Data,
    /// When a view last asked for it.
    wanted: u64,
}

/// Everything that has arrived, within bounds.
#[derive(Default)]
pub struct Store {
    pub model: Option<Arc<ModelInfo>>,
    pub loading: Option<Loading>,
    pub error: Option<Failure>,
    /// Counts prompts.
    pub epoch: u64,
    /// The epoch that the prompt sent last will begin, at the earliest.
    asked: u64,
    pub tokens: Vec<TokenRecord>,
    /// By position; what the model expects after having read that token.
    pub predictions: Vec<Option<Prediction>>,
    /// Tokens processed.
    pub position: usize,
    pub run: RunState,
    pub performance: Performance,
    pub performance_log: VecDeque<PerformancePoint>,
    pub backfill: Option<Backfill>,
    pub finish: Option<FinishReason>,
    labels: Vec<String>,
    readings: HashMap<Probe, Entry>,
    /// Source of generations; only grows, so that no two states of any data share a number.
    clock: u64,
    /// The clock when the probes wanted now were told.
    told: u64,
    dropped_rows: usize,
    dropped_probes: usize,
}

impl Store {
    /// Takes in one event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Loading { fraction, what } => self.loading = Some(Loading { fraction, what }),
            Event::Loaded(model) => {
                self.clear_text();
                self.model = Some(model);
                self.loading = None;
                self.error = None;
                self.run = RunState::Paused;
                self.performance = Performance::default();
            }
            Event::Frame(frame) => self.apply_frame(&frame),
            Event::Done(reason) => self.finish = Some(reason),
            Event::Failed(failure) => {
                self.loading = None;
                self.error = Some(failure);
                // The text before stays.
                self.asked = self.epoch;
                if self.run == RunState::Reading {
                    self.run = RunState::Paused;
                }
            }
        }
    }

    /// A prompt is on its way: what is here now speaks of a text that is about to go.
    pub fn await_text(&mut self) {
        self.asked = self.asked.max(self.epoch) + 1;
        self.run = RunState::Reading;
    }

    /// Whether positions speak of the text that the engine has, or will have by the time it hears of them.
    pub fn is_current(&self) -> bool {
        self.epoch >= self.asked
    }

    /// A lossless series, for probes with `EveryToken` of anything but a matrix.
    pub fn series(&self, probe: &Probe) -> Option<&Series> {
        match &self.readings.get(probe)?.data {
            Data::Series(series) => Some(series),
            _ => None,
        }
    }

    /// A mixing matrix that grows by rows.
    pub fn matrix(&self, probe: &Probe) -> Option<&CausalMatrix> {
        match &self.readings.get(probe)?.data {
            Data::Matrix(matrix) => Some(matrix),
            _ => None,
        }
    }

    /// The newest value of a `Latest` probe.
    pub fn latest(&self, probe: &Probe) -> Option<&Reading> {
        match &self.readings.get(probe)?.data {
            Data::Latest(reading, _) => Some(reading),
            _ => None,
        }
    }

    /// Changes whenever `latest(probe)` does; 0 when there is none.
    pub fn latest_generation(&self, probe: &Probe) -> u64 {
        match self.readings.get(probe) {
            Some(Entry { data: Data::Latest(_, generation), .. }) => *generation,
            _ => 0,
        }
    }

    /// Tokens known: prompt, sampled and forced.
    pub fn length(&self) -> usize {
        self.tokens.len()
    }

    /// A token as text: spaces kept, line breaks as ↵, pieces of split characters as ‹e3 81› until complete.
    pub fn token_text(&self, position: usize) -> String {
        self.labels.get(position).map(|label| text::printable(label)).unwrap_or_default()
    }

    /// The same with spaces as ·, for labels where a lone space would not be seen.
    pub fn token_label(&self, position: usize) -> String {
        self.token_text(position).replace(' ', "·")
    }

    /// The token's own text, line breaks included.
    pub fn token_raw(&self, position: usize) -> &str {
        self.labels.get(position).map_or("", String::as_str)
    }

    /// The whole text; only an unfinished character at the very end can be a replacement mark.
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.tokens.iter().flat_map(|t| t.bytes.iter().copied()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// −log₂ p of the token at `position`.
    pub fn surprisal(&self, position: usize) -> Option<f32> {
        self.predictions.get(position)?.as_ref()?.surprisal_bits
    }

    /// The prediction made after reading the token at `position`.
    pub fn prediction(&self, position: usize) -> Option<&Prediction> {
        self.predictions.get(position)?.as_ref()
    }

    /// What is asked for now. Data of other probes stay, oldest dropped first, while they fit the budget.
    pub fn retain_probes(&mut self, wanted: &HashSet<Probe>) {
        self.clock += 1;
        self.told = self.clock;
        for (probe, entry) in &mut self.readings {
            if wanted.contains(probe) {
                entry.wanted = self.clock;
            }
        }
        self.shrink(wanted);
    }

    /// Tokens of which all that is asked for has arrived, save what nothing has arrived of: in a fast run pictures are a little behind the text.
    pub fn known(&self) -> usize {
        let wanted = self.readings.values().filter(|entry| entry.wanted >= self.told);
        let length = |entry: &Entry| match &entry.data {
            Data::Series(series) => Some(series.len()),
            Data::Matrix(matrix) => Some(matrix.len()),
            Data::Latest(..) => None,
        };
        wanted.filter_map(length).filter(|length| *length > 0).min().unwrap_or(usize::MAX)
    }

    fn shrink(&mut self, wanted: &HashSet<Probe>) {
        let mut total: usize = self.readings.values().map(Entry::bytes).sum();
        if total <= CACHE_BYTES {
            return;
        }
        let mut idle: Vec<(u64, Probe, usize)> = self
            .readings
            .iter()
            .filter(|(probe, _)| !wanted.contains(probe))
            .map(|(probe, entry)| (entry.wanted, *probe, entry.bytes()))
            .collect();
        idle.sort_by_key(|(wanted, ..)| *wanted);
        for (_, probe, bytes) in idle {
            if total <= CACHE_BYTES {
                break;
            }
            self.readings.remove(&probe);
            self.dropped_probes += 1;
            total -= bytes;
        }
    }

    /// Bytes of readings held.
    pub fn reading_bytes(&self) -> usize {
        self.readings.values().map(Entry::bytes).sum()
    }

    /// What was bounded or dropped, one sentence each: the engine's and the window's own.
    pub fn bounded_notes(&self) -> Vec<String> {
        let mut notes = self.performance.bounded.clone();
        if self.dropped_rows > 0 {
            let rows = thousands(self.dropped_rows);
            notes.push(format!("The window dropped {rows} oldest rows of series to stay within memory."));
        }
        if self.dropped_probes > 0 {
            notes.push(format!(
                "The window dropped {} quantities that no panel shows; they are read again when needed.",
                self.dropped_probes
            ));
        }
        notes
    }

    fn clear_text(&mut self) {
        self.tokens.clear();
        self.labels.clear();
        self.predictions.clear();
        self.readings.clear();
        self.performance_log.clear();
        self.position = 0;
        self.backfill = None;
        self.finish = None;
        self.dropped_rows = 0;
        self.dropped_probes = 0;
    }

    fn apply_frame(&mut self, frame: &Frame) {
        if frame.epoch != self.epoch {
            self.clear_text();
            self.epoch = frame.epoch;
        }
        if frame.state == RunState::Empty {
            // A model that was to replace it did not fit beside it.
            self.model = None;
        }
        if let Some(keep) = frame.keep {
            self.cut(keep);
        }
        for token in &frame.tokens {
            // In order; a token sent again replaces what was there and everything after it.
            self.tokens.truncate(token.position);
            self.labels.truncate(token.position);
            if token.position == self.tokens.len() {
                self.tokens.push(token.clone());
            }
        }
        text::label_tokens(&mut self.labels, &self.tokens);
        for prediction in &frame.predictions {
            if self.predictions.len() <= prediction.position {
                self.predictions.resize(prediction.position + 1, None);
            }
            self.predictions[prediction.position] = Some(prediction.clone());
        }
        for reading in &frame.readings {
            self.apply_reading(reading);
        }
        if frame.state == RunState::Running && self.run != RunState::Running {
            self.finish = None;
        }
        self.position = frame.position;
        // Until the engine has heard of the prompt on its way, it reports the text before.
        self.run = if self.is_current() { frame.state } else { RunState::Reading };
        self.backfill = frame.backfill;
        self.performance = frame.performance.clone();
        self.log_performance();
    }

    fn apply_reading(&mut self, reading: &Reading) {
        self.clock += 1;
        let (clock, start) = (self.clock, reading.positions.start);
        let fresh = |data| Entry { data, wanted: clock };
        let probe = reading.probe;
        match (probe.cadence, probe.site.point) {
            (Cadence::Latest, _) => {
                let wanted = self.readings.get(&probe).map_or(clock, |entry| entry.wanted);
                self.readings.insert(probe, Entry { data: Data::Latest(reading.clone(), clock), wanted });
            }
            (Cadence::EveryToken, Point::Mixing(_)) => {
                let entry = self.readings.entry(probe).or_insert_with(|| fresh(Data::Matrix(CausalMatrix::default())));
                if let Data::Matrix(matrix) = &mut entry.data {
                    let columns = reading.shape.last().copied().unwrap_or(0);
                    // Rows beyond the newest are bounded by the engine, which says so.
                    matrix.put(start, columns, &reading.values, clock);
                }
            }
            (Cadence::EveryToken, _) => {
                let dims = reading.shape.get(1..).unwrap_or_default();
                let entry = self.readings.entry(probe).or_insert_with(|| fresh(Data::Series(Series::new(dims))));
                if let Data::Series(series) = &mut entry.data {
                    if series.dims != dims {
                        *series = Series::new(dims);
                    }
                    let max_rows = (MAX_SERIES_VALUES / series.width).max(64);
                    self.dropped_rows += series.put(start, &reading.values, clock, max_rows);
                }
            }
        }
    }

    /// Only the first `keep` tokens are still true.
    fn cut(&mut self, keep: usize) {
        self.tokens.truncate(keep);
        self.labels.truncate(keep);
        self.predictions.truncate(keep);
        self.clock += 1;
        let clock = self.clock;
        self.readings.retain(|_, entry| match &mut entry.data {
            Data::Series(series) => {
                series.truncate(keep, clock);
                true
            }
            Data::Matrix(matrix) => {
                matrix.truncate(keep, clock);
                true
            }
            Data::Latest(reading, _) => reading.positions.end <= keep,
        });
        self.performance_log.retain(|point| point.length <= keep);
    }

    fn log_performance(&mut self) {
        if self.position == 0 || self.performance_log.back().is_some_and(|last| last.length >= self.position) {
            return;
        }
        if self.performance_log.len() >= MAX_LOG {
            let mut index = 0;
            self.performance_log.retain(|_| {
                index += 1;
                index % 2 == 0
            });
        }
        self.performance_log.push_back(PerformancePoint {
            length: self.position,
            tokens_per_s: self.performance.tokens_per_s,
            state_bytes: self.performance.state_bytes,
            kv_bytes: self.performance.kv_bytes,
        });
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        match &self.data {
            Data::Series(series) => series.bytes(),
            Data::Matrix(matrix) => matrix.bytes(),
            Data::Latest(reading, _) => reading.values.len() * 4 + 128,
        }
    }
}

#[cfg(test)]
mod tests;
