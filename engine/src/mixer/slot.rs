//! The memory of one mixer for one sequence. A clone is a value: changing either leaves the other as it was.

use std::ops::Range;
use std::sync::Arc;

use statescope_kernels::attention::{Layout, PAGE};
use statescope_kernels::room::Room;

/// Preallocated memory of one mixer: recurrent state, convolution history, KV cache; what a mixer does not have is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateSlot {
    /// `[H, P, N]`.
    pub state: Vec<f32>,
    /// Last inputs of the short convolution, `[K−1, C]`, oldest first; of a token shift the last one.
    pub conv: Vec<f32>,
    /// What else a mixer carries along: the sums of a normaliser, a stabiliser.
    pub carried: Vec<f32>,
    /// Last input of the feed-forward that follows, `[d]`, where it looks back (RWKV).
    pub shift: Vec<f32>,
    /// Tokens read, where a mixer without a cache has to know.
    pub position: usize,
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
        (self.state.len() + self.conv.len() + self.carried.len() + self.shift.len()) * size_of::<f32>()
    }
}

/// Keys and values of all tokens so far, in pages of [`PAGE`] positions, each `[kv_head, position, dim]`. A clone shares the pages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KvCache {
    keys: Vec<Arc<Room>>,
    values: Vec<Arc<Room>>,
    kv_heads: usize,
    /// Of keys and of values.
    dims: [usize; 2],
    length: usize,
    /// Tokens given up, a multiple of [`PAGE`].
    forgotten: usize,
}

impl KvCache {
    /// How its pages lie in memory.
    pub const LAYOUT: Layout = Layout::ByHead;

    pub fn new(kv_heads: usize, key_dim: usize, value_dim: usize) -> Self {
        Self { kv_heads, dims: [key_dim, value_dim], ..Self::default() }
    }

    /// Tokens appended so far.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn bytes(&self) -> usize {
        (self.length - self.forgotten) * self.kv_heads * self.dims.iter().sum::<usize>() * size_of::<f32>()
    }

    /// Gives up the pages that hold only `positions`, of which the first is always the same; they stay in the list as empty ones.
    pub fn forget(&mut self, positions: Range<usize>) {
        let first = positions.start.div_ceil(PAGE) + self.forgotten / PAGE;
        for page in first..positions.end.min(self.length) / PAGE {
            self.keys[page] = Arc::default();
            self.values[page] = Arc::default();
            self.forgotten += PAGE;
        }
    }

    /// Appends keys and values `[T, kv_head, dim]`.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let [of_keys, of_values] = self.dims.map(|dim| dim * self.kv_heads);
        for (key, value) in keys.chunks_exact(of_keys).zip(values.chunks_exact(of_values)) {
            let page = self.length / PAGE;
            if page == self.keys.len() {
                self.keys.push(Arc::new(Room::zeros(PAGE * of_keys)));
                self.values.push(Arc::new(Room::zeros(PAGE * of_values)));
            }
            let pages = [&mut self.keys[page], &mut self.values[page]];
            for ((page, token), dim) in pages.into_iter().zip([key, value]).zip(self.dims) {
                // A page shared with a snapshot is copied before it is written.
                let page = Arc::make_mut(page);
                for (kv_head, vector) in token.chunks_exact(dim).enumerate() {
                    page[Self::LAYOUT.at(self.length, self.kv_heads, kv_head, dim)..][..dim].copy_from_slice(vector);
                }
            }
            self.length += 1;
        }
    }

    pub fn key_pages(&self) -> Vec<&[f32]> {
        self.keys.iter().map(|p| &***p).collect()
    }

    pub fn value_pages(&self) -> Vec<&[f32]> {
        self.values.iter().map(|p| &***p).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_the_cache_is_a_value() {
        let mut slot = StateSlot { kv: KvCache::new(1, 2, 2), ..StateSlot::default() };
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

    #[test]
    fn what_left_the_window_is_given_up_by_the_page() {
        let mut cache = KvCache::new(1, 1, 1);
        cache.append(&[1.0; 3 * PAGE], &[1.0; 3 * PAGE]);
        cache.forget(0..2 * PAGE - 1);
        assert_eq!(cache.len(), 3 * PAGE);
        assert_eq!(cache.bytes(), 2 * 2 * PAGE * size_of::<f32>());
        assert!(cache.key_pages()[0].is_empty() && !cache.key_pages()[1].is_empty());
    }

    #[test]
    fn sinks_are_kept() {
        let mut cache = KvCache::new(1, 1, 2);
        cache.append(&[1.0; 5 * PAGE], &[1.0; 10 * PAGE]);
        for end in [PAGE + 3, 3 * PAGE, 4 * PAGE + 1] {
            cache.forget(PAGE + 1..end);
        }
        assert_eq!(cache.bytes(), 3 * 3 * PAGE * size_of::<f32>());
        let held: Vec<bool> = cache.value_pages().iter().map(|page| !page.is_empty()).collect();
        assert_eq!(held, [true, true, false, false, true]);
    }
}
