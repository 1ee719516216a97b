//! A mixing matrix by rows: row i has i + 1 entries, since no token looks ahead.

use std::collections::BTreeMap;

use super::series::widen;

/// Rows kept at most; the engine covers as many.
pub const MAX_ROWS: usize = 2048;

/// The lower triangle of a mixing matrix, as far as it has arrived.
#[derive(Clone, Debug, Default)]
pub struct CausalMatrix {
    rows: BTreeMap<usize, Box<[f32]>>,
    range: Option<(f32, f32)>,
    entries: usize,
    generation: u64,
    /// The generation in which something else than a further row came.
    rewritten: u64,
}

impl CausalMatrix {
    /// Entry of query token `i` and key token `j`; none if not known, or if `j` comes after `i`.
    pub fn get(&self, i: usize, j: usize) -> Option<f32> {
        self.row(i)?.get(j).copied()
    }

    /// Entries 0..=i of row `i`.
    pub fn row(&self, i: usize) -> Option<&[f32]> {
        self.rows.get(&i).map(|row| &**row)
    }

    /// One past the last row known.
    pub fn len(&self) -> usize {
        self.rows.last_key_value().map_or(0, |(i, _)| i + 1)
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The first row that is known.
    pub fn first(&self) -> usize {
        self.rows.first_key_value().map_or(0, |(i, _)| *i)
    }

    /// Smallest and largest finite entry, (0, 1) when nothing is known.
    pub fn range(&self) -> (f32, f32) {
        self.range.unwrap_or((0.0, 1.0))
    }

    /// Changes with every change of the data, and differs between any two matrices of one store.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Changes when a row that is there changes or goes, or one comes before the last: all but the coming of further rows.
    pub fn rewritten(&self) -> u64 {
        self.rewritten
    }

    pub fn bytes(&self) -> usize {
        self.entries * 4 + self.rows.len() * 64
    }

    /// Stores rows `start..` of `columns` entries each. Says how many old rows were dropped.
    pub(super) fn put(&mut self, start: usize, columns: usize, values: &[f32], generation: u64) -> usize {
        if columns == 0 {
            return 0;
        }
        if start < self.len() {
            self.rewritten = generation;
        }
        for (k, row) in values.chunks_exact(columns).enumerate() {
            let i = start + k;
            let row = &row[..columns.min(i + 1)];
            self.range = widen(self.range, row);
            self.entries += row.len();
            if let Some(old) = self.rows.insert(i, row.into()) {
                self.entries -= old.len();
            }
        }
        let mut dropped = 0;
        while self.rows.len() > MAX_ROWS {
            if let Some((_, row)) = self.rows.pop_first() {
                self.entries -= row.len();
                dropped += 1;
            }
        }
        if dropped > 0 || self.rewritten == 0 {
            self.rewritten = generation;
        }
        self.generation = generation;
        dropped
    }

    /// Forgets rows from `keep` on.
    pub(super) fn truncate(&mut self, keep: usize, generation: u64) {
        let cut = self.rows.split_off(&keep);
        if cut.is_empty() {
            return;
        }
        self.entries = self.rows.values().map(|r| r.len()).sum();
        self.range = self.rows.values().fold(None, |range, row| widen(range, row));
        self.generation = generation;
        self.rewritten = generation;
    }
}
