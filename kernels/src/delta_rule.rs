//! Gated delta rule (Yang et al. 2024, "Gated DeltaNet"): per value head, with α_t = e^{g_t},
//! S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ ∈ ℝ^{Dk×Dv}, y_t = S_tᵀ q_t.
//!
//! In this order: the state decays, predicts v_t from k_t, is corrected by β_t times the error, is read. With g = 0 it is
//! DeltaNet (Schlag et al. 2021).

use crate::cpu;

/// Inputs of the op; T tokens, H_k heads of queries and keys, H heads of values.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRule<'a> {
    /// H_k.
    pub key_heads: usize,
    /// H, a multiple of H_k: value head h reads the queries and keys of ⌊h·H_k/H⌋.
    pub heads: usize,
    /// Dk.
    pub key_dim: usize,
    /// Dv.
    pub head_dim: usize,
    /// q [T, H_k, Dk], normalised and scaled. The state does not depend on it.
    pub q: &'a [f32],
    /// k [T, H_k, Dk], normalised: ‖k‖ ≤ 1.
    pub k: &'a [f32],
    /// v [T, H, Dv].
    pub v: &'a [f32],
    /// g [T, H], ≤ 0.
    pub log_decay: &'a [f32],
    /// β [T, H].
    pub beta: &'a [f32],
}

impl DeltaRule<'_> {
    pub(crate) fn tokens(&self) -> usize {
        self.beta.len() / self.heads
    }

    /// The head whose queries and keys value head `head` reads.
    pub(crate) fn key_head(&self, head: usize) -> usize {
        head * self.key_heads / self.heads
    }

    fn check(&self, state: usize) {
        let DeltaRule { key_heads, heads, key_dim, head_dim, .. } = *self;
        assert!(
            key_heads > 0 && heads > 0 && heads.is_multiple_of(key_heads),
            "delta rule: {heads} heads over {key_heads} of keys"
        );
        assert!(key_dim > 0 && head_dim > 0, "delta rule: heads of no dimensions");
        assert!(
            self.beta.len().is_multiple_of(heads),
            "delta rule: beta of {} elements is not [T, {heads}]",
            self.beta.len()
        );
        assert_eq!(self.log_decay.len(), self.beta.len(), "delta rule: log-decay is not [T, H]");
        assert_eq!(self.k.len(), self.tokens() * key_heads * key_dim, "delta rule: k is not [T, H_k, Dk]");
        assert_eq!(self.v.len(), self.tokens() * heads * head_dim, "delta rule: v is not [T, H, Dv]");
        assert_eq!(state, heads * head_dim * key_dim, "delta rule: state is not [H, Dv, Dk]");
    }

    /// Runs T tokens from `state` [H, Dv, Dk] — row p of a head is S[:, p] — which becomes that of the last; `y` [T, H,
    /// Dv]. Always the recurrence: the bits do not depend on how the text is cut.
    pub fn forward(&self, state: &mut [f32], y: &mut [f32]) {
        self.check(state.len());
        assert_eq!(self.q.len(), self.k.len(), "delta rule: q is not [T, H_k, Dk]");
        assert_eq!(y.len(), self.v.len(), "delta rule: y is not [T, H, Dv]");
        cpu::delta_rule::run(self, state, Some(y));
    }

    /// The state alone, with the bits of [`DeltaRule::forward`]; q is not read and may be empty.
    pub fn fold(&self, state: &mut [f32]) {
        self.check(state.len());
        cpu::delta_rule::run(self, state, None);
    }

    /// [`DeltaRule::forward`] in f64.
    pub fn reference(&self, state: &mut [f64], y: &mut [f64]) {
        let DeltaRule { key_heads, heads, key_dim, head_dim, .. } = *self;
        for i in 0..self.beta.len() {
            let (t, head) = (i / heads, i % heads);
            let at = (t * key_heads + self.key_head(head)) * key_dim;
            let (q, k) = (&self.q[at..][..key_dim], &self.k[at..][..key_dim]);
            let (decay, beta) = (f64::from(self.log_decay[i]).exp(), f64::from(self.beta[i]));
            let state = &mut state[head * head_dim * key_dim..][..head_dim * key_dim];
            for (p, s) in state.chunks_exact_mut(key_dim).enumerate() {
                s.iter_mut().for_each(|s| *s *= decay);
                let dot = |s: &[f64], x: &[f32]| s.iter().zip(x).map(|(s, &x)| s * f64::from(x)).sum::<f64>();
                let error = beta * (f64::from(self.v[i * head_dim + p]) - dot(s, k));
                s.iter_mut().zip(k).for_each(|(s, &k)| *s += error * f64::from(k));
                y[i * head_dim + p] = dot(s, q);
            }
        }
    }
}
