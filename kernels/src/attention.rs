//! Softmax attention over pages of keys and values.

use std::ops::Range;

use crate::cpu;

/// Positions of a page of keys or values.
pub const PAGE: usize = 64;

/// How a page of keys or values lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// [PAGE, H_kv, dim], as tokens are recorded.
    ByToken,
    /// [H_kv, PAGE, dim]: what one head reads is one stream, as a token that looks back over a long text wants it.
    ByHead,
}

impl Layout {
    /// Where the vectors of `kv_head` begin in a page, and how far they lie apart.
    #[inline(always)]
    pub(crate) fn place(self, kv_heads: usize, kv_head: usize, dim: usize) -> (usize, usize) {
        match self {
            Self::ByToken => (kv_head * dim, kv_heads * dim),
            Self::ByHead => (kv_head * PAGE * dim, dim),
        }
    }

    /// Where the vector of `kv_head` at `position` begins in its page.
    #[inline(always)]
    pub fn at(self, position: usize, kv_heads: usize, kv_head: usize, dim: usize) -> usize {
        let (start, stride) = self.place(kv_heads, kv_head, dim);
        start + position % PAGE * stride
    }
}

/// Softmax attention (Vaswani et al. 2017) of H heads over H_kv: y_t = Σ_s p_{ts} v_s, p_t = softmax_s(scale · q_t·k_s),
/// s ≤ t; with a sliding window of W (Beltagy et al. 2020) t − W < s ≤ t, or s below the number of sinks (Xiao et al. 2023), positions
/// that stay in sight. Head h reads the keys and values of ⌊h·H_kv/H⌋.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// H, a multiple of H_kv.
    pub heads: usize,
    /// H_kv.
    pub kv_heads: usize,
    /// Of queries and keys.
    pub head_dim: usize,
    /// Of values and outputs.
    pub value_dim: usize,
    pub scale: f32,
    /// W, the query's own position counted; all where absent.
    pub window: Option<usize>,
    /// Positions from 0 that no window hides.
    pub sinks: usize,
    /// Pages of keys, [PAGE, H_kv, head_dim] or as `layout` says; the last may be cut after its last position. Those wholly behind the
    /// sinks and before the window of every query are not touched and may be empty.
    pub keys: &'a [&'a [f32]],
    /// The same with value_dim.
    pub values: &'a [&'a [f32]],
    /// Of keys and values.
    pub layout: Layout,
}

impl Attention<'_> {
    /// For queries at `positions`.
    fn check(&self, positions: Range<usize>) {
        let Attention { heads, kv_heads, head_dim, value_dim, .. } = *self;
        assert!(kv_heads > 0 && heads % kv_heads == 0, "attention: {heads} heads over {kv_heads} of keys and values");
        assert!(head_dim > 0 && value_dim > 0, "attention: heads of no dimensions");
        assert!(self.window != Some(0), "attention: a window of no positions");
        let (end, first) = (positions.end, self.first_seen(positions.start));
        let needed = |pages: &[&[f32]], width: usize| {
            (0..self.sunk(first).div_ceil(PAGE)).chain(first / PAGE..end.div_ceil(PAGE)).all(|page| {
                let last = PAGE.min(end - page * PAGE) - 1;
                let held = self.layout.at(last, kv_heads, kv_heads - 1, width) + width;
                pages.get(page).is_some_and(|p| p.len() >= held)
            })
        };
        let held = needed(self.keys, head_dim) && needed(self.values, value_dim);
        assert!(held, "attention: pages hold fewer than {end} positions");
    }

    /// The first position in the window of the query at `position`.
    #[inline(always)]
    pub(crate) fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// How many sinks lie before a window that begins at `first`.
    #[inline(always)]
    pub(crate) fn sunk(&self, first: usize) -> usize {
        self.sinks.min(first)
    }

    /// What the query at `position` sees: the sinks before its window, and its window.
    #[inline(always)]
    pub(crate) fn seen(&self, position: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let first = self.first_seen(position);
        (0..self.sunk(first)).chain(first..=position)
    }

    /// The head whose keys and values `head` reads.
    #[inline(always)]
    pub(crate) fn kv_head(&self, head: usize) -> usize {
        head * self.kv_heads / self.heads
    }

    /// Key of `kv_head` at `position`.
    #[inline(always)]
    pub(crate) fn key(&self, position: usize, kv_head: usize) -> &[f32] {
        let at = self.layout.at(position, self.kv_heads, kv_head, self.head_dim);
        &self.keys[position / PAGE][at..][..self.head_dim]
    }

    /// Value of `kv_head` at `position`.
    #[inline(always)]
    pub(crate) fn value(&self, position: usize, kv_head: usize) -> &[f32] {
        let at = self.layout.at(position, self.kv_heads, kv_head, self.value_dim);
        &self.values[position / PAGE][at..][..self.value_dim]
    }

    /// `q` [T, H, head_dim], `y` [T, H, value_dim], the first query at `first_position`; each sees its own position and those
    /// before it, W in all, and the sinks. `entropy_bits` [T, H] receives −Σ p log₂ p and changes nothing else.
    pub fn forward(&self, q: &[f32], first_position: usize, y: &mut [f32], entropy_bits: Option<&mut [f32]>) {
        if q.is_empty() {
            return;
        }
        let width = self.heads * self.head_dim;
        assert!(
            width > 0 && q.len().is_multiple_of(width),
            "attention: q of {} elements is not [T, H, head_dim]",
            q.len()
        );
        let tokens = q.len() / width;
        assert_eq!(y.len(), tokens * self.heads * self.value_dim, "attention: y is not [T, H, value_dim]");
        self.check(first_position..first_position + tokens);
        if let Some(entropy) = &entropy_bits {
            assert_eq!(entropy.len(), tokens * self.heads, "attention: entropy is not [T, H]");
        }
        cpu::attention::forward(self, q, first_position, y, entropy_bits);
    }

    /// Weights of one query: `q_head` [head_dim] of `head` at `position`, `out` [position + 1], 0 where it does not see.
    pub fn row(&self, q_head: &[f32], head: usize, position: usize, out: &mut [f32]) {
        assert_eq!(q_head.len(), self.head_dim, "attention row: q is not [head_dim]");
        assert!(head < self.heads, "attention row: head {head} of {}", self.heads);
        assert_eq!(out.len(), position + 1, "attention row: out is not [position + 1]");
        self.check(position..position + 1);
        cpu::attention::row(self, q_head, head, out);
    }

    /// [`Attention::row`] in f64.
    pub fn reference_row(&self, q_head: &[f32], head: usize, position: usize) -> Vec<f64> {
        let kv_head = self.kv_head(head);
        let product = |k: &[f32]| q_head.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
        let logits: Vec<f64> =
            self.seen(position).map(|s| f64::from(self.scale) * product(self.key(s, kv_head))).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        let mut row = vec![0.0; position + 1];
        self.seen(position).zip(&logits).for_each(|(s, l)| row[s] = (l - max).exp() / sum);
        row
    }

    /// [`Attention::forward`] in f64: y and the entropy in bits.
    pub fn reference(&self, q: &[f32], first_position: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut y, mut entropy) = (Vec::new(), Vec::new());
        for (i, q) in q.chunks_exact(self.head_dim).enumerate() {
            let (t, head) = (i / self.heads, i % self.heads);
            let row = self.reference_row(q, head, first_position + t);
            let (kv_head, seen) = (self.kv_head(head), self.seen(first_position + t));
            let weighted = |d: usize| seen.clone().map(|s| row[s] * f64::from(self.value(s, kv_head)[d])).sum::<f64>();
            y.extend((0..self.value_dim).map(weighted));
            entropy.push(-row.iter().filter(|&&p| p > 0.0).map(|p| p * p.log2()).sum::<f64>());
        }
        (y, entropy)
    }
}
