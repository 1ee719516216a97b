//! Mamba-2, state-space duality (Dao & Gu 2024, arXiv 2405.21060).
//!
//! ```text
//! [z; x; B; C; dt] = W_in u          [x; B; C] = silu(conv([x; B; C]))          Δ = clamp(softplus(dt + dt_bias))
//! S_t = exp(Δ_t A) S_{t−1} + Δ_t x_t ⊗ B_t          y_t = S_t C_t + D x_t          per head, S ∈ ℝ^{P×N}
//! out = W_out (w ⊙ RMSgroup(y ⊙ silu(z)))
//! ```
//!
//! Falcon-H1 scales the five parts of W_in u, and may norm before the gate, or not at all.

use std::ops::Range;

use statescope_kernels::activation::{exp_slice, silu, silu_mul, softplus_slice};
#[cfg(feature = "cuda")]
use statescope_kernels::cuda;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent};
use statescope_kernels::norm::{gated_group_rms_norm, group_rms_norm_gated};
use statescope_kernels::reduce::l2_norm;
use statescope_kernels::room::Room;
use statescope_kernels::ssd::Ssd;

use super::{Mixer, StateSlot, Surroundings, columns, conv_silu, project_parts};
#[cfg(feature = "cuda")]
use crate::device::{DeviceMixer, Upload};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::feed_forward::scale;
use crate::model::spec::{GateNorm, Mamba2Spec};
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one Mamba-2 mixer.
pub struct Mamba2 {
    pub(crate) spec: Mamba2Spec,
    /// `[2E + 2GN + H, d]`: z, x, B, C, dt.
    pub(crate) in_proj: Matrix,
    pub(crate) in_bias: Option<Vec<f32>>,
    /// `[E + 2GN, K]`.
    pub(crate) conv_weight: Vec<f32>,
    pub(crate) conv_bias: Option<Vec<f32>>,
    /// `[H]`.
    pub(crate) dt_bias: Vec<f32>,
    /// `[H]`, negative.
    pub(crate) a: Vec<f32>,
    /// `[H]`.
    pub(crate) d: Vec<f32>,
    /// `[E]`; empty without a norm.
    pub(crate) norm: Vec<f32>,
    /// `[d, E]`.
    pub(crate) out_proj: Matrix,
    pub(crate) out_bias: Option<Vec<f32>>,
}

impl Mamba2 {
    pub fn load(spec: &Mamba2Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (inner, conv_dim) = (inner(spec), conv_dim(spec));
        let projected = inner + conv_dim + spec.heads;
        Ok(Self {
            in_proj: scope.matrix("in_proj.weight", projected, hidden_size)?,
            in_bias: scope.vector_if(spec.proj_bias, "in_proj.bias", projected)?,
            conv_weight: scope.tensor("conv1d.weight", &[conv_dim, 1, spec.conv_taps])?,
            conv_bias: scope.vector_if(spec.conv_bias, "conv1d.bias", conv_dim)?,
            dt_bias: scope.vector("dt_bias", spec.heads)?,
            a: scope.rates(&[spec.heads])?,
            d: scope.vector("D", spec.heads)?,
            norm: scope.vector_if(spec.norm != GateNorm::GateOnly, "norm.weight", inner)?.unwrap_or_default(),
            out_proj: scope.matrix("out_proj.weight", hidden_size, inner)?,
            out_bias: scope.vector_if(spec.out_bias, "out_proj.bias", hidden_size)?,
            spec: spec.clone(),
        })
    }

    fn group(&self, head: usize) -> usize {
        head * self.spec.groups / self.spec.heads
    }

    /// Scales z, what the convolution reads (x, B and C), and dt.
    fn multiply(&self, [gate, conv_in, delta]: [&mut [f32]; 3]) {
        let spec = &self.spec;
        let [of_gate, of_x, of_b, of_c, of_delta] = spec.multipliers;
        scale(gate, of_gate);
        scale(delta, of_delta);
        if [of_x, of_b, of_c] != [1.0; 3] {
            let keys = spec.groups * spec.state_dim;
            for row in conv_in.chunks_exact_mut(conv_dim(spec)) {
                let (x, keys_and_queries) = row.split_at_mut(inner(spec));
                let (b, c) = keys_and_queries.split_at_mut(keys);
                scale(x, of_x);
                scale(b, of_b);
                scale(c, of_c);
            }
        }
    }

    fn ssd<'a>(&'a self, delta: &'a [f32], b: &'a [f32], c: &'a [f32], x: &'a [f32]) -> Ssd<'a> {
        let spec = &self.spec;
        Ssd {
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.state_dim,
            groups: spec.groups,
            delta,
            a: &self.a,
            b,
            c,
            x,
            d: &self.d,
        }
    }
}

/// E = H·P.
fn inner(spec: &Mamba2Spec) -> usize {
    spec.heads * spec.head_dim
}

/// Channels of the joint convolution, E + 2GN.
fn conv_dim(spec: &Mamba2Spec) -> usize {
    inner(spec) + 2 * spec.groups * spec.state_dim
}

impl Mixer for Mamba2 {
    #[cfg(feature = "cuda")]
    fn upload(&self, to: &Upload<'_>) -> cuda::Result<Option<DeviceMixer>> {
        Ok(crate::device::mamba2::Mamba2::upload(self, to)?.map(DeviceMixer::Mamba2))
    }

    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        Geometry {
            kind: MixerKind::Mamba2,
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.state_dim,
            groups: spec.groups,
            rank: 1,
            decay_dim: 1,
            conv_taps: spec.conv_taps,
            gated: true,
            window: None,
            state_bytes: (inner(spec) * spec.state_dim + (spec.conv_taps - 1) * conv_dim(spec)) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let spec = &self.spec;
        StateSlot {
            state: vec![0.0; inner(spec) * spec.state_dim],
            conv: vec![0.0; (spec.conv_taps - 1) * conv_dim(spec)],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let spec = &self.spec;
        let (inner, conv_dim, keys) = (inner(spec), conv_dim(spec), spec.groups * spec.state_dim);
        let rows = xs.len() / self.in_proj.cols();

        let [mut gate, mut conv_in, mut delta] =
            project_parts(&self.in_proj, self.in_bias.as_deref(), xs, [inner, conv_dim, spec.heads]);
        self.multiply([&mut gate, &mut conv_in, &mut delta]);
        hooks.pass(Point::Gate, &mut gate);

        let [mut x, mut b, mut c] = [inner, keys, keys].map(|width| Room::new(rows * width));
        if hooks.wanted() {
            hooks.show(Point::ConvIn, &columns(&conv_in, conv_dim, 0, inner));
        }
        let taps = (&self.conv_weight[..], self.conv_bias.as_deref());
        conv_silu(taps, &conv_in, &mut slot.conv, [&mut x, &mut b, &mut c], 0, hooks);
        hooks.pass(Point::Value, &mut x);
        hooks.pass(Point::Key, &mut b);
        hooks.pass(Point::Query, &mut c);

        for row in delta.chunks_exact_mut(spec.heads) {
            row.iter_mut().zip(&self.dt_bias).for_each(|(dt, bias)| *dt += bias);
        }
        softplus_slice(&mut delta);
        let (low, high) = spec.delta_limit;
        delta.iter_mut().for_each(|dt| *dt = dt.clamp(low, high));
        hooks.pass(Point::Delta, &mut delta);

        let mut y = Room::new(rows * inner);
        self.ssd(&delta, &b, &c, &x).forward(&mut slot.state, &mut y);
        hooks.pass(Point::Core, &mut y);
        let mut normed = Room::new(rows * inner);
        match spec.norm {
            GateNorm::GateFirst => {
                gated_group_rms_norm(&y, &gate, &self.norm, spec.groups, spec.norm_eps, &mut normed, None)
            }
            GateNorm::NormFirst => {
                group_rms_norm_gated(&y, &gate, &self.norm, spec.groups, spec.norm_eps, &mut normed, None)
            }
            GateNorm::GateOnly => silu_mul(&gate, &y, &mut normed),
        }
        linear(&self.out_proj, self.out_bias.as_deref(), &normed, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let n = self.spec.state_dim;
        let (delta, offset) = (tape.strided(Point::Delta, head, 1), self.group(head) * n);
        draw(&Lowered::Recurrent(Recurrent {
            tokens: tape.positions().len(),
            query: tape.strided(Point::Query, offset, n),
            key: tape.strided(Point::Key, offset, n),
            weight: Some(delta),
            decay: Decay::Scalar { log: delta, factor: self.a[head] },
            diagonal: self.d[head],
            bonus: None,
            normaliser: None,
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let (p, n) = (self.spec.head_dim, self.spec.state_dim);
        let row = |point| tape.row(point, position);
        match point {
            Point::Decay => {
                let Some(delta) = row(Point::Delta) else { return false };
                let start = out.len();
                out.extend(delta[heads.clone()].iter().zip(&self.a[heads]).map(|(delta, a)| delta * a));
                exp_slice(&mut out[start..]);
            }
            Point::Write => {
                let (Some(delta), Some(b), Some(x)) = (row(Point::Delta), row(Point::Key), row(Point::Value)) else {
                    return false;
                };
                out.extend(heads.map(|head| {
                    let group = self.group(head);
                    delta[head] * l2_norm(&b[group * n..(group + 1) * n]) * l2_norm(&x[head * p..(head + 1) * p])
                }));
            }
            Point::Read => {
                let (Some(y), Some(x)) = (row(Point::Core), row(Point::Value)) else { return false };
                out.extend(heads.map(|head| {
                    let (d, at) = (self.d[head], head * p..(head + 1) * p);
                    y[at.clone()].iter().zip(&x[at]).map(|(y, x)| (y - d * x).powi(2)).sum::<f32>().sqrt()
                }));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |p| tape.rows(p, positions.clone()).unwrap_or_default();
        self.ssd(rows(Point::Delta), rows(Point::Key), rows(Point::Query), rows(Point::Value)).fold(state);
    }

    fn surroundings(&self, head: usize, channel: usize) -> Option<Surroundings<'_>> {
        let (k, c) = (self.spec.conv_taps, head * self.spec.head_dim + channel);
        Some(Surroundings {
            taps: &self.conv_weight[c * k..(c + 1) * k],
            bias: self.conv_bias.as_ref().map_or(0.0, |b| b[c]),
            activated: true,
        })
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, channel: usize) -> f32 {
        let (Some(y), Some(z)) = (tape.row(Point::Core, position), tape.row(Point::Gate, position)) else {
            return f32::NAN;
        };
        let (c, width) = (head * self.spec.head_dim + channel, inner(&self.spec) / self.spec.groups);
        let group = c / width * width..(c / width + 1) * width;
        let square: f32 = match self.spec.norm {
            GateNorm::GateFirst => y[group.clone()].iter().zip(&z[group]).map(|(y, z)| (y * silu(*z)).powi(2)).sum(),
            GateNorm::NormFirst => y[group].iter().map(|y| y * y).sum(),
            GateNorm::GateOnly => return silu(z[c]),
        };
        let scale = (square / width as f32 + self.spec.norm_eps).sqrt().recip();
        silu(z[c]) * scale * self.norm[c]
    }
}
