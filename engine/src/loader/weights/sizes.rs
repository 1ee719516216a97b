//! How much the tensors are, on disk and in memory.

use std::sync::atomic::Ordering::Relaxed;

use super::{Entry, Stored, Weights};

impl Weights {
    /// Bytes of all tensors as they are stored.
    pub fn total_bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.range.len()).sum()
    }

    /// Bytes that the matrices will take at least, as far as is known before any is read: the largest may be a head that a model with tied
    /// embeddings leaves aside.
    pub fn bytes_at_least(&self) -> usize {
        let held = |entry: &Entry| {
            let columns = entry.shape.last().copied().unwrap_or(0).max(1);
            let dtype = match entry.stored {
                Stored::Plain(_) => self.dtype.or(entry.stored.dtype())?,
                Stored::Blocks(_) => self.dtype_of_blocks(entry),
            };
            let matrix = entry.shape.iter().filter(|size| **size > 1).count() > 1;
            matrix.then(|| entry.shape.iter().product::<usize>() / columns * dtype.row_bytes(columns))
        };
        let sizes = || self.entries.values().filter_map(held);
        sizes().sum::<usize>() - sizes().max().unwrap_or(0)
    }

    /// Bytes that the tensors read so far take in memory: matrices in their dtype, the rest in f32.
    pub fn bytes_read(&self) -> usize {
        self.entries.values().map(|entry| entry.held.load(Relaxed)).sum()
    }

    /// Elements of the tensors that were read so far; a model's parameters once it is built.
    pub fn parameters_read(&self) -> u64 {
        let read = |entry: &&Entry| entry.held.load(Relaxed) > 0;
        self.entries.values().filter(read).map(|entry| entry.shape.iter().product::<usize>() as u64).sum()
    }
}
