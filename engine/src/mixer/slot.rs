//! The memory of one mixer for one sequence. A clone is a value: changing either leaves the other as it was.

use std::sync::Arc;

use statescope_kernels::attention::PAGE;

/// Preallocated memory of one mixer: recurrent state, convolution history, KV cache; what a mixer does not have is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateSlot {
    /// `[H, P, N]`.
    pub state: Vec<f32>,
    /// Last inputs of the short convolution, `[K−1, C]`, oldest first.
    pub conv: Vec<f32>,
    pub kv: KvCache,
}

impl StateSlot {
    /// A copy that later steps do not change. KV pages are shared until one side writes.
    pub fn snapshot(&self) -> Self {
        self.clone()
    }

    /// Puts a snapshot back.
    pub fn restore(&mut self, snapshot: &Self) {
        self.clone_from(snapshot);
    }

    /// Bytes that a snapshot takes for itself: shared pages count once, with the live slot.
    pub fn owned_bytes(&self) -> usize {
        (self.state.len() + self.conv.len()) * size_of::<f32>()
    }
}

/// Keys and values of all tokens so far, in pages of [`PAGE`] positions, each `[position, kv_head, head_dim]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KvCache {
    keys: Vec<Arc<Vec<f32>>>,
    values: Vec<Arc<Vec<f32>>>,
    /// kv_heads · head_dim.
    width: usize,
    length: usize,
}

impl KvCache {
    pub fn new(width: usize) -> Self {
        Self { width, ..Self::default() }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn bytes(&self) -> usize {
        2 * self.length * self.width * size_of::<f32>()
    }

    /// Appends keys and values `[T, width]`.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        for (key, value) in keys.chunks_exact(self.width).zip(values.chunks_exact(self.width)) {
            let (page, slot) = (self.length / PAGE, self.length % PAGE);
            if page == self.keys.len() {
                self.keys.push(Arc::new(vec![0.0; PAGE * self.width]));
                self.values.push(Arc::new(vec![0.0; PAGE * self.width]));
            }
            let at = slot * self.width..(slot + 1) * self.width;
            // A page shared with a snapshot is copied before it is written.
            Arc::make_mut(&mut self.keys[page])[at.clone()].copy_from_slice(key);
            Arc::make_mut(&mut self.values[page])[at].copy_from_slice(value);
            self.length += 1;
        }
    }

    pub fn key_pages(&self) -> Vec<&[f32]> {
        self.keys.iter().map(|p| p.as_slice()).collect()
    }

    pub fn value_pages(&self) -> Vec<&[f32]> {
        self.values.iter().map(|p| p.as_slice()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_the_cache_is_a_value() {
        let mut slot = StateSlot { kv: KvCache::new(2), ..StateSlot::default() };
        slot.kv.append(&[1.0, 2.0], &[3.0, 4.0]);
        let snapshot = slot.snapshot();
        slot.kv.append(&[5.0, 6.0], &[7.0, 8.0]);
        assert_eq!(snapshot.kv.len(), 1);
        assert_eq!(snapshot.kv.key_pages()[0][2..4], [0.0, 0.0]);
        let mut branch = slot.clone();
        branch.restore(&snapshot);
        branch.kv.append(&[9.0, 9.0], &[9.0, 9.0]);
        assert_eq!(slot.kv.key_pages()[0][2..4], [5.0, 6.0]);
    }
}
