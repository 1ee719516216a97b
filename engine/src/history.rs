//! The token log of one text and the means to be at any of its positions again, bit for bit.
//!
//! Tokens were read in *segments*: prompts in chunks that start at absolute multiples of 64, generated tokens one by one. A chunk
//! and single steps round differently, so replay keeps to the segments of the first run. Snapshots of the mixers' memories, taken at segment ends
//! and thinned out to a byte budget, save most of the way.

use std::ops::Range;

use crate::protocol::{TokenId, TokenSource};
use crate::runner::Saved;

/// Prefill chunks start at multiples of this.
const GRID: usize = 64;
/// Grid cells of the longest prefill chunk on the CPU: of longer ones products are hardly any faster.
const MOST: u64 = 8;
/// Multiply-adds of such a chunk: some seconds on two cores, within which nobody can pause.
const CHUNK_WORK: u64 = 360 << 30;

/// Tokens of a prefill chunk on the CPU where each takes so many multiply-adds.
pub fn chunk(multiply_adds: u64) -> usize {
    GRID * (CHUNK_WORK / multiply_adds.max(1) / GRID as u64).clamp(1, MOST) as usize
}

/// Memories and logits after `position` tokens.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub position: usize,
    pub memory: Saved,
    /// `[V]`, of the last token before `position`.
    pub logits: Vec<f32>,
}

impl Snapshot {
    fn bytes(&self) -> usize {
        self.memory.bytes() + self.logits.len() * size_of::<f32>()
    }
}

/// Tokens, how they were read, and snapshots on the way.
#[derive(Clone, Debug)]
pub struct History {
    tokens: Vec<(TokenId, TokenSource)>,
    /// Ends of the segments, ascending; the last is the number of tokens.
    ends: Vec<usize>,
    snapshots: Vec<Snapshot>,
    budget: usize,
}

impl History {
    /// `budget`: bytes of snapshots to keep.
    pub fn new(budget: usize) -> Self {
        Self { tokens: Vec::new(), ends: Vec::new(), snapshots: Vec::new(), budget }
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub fn token(&self, position: usize) -> (TokenId, TokenSource) {
        self.tokens[position]
    }

    /// Ids of a stretch of tokens.
    pub fn ids(&self, positions: Range<usize>) -> Vec<TokenId> {
        self.tokens[positions].iter().map(|(id, _)| *id).collect()
    }

    /// Starts over with a prompt, to be read in chunks of `chunk`, a multiple of [`GRID`].
    pub fn start(&mut self, prompt: &[TokenId], chunk: usize) {
        self.tokens = prompt.iter().map(|id| (*id, TokenSource::Prompt)).collect();
        self.ends = (1..).map(|i| i * chunk).take_while(|end| *end < prompt.len()).collect();
        self.ends.push(prompt.len());
        self.snapshots.clear();
    }

    /// Appends one token, to be read by itself.
    pub fn push(&mut self, token: TokenId, source: TokenSource) {
        self.tokens.push((token, source));
        self.ends.push(self.tokens.len());
    }

    /// Forgets all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        if length >= self.tokens.len() {
            return;
        }
        self.tokens.truncate(length);
        self.ends.retain(|end| *end < length);
        if length > 0 {
            self.ends.push(length);
        }
        self.snapshots.retain(|s| s.position <= length);
    }

    /// The segment that reads the token at `position`.
    pub fn segment(&self, position: usize) -> Range<usize> {
        let index = self.ends.partition_point(|end| *end <= position);
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        start..self.ends.get(index).copied().unwrap_or(self.tokens.len())
    }

    /// The latest snapshot at or before `position`; none means the very beginning.
    pub fn snapshot_before(&self, position: usize) -> Option<&Snapshot> {
        self.snapshots.iter().rev().find(|s| s.position <= position)
    }

    /// Whether a snapshot after `position` tokens would be worth keeping: with a budget, at the end of a segment, some way after the last one. The end
    /// of a chunk always is, since a state folded step by step has other bits.
    pub fn wants_snapshot(&self, position: usize) -> bool {
        let last = self.snapshot_before(position).map_or(0, |s| s.position);
        let chunk = position > last && self.segment(position - 1).len() > 1;
        self.budget > 0 && (chunk || position >= last + GRID) && self.ends.binary_search(&position).is_ok()
    }

    /// Keeps a snapshot; beyond the budget every second one goes.
    pub fn keep(&mut self, snapshot: Snapshot) {
        let at = self.snapshots.partition_point(|s| s.position < snapshot.position);
        self.snapshots.insert(at, snapshot);
        while self.snapshot_bytes() > self.budget && self.snapshots.len() > 1 {
            let mut index = 0;
            self.snapshots.retain(|_| {
                index += 1;
                index % 2 == 0
            });
        }
    }

    /// Gives up all snapshots but the one that [`History::snapshot_before`] finds for `position`; false if there were no others.
    pub fn drop_snapshots(&mut self, position: usize) -> bool {
        let kept = self.snapshot_before(position).map(|s| s.position);
        let before = self.snapshots.len();
        self.snapshots.retain(|s| Some(s.position) == kept);
        self.snapshots.len() < before
    }

    pub fn snapshot_bytes(&self) -> usize {
        self.snapshots.iter().map(Snapshot::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(history: &History) -> Vec<Range<usize>> {
        let mut position = 0;
        let mut all = Vec::new();
        while position < history.len() {
            all.push(history.segment(position));
            position = history.segment(position).end;
        }
        all
    }

    #[test]
    fn large_models_read_shorter_chunks() {
        assert_eq!(
            [4_500_000, 130_000_000, 2_700_000_000, 7_000_000_000, u64::MAX].map(chunk),
            [512, 512, 128, 64, 64]
        );
        assert_eq!(chunk(0), 512);
    }

    #[test]
    fn prompts_are_chunked_on_the_grid_and_steps_are_single() {
        let mut history = History::new(usize::MAX);
        history.start(&[7; 257], 128);
        history.push(8, TokenSource::Sampled);
        assert_eq!(segments(&history), vec![0..128, 128..256, 256..257, 257..258]);
        assert!(segments(&history)[..3].iter().all(|s| s.start % GRID == 0));
        assert_eq!(history.segment(130), 128..256);
    }

    #[test]
    fn a_cut_splits_the_segment_it_falls_into() {
        let mut history = History::new(usize::MAX);
        history.start(&[7; 100], 128);
        history.keep(Snapshot { position: 100, memory: Saved::Host(vec![]), logits: vec![] });
        history.truncate(30);
        history.push(9, TokenSource::Forced);
        assert_eq!(segments(&history), vec![0..30, 30..31]);
        assert!(history.snapshot_before(100).is_none());
    }

    #[test]
    fn snapshots_thin_out_to_the_budget() {
        let mut history = History::new(40 * size_of::<f32>());
        for position in (64..=6400).step_by(64) {
            history.keep(Snapshot { position, memory: Saved::Host(vec![]), logits: vec![0.0; 4] });
        }
        assert!(history.snapshot_bytes() <= 40 * size_of::<f32>());
        assert!(history.snapshot_before(6400).is_some());
    }
}
