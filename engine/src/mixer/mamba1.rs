//! Mamba-1, the selective scan (Gu & Dao 2023, arXiv 2312.00752).
//!
//! ```text
//! [x̂; z] = W_in u          x = silu(conv(x̂))          [δ; B; C] = W_x x          Δ = softplus(W_dt δ + b_dt)
//! h_t[c,n] = exp(Δ_t[c] A[c,n]) h_{t−1}[c,n] + Δ_t[c] B_t[n] x_t[c]      y_t[c] = Σ_n C_t[n] h_t[c,n] + D[c] x_t[c]
//! out = W_out (y ⊙ silu(z))
//! ```

use std::ops::Range;

use statescope_kernels::activation::{exp_slice, silu, silu_mul, silu_slice, softplus_slice};
use statescope_kernels::conv::causal_conv;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent};
use statescope_kernels::reduce::l2_norm;
use statescope_kernels::selective_scan::SelectiveScan;

use super::{Mixer, StateSlot, Surroundings, columns, negative_exp};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::Mamba1Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one Mamba-1 mixer. Every channel is a head of its own.
pub struct Mamba1 {
    spec: Mamba1Spec,
    /// `[2E, d]`: first x̂, then z.
    in_proj: Matrix,
    in_bias: Option<Vec<f32>>,
    /// `[E, K]`.
    conv_weight: Vec<f32>,
    conv_bias: Option<Vec<f32>>,
    /// `[R + 2N, E]`: δ, B, C.
    x_proj: Matrix,
    /// `[E, R]`.
    dt_proj: Matrix,
    dt_bias: Vec<f32>,
    /// `[E, N]`, negative.
    a: Vec<f32>,
    /// `[E]`.
    d: Vec<f32>,
    /// `[d, E]`.
    out_proj: Matrix,
    out_bias: Option<Vec<f32>>,
}

impl Mamba1 {
    pub fn load(spec: &Mamba1Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (e, n, r, k) = (spec.channels, spec.state_dim, spec.dt_rank, spec.conv_taps);
        let bias = |name: &str, present: bool, len: usize| present.then(|| scope.vector(name, len)).transpose();
        Ok(Self {
            in_proj: scope.matrix("in_proj.weight", 2 * e, hidden_size)?,
            in_bias: bias("in_proj.bias", spec.proj_bias, 2 * e)?,
            conv_weight: scope.tensor("conv1d.weight", &[e, 1, k])?,
            conv_bias: bias("conv1d.bias", spec.conv_bias, e)?,
            x_proj: scope.matrix("x_proj.weight", r + 2 * n, e)?,
            dt_proj: scope.matrix("dt_proj.weight", e, r)?,
            dt_bias: scope.vector("dt_proj.bias", e)?,
            a: negative_exp(scope.tensor("A_log", &[e, n])?),
            d: scope.vector("D", e)?,
            out_proj: scope.matrix("out_proj.weight", hidden_size, e)?,
            out_bias: bias("out_proj.bias", spec.proj_bias, hidden_size)?,
            spec: spec.clone(),
        })
    }

    fn rates(&self, channel: usize) -> &[f32] {
        &self.a[channel * self.spec.state_dim..(channel + 1) * self.spec.state_dim]
    }
}

impl Mixer for Mamba1 {
    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        Geometry {
            kind: MixerKind::Mamba1,
            heads: spec.channels,
            head_dim: 1,
            state_dim: spec.state_dim,
            groups: 1,
            decay_dim: spec.state_dim,
            conv_taps: spec.conv_taps,
            state_bytes: spec.channels * (spec.state_dim + spec.conv_taps - 1) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let spec = &self.spec;
        StateSlot {
            state: vec![0.0; spec.channels * spec.state_dim],
            conv: vec![0.0; (spec.conv_taps - 1) * spec.channels],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let (e, n, r) = (self.spec.channels, self.spec.state_dim, self.spec.dt_rank);
        let rows = xs.len() / self.in_proj.cols();

        let mut projected = vec![0.0; rows * 2 * e];
        linear(&self.in_proj, self.in_bias.as_deref(), xs, &mut projected);
        let mut conv_in = columns(&projected, 2 * e, 0, e);
        let mut gate = columns(&projected, 2 * e, e, e);
        hooks.pass(Point::ConvIn, &mut conv_in);
        hooks.pass(Point::Gate, &mut gate);

        let mut x = vec![0.0; rows * e];
        causal_conv(&conv_in, &self.conv_weight, self.conv_bias.as_deref(), &mut slot.conv, &mut x);
        hooks.pass(Point::Conv, &mut x);
        silu_slice(&mut x);
        hooks.pass(Point::Value, &mut x);

        let mut dbc = vec![0.0; rows * (r + 2 * n)];
        linear(&self.x_proj, None, &x, &mut dbc);
        let low_rank = columns(&dbc, r + 2 * n, 0, r);
        let mut b = columns(&dbc, r + 2 * n, r, n);
        let mut c = columns(&dbc, r + 2 * n, r + n, n);
        hooks.pass(Point::Key, &mut b);
        hooks.pass(Point::Query, &mut c);
        let mut delta = vec![0.0; rows * e];
        linear(&self.dt_proj, Some(&self.dt_bias), &low_rank, &mut delta);
        softplus_slice(&mut delta);
        hooks.pass(Point::Delta, &mut delta);

        let mut y = vec![0.0; rows * e];
        SelectiveScan { delta: &delta, a: &self.a, b: &b, c: &c, x: &x, d: &self.d }.forward(
            &mut slot.state,
            &mut y,
            None,
        );
        hooks.pass(Point::Core, &mut y);
        let mut gated = vec![0.0; rows * e];
        silu_mul(&gate, &y, &mut gated);
        linear(&self.out_proj, self.out_bias.as_deref(), &gated, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let n = self.spec.state_dim;
        let delta = tape.strided(Point::Delta, head, 1);
        draw(&Lowered::Recurrent(Recurrent {
            tokens: tape.positions().len(),
            query: tape.strided(Point::Query, 0, n),
            key: tape.strided(Point::Key, 0, n),
            weight: Some(delta),
            decay: Decay::Diagonal { log: delta, rates: self.rates(head) },
            diagonal: self.d[head],
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, out: &mut Vec<f32>) -> bool {
        let row = |p| tape.row(p, position);
        match point {
            Point::Decay => {
                let Some(delta) = row(Point::Delta) else { return false };
                let start = out.len();
                for (channel, delta) in delta.iter().enumerate() {
                    out.extend(self.rates(channel).iter().map(|a| delta * a));
                }
                exp_slice(&mut out[start..]);
            }
            Point::Write => {
                let (Some(delta), Some(b), Some(x)) = (row(Point::Delta), row(Point::Key), row(Point::Value)) else {
                    return false;
                };
                let key_norm = l2_norm(b);
                out.extend(delta.iter().zip(x).map(|(delta, x)| delta * key_norm * x.abs()));
            }
            Point::Read => {
                let (Some(y), Some(x)) = (row(Point::Core), row(Point::Value)) else { return false };
                out.extend(y.iter().zip(x).zip(&self.d).map(|((y, x), d)| (y - d * x).abs()));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |p| tape.rows(p, positions.clone()).unwrap_or_default();
        let (delta, b, c, x) = (rows(Point::Delta), rows(Point::Key), rows(Point::Query), rows(Point::Value));
        SelectiveScan { delta, a: &self.a, b, c, x, d: &self.d }.fold(state);
    }

    fn surroundings(&self, head: usize, _channel: usize) -> Option<Surroundings<'_>> {
        let k = self.spec.conv_taps;
        Some(Surroundings {
            taps: &self.conv_weight[head * k..(head + 1) * k],
            bias: self.conv_bias.as_ref().map_or(0.0, |b| b[head]),
        })
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, _channel: usize) -> f32 {
        tape.row(Point::Gate, position).map_or(f32::NAN, |z| silu(z[head]))
    }
}
