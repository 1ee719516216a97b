//! H3, a hungry hippo (Fu et al. 2023, arXiv 2212.14052), in a layout of our own (`assets/layouts.md`).
//!
//! ```text
//! q, k, v = W u + b
//! k̄_t = Σ_l K[l] k_{t−l} + D_k k_t          K[l] = Σ_n B[n] C[n + l]: a register of the last N_s keys, read by C (shift state space)
//! y = q ⊙ (S4D of (k̄ ⊙ v))          per channel
//! out = W_o y + b
//! ```
//!
//! The matrix is a band of the S4D kernel between two gates, M_ij = q_i K_{i−j} k̄_j.

use std::ops::Range;

use statescope_kernels::conv::causal_conv;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Lowered, Toeplitz};

use super::s4::Systems;
use super::{Mixer, StateSlot, products, project};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::H3Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one H3. Every channel is a head of its own.
pub struct H3 {
    spec: H3Spec,
    /// q, k, v `[C, d]` and biases.
    projections: [(Matrix, Vec<f32>); 3],
    /// Of the shift `[C, N_s]`, the last for the current token, D_k in it.
    shift: Vec<f32>,
    systems: Systems,
    /// `[d, C]`.
    out_proj: Matrix,
    out_bias: Vec<f32>,
}

impl H3 {
    pub fn load(spec: &H3Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (channels, held) = (spec.system.channels, spec.shift_dim);
        let affine = |name: &str, rows, cols| -> Result<(Matrix, Vec<f32>), LoadError> {
            let scope = scope.scope(name);
            Ok((scope.matrix("weight", rows, cols)?, scope.vector("bias", rows)?))
        };
        let kernel = scope.scope("shift");
        let (b, c) = (kernel.tensor("B", &[channels, held])?, kernel.tensor("C", &[channels, held])?);
        let skip = kernel.vector("D", channels)?;
        let mut shift = Vec::with_capacity(channels * held);
        for ((b, c), skip) in b.chunks_exact(held).zip(c.chunks_exact(held)).zip(skip) {
            let tap = |age: usize| b.iter().zip(&c[age..]).map(|(b, c)| b * c).sum::<f32>();
            shift.extend((0..held).rev().map(|age| tap(age) + if age == 0 { skip } else { 0.0 }));
        }
        let (out_proj, out_bias) = affine("output_linear", hidden_size, channels)?;
        Ok(Self {
            projections: [
                affine("q_proj", channels, hidden_size)?,
                affine("k_proj", channels, hidden_size)?,
                affine("v_proj", channels, hidden_size)?,
            ],
            shift,
            systems: Systems::load(&spec.system, scope)?,
            out_proj,
            out_bias,
            spec: spec.clone(),
        })
    }
}

impl Mixer for H3 {
    fn geometry(&self) -> Geometry {
        let (channels, state_dim) = (self.spec.system.channels, self.spec.system.state_dim);
        Geometry {
            kind: MixerKind::H3,
            heads: channels,
            head_dim: 1,
            state_dim,
            groups: channels,
            rank: 1,
            decay_dim: state_dim / 2,
            conv_taps: 0,
            gated: false,
            window: None,
            state_bytes: channels * (state_dim + self.spec.shift_dim - 1) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let channels = self.spec.system.channels;
        StateSlot {
            state: vec![0.0; channels * self.spec.system.state_dim],
            conv: vec![0.0; channels * (self.spec.shift_dim - 1)],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let [mut q, keys, mut v] = self.projections.each_ref().map(|(matrix, bias)| project(matrix, Some(bias), xs));
        let mut k = vec![0.0; keys.len()];
        causal_conv(&keys, &self.shift, None, &mut slot.conv, &mut k);
        hooks.pass(Point::Query, &mut q);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        let mut y = self.systems.forward(&products(&k, &v), &mut slot.state, hooks);
        y.iter_mut().zip(&q).for_each(|(y, q)| *y *= q);
        hooks.pass(Point::Core, &mut y);
        linear(&self.out_proj, Some(&self.out_bias), &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let tokens = tape.positions().len();
        let taps = self.systems.band(head, tokens);
        let (pre, post) = (tape.strided(Point::Key, head, 1), tape.strided(Point::Query, head, 1));
        draw(&Lowered::Toeplitz(Toeplitz { tokens, taps: &taps, pre, post }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let row = |point| tape.row(point, position);
        match point {
            Point::Write => {
                let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
                out.extend(heads.map(|c| self.systems.write_norm(c) * (k[c] * v[c]).abs()));
            }
            Point::Read => {
                let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
                let (Some(q), Some(y)) = (row(Point::Query), row(Point::Core)) else { return false };
                out.extend(heads.map(|c| (y[c] - q[c] * self.systems.skip(c) * k[c] * v[c]).abs()));
            }
            _ => return self.systems.derive(point, heads, out),
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        self.systems.fold(&products(rows(Point::Key), rows(Point::Value)), state);
    }
}
