//! Mamba-1, the selective scan (Gu & Dao 2023, arXiv 2312.00752).
//!
//! ```text
//! [x̂; z] = W_in u          x = silu(conv(x̂))          [δ; B; C] = W_x x          Δ = softplus(W_dt δ + b_dt)
//! h_t[c,n] = exp(Δ_t[c] A[c,n]) h_{t−1}[c,n] + Δ_t[c] B_t[n] x_t[c]      y_t[c] = Σ_n C_t[n] h_t[c,n] + D[c] x_t[c]
//! out = W_out (y ⊙ silu(z))
//! ```
//!
//! Falcon-Mamba, Jamba and Hymba norm δ, B and C; Hymba also what enters W_out; Zamba computes them per head of channels, from that head's x alone.

use std::borrow::Cow;
use std::ops::Range;

use statescope_kernels::activation::{exp_slice, silu, silu_mul, softplus_slice};
#[cfg(feature = "cuda")]
use statescope_kernels::cuda;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent};
use statescope_kernels::norm::rms_norm;
use statescope_kernels::reduce::l2_norm;
use statescope_kernels::room::Room;
use statescope_kernels::selective_scan::SelectiveScan;

use super::{Mixer, StateSlot, Surroundings, columns, conv_silu, project_parts};
#[cfg(feature = "cuda")]
use crate::device::{DeviceMixer, Upload};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::norm::Norm;
use crate::model::spec::{DbcNorm, Mamba1Spec};
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one Mamba-1 mixer. Every channel is a head of its own.
pub struct Mamba1 {
    pub(crate) spec: Mamba1Spec,
    /// `[2E, d]`: first x̂, then z.
    pub(crate) in_proj: Matrix,
    pub(crate) in_bias: Option<Vec<f32>>,
    /// `[E, K]`.
    pub(crate) conv_weight: Vec<f32>,
    pub(crate) conv_bias: Option<Vec<f32>>,
    /// By head of channels; one in all models but Zamba.
    pub(crate) heads: Vec<Selector>,
    pub(crate) dbc_norm: Option<DbcNorms>,
    /// `[E, N]`, negative.
    pub(crate) a: Vec<f32>,
    /// `[E]`, the rate nearest to 0 of each channel.
    pub(crate) slowest: Vec<f32>,
    /// `[E]`.
    pub(crate) d: Vec<f32>,
    /// Over E.
    pub(crate) out_norm: Option<Norm>,
    /// `[d, E]`.
    pub(crate) out_proj: Matrix,
    pub(crate) out_bias: Option<Vec<f32>>,
}

/// What selects: from the x of its channels to their Δ, B and C. Of Zamba's several heads each has E/heads channels.
pub(crate) struct Selector {
    /// `[R + 2N, channels]`: δ, B, C.
    pub(crate) x_proj: Matrix,
    /// `[channels, R]`.
    pub(crate) dt_proj: Matrix,
    /// `[channels]`.
    pub(crate) dt_bias: Vec<f32>,
}

/// What a scan should leave besides the state.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// Nothing.
    State,
    /// y.
    Output,
    /// y times the SiLU of this gate.
    Gated(&'a [f32]),
    /// ‖h‖ by channel.
    Norms,
}

/// RMS norms of δ, B and C.
pub(crate) struct DbcNorms {
    pub(crate) eps: f32,
    /// Scales `[R]`, `[N]`, `[N]`; ones where the file has none.
    pub(crate) scales: [Vec<f32>; 3],
}

impl DbcNorms {
    fn load(norm: DbcNorm, spec: &Mamba1Spec, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let scale = |name: &str, len: usize| match norm.learned {
            true => scope.vector(&format!("{name}_layernorm.weight"), len),
            false => Ok(vec![1.0; len]),
        };
        let scales = [scale("dt", spec.dt_rank)?, scale("b", spec.state_dim)?, scale("c", spec.state_dim)?];
        Ok(Self { eps: norm.eps, scales })
    }

    fn apply(&self, index: usize, xs: &mut [f32]) {
        let before = xs.to_vec();
        rms_norm(&before, &self.scales[index], self.eps, xs);
    }
}

impl Selector {
    /// The only head of all channels.
    fn load(spec: &Mamba1Spec, scope: &Scope<'_>) -> Result<Vec<Self>, LoadError> {
        let (e, n, r) = (spec.channels, spec.state_dim, spec.dt_rank);
        Ok(vec![Self {
            x_proj: scope.matrix("x_proj.weight", r + 2 * n, e)?,
            dt_proj: scope.matrix("dt_proj.weight", e, r)?,
            dt_bias: scope.vector("dt_proj.bias", e)?,
        }])
    }

    /// Zamba's heads, stacked.
    fn load_heads(spec: &Mamba1Spec, heads: usize, scope: &Scope<'_>) -> Result<Vec<Self>, LoadError> {
        let (e, n, r) = (spec.channels / heads, spec.state_dim, spec.dt_rank);
        let x_proj = scope.stacked_matrix("x_proj_weight", heads, r + 2 * n, e)?;
        let dt_proj = scope.stacked_matrix("dt_proj_weight", heads, e, r)?;
        let dt_bias = scope.tensor("dt_proj_bias", &[heads, e])?;
        let rows = |matrix: &Matrix, head: usize, len: usize| {
            matrix.pick_rows(std::slice::from_ref(&(head * len..(head + 1) * len)))
        };
        let head = |head: usize| Self {
            x_proj: rows(&x_proj, head, r + 2 * n),
            dt_proj: rows(&dt_proj, head, e),
            dt_bias: dt_bias[head * e..(head + 1) * e].to_vec(),
        };
        Ok((0..heads).map(head).collect())
    }
}

impl Mamba1 {
    pub fn load(spec: &Mamba1Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (e, n, k) = (spec.channels, spec.state_dim, spec.conv_taps);
        let mut in_proj = scope.matrix("in_proj.weight", spec.in_offset + 2 * e, hidden_size)?;
        let mut in_bias = scope.vector_if(spec.proj_bias, "in_proj.bias", spec.in_offset + 2 * e)?;
        if spec.in_offset > 0 {
            let own = spec.in_offset..spec.in_offset + 2 * e;
            in_proj = in_proj.pick_rows(std::slice::from_ref(&own));
            in_bias = in_bias.map(|bias| bias[spec.in_offset..].to_vec());
        }
        let (heads, a, d) = match spec.heads {
            None => (Selector::load(spec, scope)?, scope.rates(&[e, n])?, scope.vector("D", e)?),
            Some(heads) => {
                // Its in_proj alternates rows of x̂ and z.
                in_proj = in_proj.pick_rows(&alternate(e));
                in_bias = in_bias.map(|bias| alternate(e).into_iter().flatten().map(|row| bias[row]).collect());
                let (selectors, per_head) = (Selector::load_heads(spec, heads, scope)?, e / heads);
                (selectors, scope.rates(&[heads, per_head, n])?, scope.tensor("D", &[heads, per_head])?)
            }
        };
        Ok(Self {
            in_proj,
            in_bias,
            conv_weight: scope.tensor("conv1d.weight", &[e, 1, k])?,
            conv_bias: scope.vector_if(spec.conv_bias, "conv1d.bias", e)?,
            heads,
            dbc_norm: spec.dbc_norm.map(|norm| DbcNorms::load(norm, spec, scope)).transpose()?,
            slowest: a.chunks_exact(n).map(|rates| rates.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect(),
            a,
            d,
            out_norm: spec.out_norm.map(|norm| Norm::load(norm, "mamba_norm", e, scope)).transpose()?,
            out_proj: scope.matrix("out_proj.weight", hidden_size, e)?,
            out_bias: scope.vector_if(spec.proj_bias, "out_proj.bias", hidden_size)?,
            spec: spec.clone(),
        })
    }

    /// Channels of a head.
    fn head_width(&self) -> usize {
        self.spec.channels / self.heads.len()
    }

    /// Δ `[T, E]`, B and C `[T, heads, N]` from x `[T, E]`.
    fn select(&self, x: &[f32]) -> [Room; 3] {
        let (n, r, width) = (self.spec.state_dim, self.spec.dt_rank, self.head_width());
        let (rows, count) = (x.len() / self.spec.channels, self.heads.len());
        let lens = [width, n, n];
        let mut made = lens.map(|len| Room::new(if count == 1 { 0 } else { rows * count * len }));
        for (index, head) in self.heads.iter().enumerate() {
            let own = self.own_columns(x, index);
            let mut parts = project_parts(&head.x_proj, None, &own, [r, n, n]);
            if let Some(norms) = &self.dbc_norm {
                parts.iter_mut().enumerate().for_each(|(i, part)| norms.apply(i, part));
            }
            let mut delta = Room::new(rows * width);
            linear(&head.dt_proj, Some(&head.dt_bias), &parts[0], &mut delta);
            softplus_slice(&mut delta);
            parts[0] = delta;
            if count == 1 {
                return parts;
            }
            for ((part, made), len) in parts.iter().zip(&mut made).zip(lens) {
                for (from, to) in part.chunks_exact(len).zip(made.chunks_exact_mut(count * len)) {
                    to[index * len..(index + 1) * len].copy_from_slice(from);
                }
            }
        }
        made
    }

    /// The columns of head `index` of xs `[T, E]`.
    fn own_columns<'a>(&self, xs: &'a [f32], index: usize) -> Cow<'a, [f32]> {
        match self.heads.len() {
            1 => Cow::Borrowed(xs),
            _ => Cow::Owned(columns(xs, self.spec.channels, index * self.head_width(), self.head_width()).to_vec()),
        }
    }

    /// Scans Δ `[T, E]`, B, C `[T, heads, N]`, x `[T, E]` head by head. What is wanted besides the state goes to `out` `[T, E]`.
    fn scan(&self, [delta, b, c, x]: [&[f32]; 4], state: &mut [f32], wanted: Wanted, out: &mut [f32]) {
        let (e, n, width, count) = (self.spec.channels, self.spec.state_dim, self.head_width(), self.heads.len());
        for (index, state) in state.chunks_exact_mut(width * n).enumerate() {
            let (delta, x) = (self.own_columns(delta, index), self.own_columns(x, index));
            let own_keys = |keys| match count {
                1 => Cow::Borrowed(keys),
                _ => Cow::Owned(columns(keys, count * n, index * n, n).to_vec()),
            };
            let (b, c) = (own_keys(b), own_keys(c));
            let channels = index * width..(index + 1) * width;
            let a = &self.a[channels.start * n..channels.end * n];
            let scan = SelectiveScan { delta: &delta, a, b: &b, c: &c, x: &x, d: &self.d[channels.clone()] };
            let run = |state: &mut [f32], out: &mut [f32]| match wanted {
                Wanted::State => scan.fold(state),
                Wanted::Output => scan.forward(state, out, None),
                Wanted::Gated(gate) => scan.forward_gated(&self.own_columns(gate, index), state, out),
                Wanted::Norms => scan.fold_norms(state, out),
            };
            if count == 1 {
                run(state, out);
                continue;
            }
            let mut own = vec![0.0; if out.is_empty() { 0 } else { x.len() }];
            run(state, &mut own);
            for (from, to) in own.chunks_exact(width).zip(out.chunks_exact_mut(e)) {
                to[channels.clone()].copy_from_slice(from);
            }
        }
    }

    fn rates(&self, channel: usize) -> &[f32] {
        &self.a[channel * self.spec.state_dim..(channel + 1) * self.spec.state_dim]
    }
}

/// Even rows, then odd rows, of 2E.
fn alternate(channels: usize) -> Vec<Range<usize>> {
    (0..2).flat_map(|first| (0..channels).map(move |c| 2 * c + first..2 * c + first + 1)).collect()
}

impl Mixer for Mamba1 {
    #[cfg(feature = "cuda")]
    fn upload(&self, to: &Upload<'_>) -> cuda::Result<Option<DeviceMixer>> {
        Ok(crate::device::mamba1::Mamba1::upload(self, to)?.map(DeviceMixer::Mamba1))
    }

    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        Geometry {
            kind: MixerKind::Mamba1,
            heads: spec.channels,
            head_dim: 1,
            state_dim: spec.state_dim,
            groups: self.heads.len(),
            rank: 1,
            decay_dim: spec.state_dim,
            conv_taps: spec.conv_taps,
            gated: true,
            window: None,
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
        let e = self.spec.channels;
        let rows = xs.len() / self.in_proj.cols();

        let [mut conv_in, mut gate] = project_parts(&self.in_proj, self.in_bias.as_deref(), xs, [e, e]);
        hooks.pass(Point::ConvIn, &mut conv_in);
        hooks.pass(Point::Gate, &mut gate);

        let mut x = Room::new(rows * e);
        let taps = (&self.conv_weight[..], self.conv_bias.as_deref());
        conv_silu(taps, &conv_in, &mut slot.conv, [&mut x], 0, hooks);
        hooks.pass(Point::Value, &mut x);

        let [mut delta, mut b, mut c] = self.select(&x);
        hooks.pass(Point::Key, &mut b);
        hooks.pass(Point::Query, &mut c);
        hooks.pass(Point::Delta, &mut delta);

        let (inputs, mut gated) = ([&delta[..], &b, &c, &x], Room::new(rows * e));
        if hooks.unattended() {
            self.scan(inputs, &mut slot.state, Wanted::Gated(&gate), &mut gated);
        } else {
            let mut y = Room::new(rows * e);
            self.scan(inputs, &mut slot.state, Wanted::Output, &mut y);
            hooks.pass(Point::Core, &mut y);
            silu_mul(&gate, &y, &mut gated);
        }
        if let Some(norm) = &self.out_norm {
            norm.apply(&mut gated);
        }
        linear(&self.out_proj, self.out_bias.as_deref(), &gated, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let n = self.spec.state_dim;
        let (delta, offset) = (tape.strided(Point::Delta, head, 1), head / self.head_width() * n);
        draw(&Lowered::Recurrent(Recurrent {
            tokens: tape.positions().len(),
            query: tape.strided(Point::Query, offset, n),
            key: tape.strided(Point::Key, offset, n),
            weight: Some(delta),
            decay: Decay::Diagonal { log: delta, rates: self.rates(head) },
            diagonal: self.d[head],
            bonus: None,
            normaliser: None,
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let row = |p| tape.row(p, position);
        match point {
            Point::Decay => {
                let Some(delta) = row(Point::Delta) else { return false };
                let start = out.len();
                for channel in heads {
                    out.extend(self.rates(channel).iter().map(|a| delta[channel] * a));
                }
                exp_slice(&mut out[start..]);
            }
            Point::Write => {
                let (Some(delta), Some(b), Some(x)) = (row(Point::Delta), row(Point::Key), row(Point::Value)) else {
                    return false;
                };
                let start = out.len();
                let key_norms: Vec<f32> = b.chunks_exact(self.spec.state_dim).map(l2_norm).collect();
                let first = heads.start;
                out.extend(delta[heads.clone()].iter().zip(&x[heads]).map(|(delta, x)| delta * x.abs()));
                let (strengths, width) = (&mut out[start..], self.head_width());
                for (index, norm) in key_norms.iter().enumerate() {
                    let own = |channel: usize| channel.saturating_sub(first).min(strengths.len());
                    let range = own(index * width)..own((index + 1) * width);
                    strengths[range].iter_mut().for_each(|write| *write *= norm);
                }
            }
            Point::Read => {
                let (Some(y), Some(x)) = (row(Point::Core), row(Point::Value)) else { return false };
                let (y, x, d) = (&y[heads.clone()], &x[heads.clone()], &self.d[heads]);
                out.extend(y.iter().zip(x).zip(d).map(|((y, x), d)| (y - d * x).abs()));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |p| tape.rows(p, positions.clone()).unwrap_or_default();
        let (delta, b, c, x) = (rows(Point::Delta), rows(Point::Key), rows(Point::Query), rows(Point::Value));
        self.scan([delta, b, c, x], state, Wanted::State, &mut []);
    }

    fn fold_norms(&self, tape: &LayerTape, position: usize, state: &mut [f32], norms: &mut Vec<f32>) {
        let [delta, b, c, x] = [Point::Delta, Point::Key, Point::Query, Point::Value]
            .map(|point| tape.row(point, position).unwrap_or_default());
        let start = norms.len();
        norms.resize(start + self.spec.channels, 0.0);
        self.scan([delta, b, c, x], state, Wanted::Norms, &mut norms[start..]);
    }

    fn slowest_decay(&self, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let Some(delta) = tape.row(Point::Delta, position) else { return false };
        let start = out.len();
        out.extend(delta[heads.clone()].iter().zip(&self.slowest[heads]).map(|(delta, rate)| delta * rate));
        exp_slice(&mut out[start..]);
        true
    }

    fn surroundings(&self, head: usize, _channel: usize) -> Option<Surroundings<'_>> {
        let k = self.spec.conv_taps;
        Some(Surroundings {
            taps: &self.conv_weight[head * k..(head + 1) * k],
            bias: self.conv_bias.as_ref().map_or(0.0, |b| b[head]),
            activated: true,
        })
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, _channel: usize) -> f32 {
        let Some(z) = tape.row(Point::Gate, position) else { return f32::NAN };
        let Some(norm) = &self.out_norm else { return silu(z[head]) };
        let Some(y) = tape.row(Point::Core, position) else { return f32::NAN };
        let square: f32 = y.iter().zip(z).map(|(y, z)| (y * silu(*z)).powi(2)).sum();
        silu(z[head]) * norm.scale[head] / (square / y.len() as f32 + norm.spec.eps).sqrt()
    }
}
