//! State-space dual of Mamba-2 (Dao & Gu 2024): per head h with group g = ⌊h·G/H⌋, S_t = e^{Δ_t A} S_{t−1} + Δ_t x_t B_tᵀ ∈ ℝ^{P×N},
//! y_t = S_t C_t + D x_t.

use crate::cpu;

/// Inputs of the op; T tokens, H heads of P channels, states of N, G groups.
#[derive(Clone, Copy, Debug)]
pub struct Ssd<'a> {
    /// H, a multiple of G.
    pub heads: usize,
    /// P.
    pub head_dim: usize,
    /// N.
    pub state_dim: usize,
    /// G.
    pub groups: usize,
    /// Δ [T, H], ≥ 0.
    pub delta: &'a [f32],
    /// A [H], negative.
    pub a: &'a [f32],
    /// B [T, G, N].
    pub b: &'a [f32],
    /// C [T, G, N].
    pub c: &'a [f32],
    /// x [T, H, P], after the convolution and its activation.
    pub x: &'a [f32],
    /// D [H] or [H·P].
    pub d: &'a [f32],
}

impl Ssd<'_> {
    pub(crate) fn tokens(&self) -> usize {
        self.delta.len() / self.heads
    }

    /// D of channel `p` of `head`.
    pub(crate) fn skip(&self, head: usize, p: usize) -> f32 {
        if self.d.len() == self.heads { self.d[head] } else { self.d[head * self.head_dim + p] }
    }

    /// Group of a head: consecutive heads share one.
    pub(crate) fn group(&self, head: usize) -> usize {
        head * self.groups / self.heads
    }

    fn check(&self, state: usize) {
        let Ssd { heads, head_dim, state_dim, groups, .. } = *self;
        assert!(heads > 0 && groups > 0 && heads % groups == 0, "ssd: {heads} heads in {groups} groups");
        assert!(
            self.delta.len().is_multiple_of(heads),
            "ssd: delta of {} elements is not [T, {heads}]",
            self.delta.len()
        );
        let tokens = self.tokens();
        assert_eq!(self.a.len(), heads, "ssd: A is not [H]");
        assert_eq!(self.b.len(), tokens * groups * state_dim, "ssd: B is not [T, G, N]");
        assert_eq!(self.c.len(), self.b.len(), "ssd: C is not [T, G, N]");
        assert_eq!(self.x.len(), tokens * heads * head_dim, "ssd: x is not [T, H, P]");
        assert!(self.d.len() == heads || self.d.len() == heads * head_dim, "ssd: D is neither [H] nor [H, P]");
        assert_eq!(state, heads * head_dim * state_dim, "ssd: state is not [H, P, N]");
    }

    /// Runs T tokens from `state` [H, P, N], which becomes that of the last; `y` [T, H, P] includes D x. One token takes the
    /// recurrence; more go in chunks of 64, whose decays are exponentials of differences ≤ 0 alone.
    pub fn forward(&self, state: &mut [f32], y: &mut [f32]) {
        self.check(state.len());
        assert_eq!(y.len(), self.x.len(), "ssd: y is not [T, H, P]");
        match self.tokens() {
            0 => {}
            1 => cpu::ssd::step(self, state, y),
            _ => cpu::ssd::chunked(self, state, y),
        }
    }

    /// Frobenius norms of the states after each token, from `initial` [H, P, N] into `out` [T, H]: a recurrence on a copy of the
    /// state, so that asking for norms changes no bit of y.
    pub fn state_norms(&self, initial: &[f32], out: &mut [f32]) {
        self.check(initial.len());
        assert_eq!(out.len(), self.delta.len(), "ssd: norms are not [T, H]");
        cpu::ssd::fold(self, &mut initial.to_vec(), Some(out));
    }

    /// The state alone, by the recurrence.
    pub fn fold(&self, state: &mut [f32]) {
        self.check(state.len());
        cpu::ssd::fold(self, state, None);
    }

    /// [`Ssd::forward`] and [`Ssd::state_norms`] in f64, by the recurrence.
    pub fn reference(&self, state: &mut [f64], y: &mut [f64], norms: &mut [f64]) {
        let Ssd { heads, head_dim, state_dim, groups, .. } = *self;
        for i in 0..self.delta.len() {
            let (t, head) = (i / heads, i % heads);
            let delta = f64::from(self.delta[i]);
            let decay = (delta * f64::from(self.a[head])).exp();
            let at = (t * groups + self.group(head)) * state_dim;
            let (b, c) = (&self.b[at..][..state_dim], &self.c[at..][..state_dim]);
            let state = &mut state[head * head_dim * state_dim..][..head_dim * state_dim];
            for (p, s) in state.chunks_exact_mut(state_dim).enumerate() {
                let x = f64::from(self.x[i * head_dim + p]);
                let mut sum = f64::from(self.skip(head, p)) * x;
                for ((s, &b), &c) in s.iter_mut().zip(b).zip(c) {
                    *s = decay * *s + delta * x * f64::from(b);
                    sum += *s * f64::from(c);
                }
                y[i * head_dim + p] = sum;
            }
            norms[i] = state.iter().map(|s| s * s).sum::<f64>().sqrt();
        }
    }
}
