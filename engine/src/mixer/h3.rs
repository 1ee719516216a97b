//! H3, a hungry hippo (Fu et al. 2023, arXiv 2212.14052), in a layout of our own (`assets/layouts.md`).
//!
//! ```text
//! q, k, v = W u + b
//! k̄_t = Σ_l K[l] k_{t−l} + D_k k_t          K[l] = Σ_n B[n] C[n + l]: a register of the last N_s keys, read by C (shift state space)
//! y = q ⊙ (S4D of (k̄ ⊙ v))          per channel; with P channels a head y = (S4D of (v k̄ᵀ)) q, one system for all P² products of a head
//! out = W_o y + b
//! ```
//!
//! The matrix is a band of the S4D kernel between two gates, M_ij = q_i K_{i−j} k̄_j; of a head, with vectors for gates, M_ij = (q_i·k̄_j) K_{i−j}: linear
//! attention that fades as a state space does, one matrix for all channels.

use std::ops::Range;

use statescope_kernels::conv::causal_conv;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Lowered, Toeplitz};
use statescope_kernels::reduce::l2_norm;

use super::s4::Systems;
use super::{Mixer, StateSlot, project};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::H3Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one H3. With one channel a head every channel is a head of its own.
pub struct H3 {
    spec: H3Spec,
    /// q, k, v `[C, d]` and biases.
    projections: [(Matrix, Vec<f32>); 3],
    /// Of the shift `[C, N_s]`, the last for the current token, D_k in it.
    shift: Vec<f32>,
    /// One a head, H of them.
    systems: Systems,
    /// Those of the products of a head, P² each, where P is more than 1: `[H, P, P]`, the channel of k̄ last.
    products: Option<Systems>,
    /// `[d, C]`; its input in the order (channel of the head, head), as published.
    out_proj: Matrix,
    out_bias: Vec<f32>,
}

impl H3 {
    pub fn load(spec: &H3Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (channels, held) = (spec.system.channels * spec.head_dim, spec.shift_dim);
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
        let systems = Systems::load(&spec.system, scope)?;
        Ok(Self {
            projections: [
                affine("q_proj", channels, hidden_size)?,
                affine("k_proj", channels, hidden_size)?,
                affine("v_proj", channels, hidden_size)?,
            ],
            shift,
            products: (spec.head_dim > 1).then(|| systems.repeated(spec.head_dim * spec.head_dim)),
            systems,
            out_proj,
            out_bias,
            spec: spec.clone(),
        })
    }

    /// What runs.
    fn running(&self) -> &Systems {
        self.products.as_ref().unwrap_or(&self.systems)
    }

    /// v k̄ᵀ of every head, `[T, H, P, P]`.
    fn inputs(&self, keys: &[f32], values: &[f32]) -> Vec<f32> {
        let p = self.spec.head_dim;
        let heads = keys.chunks_exact(p).zip(values.chunks_exact(p));
        heads.flat_map(|(k, v)| v.iter().flat_map(move |v| k.iter().map(move |k| v * k))).collect()
    }
}

impl Mixer for H3 {
    fn geometry(&self) -> Geometry {
        let H3Spec { head_dim, shift_dim, .. } = self.spec;
        let (heads, state_dim) = (self.spec.system.channels, self.spec.system.state_dim);
        Geometry {
            kind: if head_dim == 1 { MixerKind::H3 } else { MixerKind::H3Heads },
            heads,
            head_dim,
            state_dim: head_dim * state_dim,
            groups: heads,
            rank: 1,
            decay_dim: state_dim / 2,
            conv_taps: 0,
            gated: false,
            window: None,
            state_bytes: heads * head_dim * (head_dim * state_dim + shift_dim - 1) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let (heads, p) = (self.spec.system.channels, self.spec.head_dim);
        StateSlot {
            state: vec![0.0; heads * p * p * self.spec.system.state_dim],
            conv: vec![0.0; heads * p * (self.spec.shift_dim - 1)],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let (heads, p) = (self.spec.system.channels, self.spec.head_dim);
        let [mut q, keys, mut v] = self.projections.each_ref().map(|(matrix, bias)| project(matrix, Some(bias), xs));
        let mut k = vec![0.0; keys.len()];
        causal_conv(&keys, &self.shift, None, &mut slot.conv, &mut k);
        hooks.pass(Point::Query, &mut q);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        let held = self.running().forward(&self.inputs(&k, &v), &mut slot.state, hooks);
        let read = |(held, q): (&[f32], &[f32])| {
            let rows: Vec<f32> = held.chunks_exact(p).map(|row| row.iter().zip(q).map(|(x, q)| x * q).sum()).collect();
            rows
        };
        let mut y: Vec<f32> = held.chunks_exact(p * p).zip(q.chunks_exact(p)).flat_map(read).collect();
        hooks.pass(Point::Core, &mut y);
        if p > 1 {
            let rows = y.chunks_exact(heads * p);
            y = rows.flat_map(|y| (0..heads * p).map(move |c| y[c % heads * p + c / heads])).collect();
        }
        linear(&self.out_proj, Some(&self.out_bias), &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (tokens, p) = (tape.positions().len(), self.spec.head_dim);
        let taps = self.systems.band(head, tokens);
        let (pre, post) = (tape.strided(Point::Key, head * p, p), tape.strided(Point::Query, head * p, p));
        draw(&Lowered::Toeplitz(Toeplitz { tokens, taps: &taps, pre, post }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let p = self.spec.head_dim;
        let row = |point| tape.row(point, position);
        let of = |row: &[f32], h: usize| row[h * p..(h + 1) * p].to_vec();
        match point {
            Point::Write => {
                let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
                out.extend(heads.map(|h| self.systems.write_norm(h) * l2_norm(&of(k, h)) * l2_norm(&of(v, h))));
            }
            Point::Read => {
                let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
                let (Some(q), Some(y)) = (row(Point::Query), row(Point::Core)) else { return false };
                out.extend(heads.map(|h| {
                    let own = self.systems.skip(h) * of(q, h).iter().zip(of(k, h)).map(|(q, k)| q * k).sum::<f32>();
                    l2_norm(&of(y, h).iter().zip(of(v, h)).map(|(y, v)| y - own * v).collect::<Vec<f32>>())
                }));
            }
            _ => return self.systems.derive(point, heads, out),
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        self.running().fold(&self.inputs(rows(Point::Key), rows(Point::Value)), state);
    }
}
