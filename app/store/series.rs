//! One quantity over tokens: a row of `width` numbers per token, in any order of arrival.

/// Rows of a quantity by token position. A row that has not arrived is unknown, which is not zero.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Numbers per token.
    pub width: usize,
    /// Their meaning, e.g. `[H]` or `[H, N]`.
    pub dims: Vec<usize>,
    /// Position of the first row kept; older ones were dropped for the budget.
    first: usize,
    values: Vec<f32>,
    known: Vec<bool>,
    range: Option<(f32, f32)>,
    generation: u64,
}

impl Series {
    pub fn new(dims: &[usize]) -> Self {
        let width = dims.iter().product::<usize>().max(1);
        Self { width, dims: dims.to_vec(), ..Self::default() }
    }

    /// The row of token `t`.
    pub fn row(&self, t: usize) -> Option<&[f32]> {
        if !self.known(t) {
            return None;
        }
        let start = (t - self.first) * self.width;
        self.values.get(start..start + self.width)
    }

    /// One number of token `t`.
    pub fn value(&self, t: usize, index: usize) -> Option<f32> {
        if index >= self.width { None } else { self.row(t)?.get(index).copied() }
    }

    pub fn known(&self, t: usize) -> bool {
        t >= self.first && self.known.get(t - self.first).copied().unwrap_or(false)
    }

    /// One past the last position that could be known.
    pub fn len(&self) -> usize {
        self.first + self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        !self.known.iter().any(|k| *k)
    }

    /// Smallest and largest finite value, (0, 1) when nothing is known.
    pub fn range(&self) -> (f32, f32) {
        self.range.unwrap_or((0.0, 1.0))
    }

    /// Changes with every change of the data, and differs between any two series of one store.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn bytes(&self) -> usize {
        self.values.len() * 4 + self.known.len() + 64
    }

    /// Stores `rows` of consecutive tokens from `start`. Says how many old rows were dropped to keep at most `max_rows`.
    pub(super) fn put(&mut self, start: usize, rows: &[f32], generation: u64, max_rows: usize) -> usize {
        let count = rows.len() / self.width;
        if count == 0 {
            return 0;
        }
        if self.known.is_empty() {
            self.first = 0;
        }
        let end = start + count;
        if end > self.len() {
            let rows = end - self.first;
            self.values.resize(rows * self.width, 0.0);
            self.known.resize(rows, false);
        }
        for (k, row) in rows.chunks_exact(self.width).enumerate() {
            let Some(at) = (start + k).checked_sub(self.first) else { continue };
            self.values[at * self.width..(at + 1) * self.width].copy_from_slice(row);
            self.known[at] = true;
            self.range = widen(self.range, row);
        }
        self.generation = generation;
        self.drop_oldest(max_rows)
    }

    /// Forgets everything from token `keep` on.
    pub(super) fn truncate(&mut self, keep: usize, generation: u64) {
        if keep >= self.len() {
            return;
        }
        let rows = keep.saturating_sub(self.first);
        self.values.truncate(rows * self.width);
        self.known.truncate(rows);
        self.range = None;
        for t in self.first..self.first + rows {
            if let Some(row) = self.row(t) {
                let widened = widen(self.range, row);
                self.range = widened;
            }
        }
        self.generation = generation;
    }

    fn drop_oldest(&mut self, max_rows: usize) -> usize {
        if self.known.len() <= max_rows {
            return 0;
        }
        // An eighth at a time, so that the copying is amortised.
        let dropped = self.known.len() - (max_rows - max_rows / 8);
        self.known.drain(..dropped);
        self.values.drain(..dropped * self.width);
        self.first += dropped;
        dropped
    }
}

pub(super) fn widen(range: Option<(f32, f32)>, row: &[f32]) -> Option<(f32, f32)> {
    row.iter().filter(|v| v.is_finite()).fold(range, |range, v| match range {
        Some((low, high)) => Some((low.min(*v), high.max(*v))),
        None => Some((*v, *v)),
    })
}
