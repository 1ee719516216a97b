//! Selective scan of Mamba-1 (Gu & Dao 2023): per channel c, h_t[n] = e^{Δ_t[c] A[c, n]} h_{t−1}[n] + Δ_t[c] B_t[n] x_t[c],
//! y_t[c] = Σ_n C_t[n] h_t[n] + D[c] x_t[c].

use crate::cpu::{self, selective_scan::Wanted};

/// Inputs of the scan; T tokens, E channels, N state elements a channel.
#[derive(Clone, Copy, Debug)]
pub struct SelectiveScan<'a> {
    /// Δ [T, E], ≥ 0.
    pub delta: &'a [f32],
    /// A [E, N], negative.
    pub a: &'a [f32],
    /// B [T, N].
    pub b: &'a [f32],
    /// C [T, N].
    pub c: &'a [f32],
    /// x [T, E], after the convolution and its activation.
    pub x: &'a [f32],
    /// D [E].
    pub d: &'a [f32],
}

impl SelectiveScan<'_> {
    pub(crate) fn channels(&self) -> usize {
        self.d.len()
    }

    pub(crate) fn state_dim(&self) -> usize {
        self.a.len() / self.d.len()
    }

    fn check(&self, state: usize) {
        let channels = self.channels();
        assert!(
            channels > 0 && self.a.len().is_multiple_of(channels),
            "selective scan: A and D are not [E, N] and [E]"
        );
        assert!(
            self.x.len().is_multiple_of(channels),
            "selective scan: x of {} elements is not [T, {channels}]",
            self.x.len()
        );
        assert_eq!(self.delta.len(), self.x.len(), "selective scan: delta is not [T, E]");
        let tokens = self.x.len() / channels;
        assert_eq!(self.b.len(), tokens * self.state_dim(), "selective scan: B is not [T, N]");
        assert_eq!(self.c.len(), self.b.len(), "selective scan: C is not [T, N]");
        assert_eq!(state, self.a.len(), "selective scan: state is not [E, N]");
    }

    /// Runs T tokens from `state` [E, N], which becomes that of the last; `y` [T, E] includes D x. `state_norm` [T, E] receives
    /// ‖h_t[c, :]‖₂ and changes no other bit.
    pub fn forward(&self, state: &mut [f32], y: &mut [f32], state_norm: Option<&mut [f32]>) {
        self.check(state.len());
        assert_eq!(y.len(), self.x.len(), "selective scan: y is not [T, E]");
        if let Some(norm) = &state_norm {
            assert_eq!(norm.len(), self.x.len(), "selective scan: state_norm is not [T, E]");
        }
        cpu::selective_scan::forward(self, state, Wanted { y: Some(y), state_norm, gate: None });
    }

    /// [`SelectiveScan::forward`] and then y ⊙ silu(`gate`), `gate` [T, E], with the same bits, while y is in the cache.
    pub fn forward_gated(&self, gate: &[f32], state: &mut [f32], y: &mut [f32]) {
        self.check(state.len());
        assert_eq!(y.len(), self.x.len(), "selective scan: y is not [T, E]");
        assert_eq!(gate.len(), self.x.len(), "selective scan: the gate is not [T, E]");
        cpu::selective_scan::forward(self, state, Wanted { y: Some(y), state_norm: None, gate: Some(gate) });
    }

    /// The state alone, with the bits of [`SelectiveScan::forward`].
    pub fn fold(&self, state: &mut [f32]) {
        self.check(state.len());
        cpu::selective_scan::forward(self, state, Wanted::default());
    }

    /// The state with those bits, and `norms` [T, E], ‖h_t[c, :]‖₂.
    pub fn fold_norms(&self, state: &mut [f32], norms: &mut [f32]) {
        self.check(state.len());
        assert_eq!(norms.len(), self.x.len(), "selective scan: norms are not [T, E]");
        cpu::selective_scan::forward(self, state, Wanted { state_norm: Some(norms), ..Wanted::default() });
    }

    /// [`SelectiveScan::forward`] in f64.
    pub fn reference(&self, state: &mut [f64], y: &mut [f64], state_norm: &mut [f64]) {
        let (e, n) = (self.channels(), self.state_dim());
        for i in 0..self.x.len() {
            let (t, c) = (i / e, i % e);
            let (delta, x) = (f64::from(self.delta[i]), f64::from(self.x[i]));
            let h = &mut state[c * n..][..n];
            let mut sum = f64::from(self.d[c]) * x;
            for (j, h) in h.iter_mut().enumerate() {
                *h = (delta * f64::from(self.a[c * n + j])).exp() * *h + delta * f64::from(self.b[t * n + j]) * x;
                sum += f64::from(self.c[t * n + j]) * *h;
            }
            y[i] = sum;
            state_norm[i] = h.iter().map(|h| h * h).sum::<f64>().sqrt();
        }
    }
}
