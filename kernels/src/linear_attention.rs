//! Linear attention with a fading state (Katharopoulos et al. 2020; Sun et al. 2023; Yang et al. 2024; Peng et al. 2024): per head,
//! S_t = Λ_t S_{t−1} + w_t k_t v_tᵀ ∈ ℝ^{Dk×Dv}, y_t = S_tᵀ q_t.
//!
//! Λ is nothing, one factor, or one for each key dimension. With a correction (RWKV-7, Peng et al. 2025) the update also takes out
//! what stands under one direction: S_t = Λ_t S_{t−1} − b_t (κ_tᵀ S_{t−1}) + w_t k_t v_tᵀ. With a bonus (RWKV-6) the state is
//! read before it is written: y_t = S_{t−1}ᵀ q_t + c_t v_t.

use crate::cpu;

/// Logarithms ≤ 0 of the factors by which a state is kept.
#[derive(Clone, Copy, Debug)]
pub enum KeyDecay<'a> {
    /// Nothing fades.
    None,
    /// [H], the same at every token: RetNet.
    Fixed(&'a [f32]),
    /// [T, H]: mLSTM.
    Scalar(&'a [f32]),
    /// [T, H, Dk]: GLA, HGRN2, RWKV-6 and RWKV-7.
    Key(&'a [f32]),
}

/// What is taken out of the state beside the decay.
#[derive(Clone, Copy, Debug)]
pub struct Correction<'a> {
    /// κ [T, H, Dk]: the direction under which the old state is looked up.
    pub erase: &'a [f32],
    /// b [T, H, Dk]: where that is subtracted.
    pub replace: &'a [f32],
}

/// Inputs of the op; T tokens, H heads.
#[derive(Clone, Copy, Debug)]
pub struct LinearAttention<'a> {
    /// H.
    pub heads: usize,
    /// Dk.
    pub key_dim: usize,
    /// Dv.
    pub head_dim: usize,
    /// q [T, H, Dk], scaled. The state does not depend on it.
    pub q: &'a [f32],
    /// k [T, H, Dk].
    pub k: &'a [f32],
    /// v [T, H, Dv].
    pub v: &'a [f32],
    pub decay: KeyDecay<'a>,
    /// w [T, H]; 1 where absent.
    pub weight: Option<&'a [f32]>,
    pub correction: Option<Correction<'a>>,
    /// c [T, H]: the share of its own value that a token reads where it reads before it writes.
    pub bonus: Option<&'a [f32]>,
}

impl LinearAttention<'_> {
    pub(crate) fn tokens(&self) -> usize {
        self.v.len() / (self.heads * self.head_dim)
    }

    fn check(&self, state: usize) {
        let LinearAttention { heads, key_dim, head_dim, .. } = *self;
        assert!(heads > 0 && key_dim > 0 && head_dim > 0, "linear attention: heads of no dimensions");
        assert!(self.v.len().is_multiple_of(heads * head_dim), "linear attention: v is not [T, H, Dv]");
        let (rows, keys) = (self.tokens() * heads, self.tokens() * heads * key_dim);
        assert_eq!(self.k.len(), keys, "linear attention: k is not [T, H, Dk]");
        match self.decay {
            KeyDecay::None => {}
            KeyDecay::Fixed(log) => assert_eq!(log.len(), heads, "linear attention: decay is not [H]"),
            KeyDecay::Scalar(log) => assert_eq!(log.len(), rows, "linear attention: decay is not [T, H]"),
            KeyDecay::Key(log) => assert_eq!(log.len(), keys, "linear attention: decay is not [T, H, Dk]"),
        }
        for per_head in [self.weight, self.bonus].into_iter().flatten() {
            assert_eq!(per_head.len(), rows, "linear attention: weight or bonus is not [T, H]");
        }
        if let Some(Correction { erase, replace }) = self.correction {
            assert!(erase.len() == keys && replace.len() == keys, "linear attention: correction is not [T, H, Dk]");
        }
        assert_eq!(state, heads * head_dim * key_dim, "linear attention: state is not [H, Dv, Dk]");
    }

    /// Runs T tokens from `state` [H, Dv, Dk] — row p of a head is S[:, p] — which becomes that of the last; `y` [T, H, Dv].
    /// Always the recurrence: the bits do not depend on how the text is cut.
    pub fn forward(&self, state: &mut [f32], y: &mut [f32]) {
        self.check(state.len());
        assert_eq!(self.q.len(), self.k.len(), "linear attention: q is not [T, H, Dk]");
        assert_eq!(y.len(), self.v.len(), "linear attention: y is not [T, H, Dv]");
        cpu::linear_attention::run(self, state, Some(y));
    }

    /// The state alone, with the bits of [`LinearAttention::forward`]; q is not read and may be empty.
    pub fn fold(&self, state: &mut [f32]) {
        self.check(state.len());
        cpu::linear_attention::run(self, state, None);
    }

    /// [`LinearAttention::forward`] in f64.
    pub fn reference(&self, state: &mut [f64], y: &mut [f64]) {
        let LinearAttention { heads, key_dim, head_dim, .. } = *self;
        let dot = |s: &[f64], x: &[f32]| s.iter().zip(x).map(|(s, &x)| s * f64::from(x)).sum::<f64>();
        for i in 0..self.tokens() * heads {
            let keys = i * key_dim..(i + 1) * key_dim;
            let (q, k) = (&self.q[keys.clone()], &self.k[keys.clone()]);
            let weight = self.weight.map_or(1.0, |w| f64::from(w[i]));
            let log = |n: usize| match self.decay {
                KeyDecay::None => 0.0,
                KeyDecay::Fixed(log) => f64::from(log[i % heads]),
                KeyDecay::Scalar(log) => f64::from(log[i]),
                KeyDecay::Key(log) => f64::from(log[i * key_dim + n]),
            };
            let state = &mut state[i % heads * head_dim * key_dim..][..head_dim * key_dim];
            for (p, s) in state.chunks_exact_mut(key_dim).enumerate() {
                let v = f64::from(self.v[i * head_dim + p]);
                let found = self.correction.map_or(0.0, |c| dot(s, &c.erase[keys.clone()]));
                if let Some(bonus) = self.bonus {
                    y[i * head_dim + p] = dot(s, q) + f64::from(bonus[i]) * v;
                }
                for (n, s) in s.iter_mut().enumerate() {
                    let replace = self.correction.map_or(0.0, |c| f64::from(c.replace[i * key_dim + n]));
                    *s = log(n).exp() * *s + weight * f64::from(k[n]) * v - found * replace;
                }
                if self.bonus.is_none() {
                    y[i * head_dim + p] = dot(s, q);
                }
            }
        }
    }
}
