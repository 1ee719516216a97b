//! Mamba-3 with one input and one output (Lahoti et al. 2026, arXiv 2603.15569), in the layout of flash-linear-attention.
//!
//! ```text
//! Δ, α, λ, x, z, and B and C turned as `trapezoid` makes them
//! S_t = α_t (S_{t−1} + (1 − λ_t) Δ_t x_{t−1} B_{t−1}ᵀ) + λ_t Δ_t x_t B_tᵀ          y_t = S_t C_t + D x_t
//! out = W_out (y ⊙ silu(z))          or W_out (w ⊙ RMS_head(y) ⊙ silu(z))
//! ```
//!
//! The trapezoid rule: a token is written in two parts, the share λ at once, the rest with the token after it, at that token's step. So the matrix is
//! M_ij = C_iᵀB_j Π_{s=j+1..i} α_s (λ_j Δ_j + (1 − λ_{j+1}) Δ_{j+1}), and C_iᵀB_i λ_i Δ_i + D on the diagonal.

use std::ops::Range;

use statescope_kernels::activation::silu_mul;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent, Strided};
use statescope_kernels::norm::rms_norm;
use statescope_kernels::reduce::l2_norm;

use super::trapezoid::{Shares, Trapezoid};
use super::{Mixer, StateSlot};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::Mamba3Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one Mamba-3.
pub struct Mamba3 {
    core: Trapezoid,
    /// Of the norm inside each head before the gate, `[E]`.
    norm: Option<Vec<f32>>,
    /// `[d, E]`.
    out_proj: Matrix,
}

impl Mamba3 {
    pub fn load(spec: &Mamba3Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let inner = spec.heads * spec.head_dim;
        Ok(Self {
            core: Trapezoid::load(spec, hidden_size, scope)?,
            norm: scope.vector_if(spec.output_norm, "norm.weight", inner)?,
            out_proj: scope.matrix("out_proj.weight", hidden_size, inner)?,
        })
    }
}

impl Mixer for Mamba3 {
    fn geometry(&self) -> Geometry {
        let Mamba3Spec { heads, head_dim, state_dim, .. } = self.core.spec;
        Geometry {
            kind: MixerKind::Mamba3,
            heads,
            head_dim,
            state_dim,
            groups: heads,
            rank: 1,
            decay_dim: 1,
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: self.core.state_bytes(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        self.core.slot()
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let Mamba3Spec { head_dim, norm_eps, .. } = self.core.spec;
        let (mut tokens, mut y) = self.core.forward(xs, slot, hooks);
        hooks.pass(Point::Gate, &mut tokens.z);
        hooks.pass(Point::Core, &mut y);
        if let Some(weight) = &self.norm {
            let mut normed = vec![0.0; y.len()];
            rms_norm(&y, &vec![1.0; head_dim], norm_eps, &mut normed);
            y.iter_mut().zip(normed).zip(weight.iter().cycle()).for_each(|((y, normed), weight)| *y = normed * weight);
        }
        let mut gated = vec![0.0; y.len()];
        silu_mul(&tokens.z, &y, &mut gated);
        linear(&self.out_proj, None, &gated, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (tokens, n) = (tape.positions().len(), self.core.spec.state_dim);
        let log = tape.strided(Point::LogDecay, head, 1);
        let (key, query) = (tape.strided(Point::Key, head * n, n), tape.strided(Point::Query, head * n, n));
        // As a state that is read before it is written: what fades at the token that reads is in the query.
        let faded: Vec<f32> = (0..tokens).flat_map(|t| query.row(t).iter().map(move |q| q * log.at(t).exp())).collect();
        let Shares { own, all } = Shares::of(tape, head);
        let dot = |t: usize| query.row(t).iter().zip(key.row(t)).map(|(q, k)| q * k).sum::<f32>();
        let bonus: Vec<f32> = own.iter().enumerate().map(|(t, own)| own * dot(t)).collect();
        let one = |data| Strided { data, stride: 1, offset: 0, width: 1 };
        draw(&Lowered::Recurrent(Recurrent {
            weight: Some(one(&all)),
            decay: Decay::Scalar { log, factor: 1.0 },
            bonus: Some(one(&bonus)),
            diagonal: self.core.skip(head),
            ..Recurrent::new(tokens, Strided { data: &faded, stride: n, offset: 0, width: n }, key)
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let (p, n) = (self.core.spec.head_dim, self.core.spec.state_dim);
        let row = |point| tape.row(point, position);
        match point {
            Point::Decay => {
                let Some(log) = row(Point::LogDecay) else { return false };
                out.extend(log[heads].iter().map(|log| log.exp()));
            }
            Point::Write => {
                let (Some(k), Some(x)) = (row(Point::Key), row(Point::Value)) else { return false };
                let (Some(delta), Some(lambda)) = (row(Point::Delta), row(Point::InputGate)) else { return false };
                let norms = |h: usize| l2_norm(&k[h * n..(h + 1) * n]) * l2_norm(&x[h * p..(h + 1) * p]);
                out.extend(heads.map(|h| lambda[h] * delta[h] * norms(h)));
            }
            Point::Read => {
                let (Some(y), Some(x)) = (row(Point::Core), row(Point::Value)) else { return false };
                out.extend(heads.map(|h| {
                    let pairs = y[h * p..(h + 1) * p].iter().zip(&x[h * p..]);
                    pairs.map(|(y, x)| (y - self.core.skip(h) * x).powi(2)).sum::<f32>().sqrt()
                }));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        self.core.fold(tape, positions, state);
    }
}
