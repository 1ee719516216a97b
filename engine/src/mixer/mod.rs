//! Token mixers: what happens between the tokens of a layer. One file a family, one trait for all.
//!
//! A mixer turns xs `[T, d]` into out `[T, d]` and carries its memory in a [`StateSlot`]. Every quantity it computes passes the
//! hooks once. What people look at later (gates, strengths, states, matrices) it derives from the recorded [`LayerTape`], so that
//! looking costs nothing while nobody looks, and the picture comes from the numbers of the run itself.

pub mod attention;
pub mod delta_rule;
pub mod h3;
pub mod hyena;
pub mod linear_attention;
pub mod mamba1;
pub mod mamba2;
pub mod mamba3;
pub mod mamba3_mimo;
pub mod mlstm;
pub mod none;
pub mod rg_lru;
pub mod rwkv4;
pub mod rwkv5;
pub mod rwkv6;
pub mod rwkv7;
pub mod s4;
pub mod short_conv;
pub mod slot;
pub mod slstm;
mod trapezoid;

use std::ops::Range;

use statescope_kernels::activation::{exp_slice, silu_slice};
use statescope_kernels::channel_scan::ChannelScan;
use statescope_kernels::conv::{causal_conv_parts, causal_conv_silu};
#[cfg(feature = "cuda")]
use statescope_kernels::cuda;
use statescope_kernels::linear::{linear, linear_parts};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Lowered, Strided};
use statescope_kernels::norm::layer_norm;
use statescope_kernels::par;
use statescope_kernels::reduce::l2_norm;
use statescope_kernels::room::Room;

use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::MixerSpec;
use crate::protocol::{Geometry, Point};
use crate::tape::LayerTape;
use slot::KvCache;
pub use slot::StateSlot;

/// What mixers hand on to later layers within one pass.
#[derive(Default)]
pub struct Handed {
    /// RWKV-7: the values of the first layer `[T, d]`; empty until it has run.
    first_values: Vec<f32>,
    /// Keys and values that several layers read, by the layer they belong to.
    lent: Vec<(usize, Lent)>,
}

impl Handed {
    fn lend(&mut self, layer: usize, lent: Lent) {
        self.lent.retain(|(other, _)| *other != layer);
        self.lent.push((layer, lent));
    }

    /// # Panics
    /// That layer has lent nothing in this pass: a mistake in the spec.
    fn lent_by(&self, layer: usize) -> &Lent {
        let found = self.lent.iter().find(|(other, _)| *other == layer);
        &found.unwrap_or_else(|| panic!("layer {layer} has lent no keys and values")).1
    }
}

/// The keys and values of an attention.
struct Lent {
    /// Position of the first token of the pass.
    first: usize,
    /// Those of the tokens of the pass, `[T, H_kv, head_dim]`.
    keys: Room,
    values: Room,
    /// Those of the whole text.
    cache: KvCache,
}

/// A causal token mixer.
pub trait Mixer: Send + Sync {
    fn geometry(&self) -> Geometry;

    /// An empty memory.
    fn slot(&self) -> StateSlot;

    /// Mixes the next `T` tokens: xs `[T, d]` (normed) → out `[T, d]`.
    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]);

    /// Mixes one token.
    fn step(&self, x: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        self.prefill(x, slot, hooks, out);
    }

    /// As [`Mixer::prefill`], for a mixer that reads what an earlier layer made of the same tokens, or is read so by later ones. False,
    /// and nothing done, for all others.
    fn prefill_after(
        &self,
        _xs: &[f32],
        _handed: &mut Handed,
        _slot: &mut StateSlot,
        _hooks: &mut Hooks<'_>,
        _out: &mut [f32],
    ) -> bool {
        false
    }

    /// The weights on a GPU, and what runs them there; none where no kernels do.
    #[cfg(feature = "cuda")]
    fn upload(&self, _to: &crate::device::Upload<'_>) -> cuda::Result<Option<crate::device::DeviceMixer>> {
        Ok(None)
    }

    /// Calls `draw` with the matrix of one head over the recorded tokens, ready to be drawn row by row.
    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>));

    /// Appends what `heads` have of a quantity of the token at `position` that is not recorded but follows from what is; false if
    /// there is none.
    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool;

    /// Advances a recurrent state `[H, P, N]` over recorded tokens. Attention has none and does nothing.
    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]);

    /// As [`Mixer::fold`] over one token, appending ‖S‖_F `[H]` after it.
    fn fold_norms(&self, tape: &LayerTape, position: usize, state: &mut [f32], norms: &mut Vec<f32>) {
        self.fold(tape, position..position + 1, state);
        let width = state.len() / self.geometry().heads;
        norms.extend(state.chunks_exact(width).map(l2_norm));
    }

    /// Appends the largest decay of each of `heads`, where a head has several and this is cheaper than all of them.
    fn slowest_decay(&self, _tape: &LayerTape, _position: usize, _heads: Range<usize>, _out: &mut Vec<f32>) -> bool {
        false
    }

    /// What surrounds the matrix of one channel, for the extended matrices; none without a convolution.
    fn surroundings(&self, _head: usize, _channel: usize) -> Option<Surroundings<'_>> {
        None
    }

    /// What the core output of (head, channel) at `position` holds besides M·v: a constant input.
    fn offset(&self, _tape: &LayerTape, _position: usize, _head: usize, _channel: usize) -> f32 {
        0.0
    }

    /// Factor from the core output of (head, channel) at `position` to what enters the output projection.
    fn output_gain(&self, _tape: &LayerTape, _position: usize, _head: usize, _channel: usize) -> f32 {
        1.0
    }
}

/// The short convolution around a channel of M.
pub struct Surroundings<'a> {
    /// Taps `[K]`, the last one for the current token.
    pub taps: &'a [f32],
    pub bias: f32,
    /// Whether SiLU follows.
    pub activated: bool,
}

/// Builds the mixer that a spec describes from the tensors below `scope`.
pub fn load(spec: &MixerSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Box<dyn Mixer>, LoadError> {
    Ok(match spec {
        MixerSpec::Mamba1(spec) => Box::new(mamba1::Mamba1::load(spec, hidden_size, scope)?),
        MixerSpec::Mamba2(spec) => Box::new(mamba2::Mamba2::load(spec, hidden_size, scope)?),
        MixerSpec::Mamba3(spec) if spec.ranks.is_some() => {
            Box::new(mamba3_mimo::Mamba3Mimo::load(spec, hidden_size, scope)?)
        }
        MixerSpec::Mamba3(spec) => Box::new(mamba3::Mamba3::load(spec, hidden_size, scope)?),
        MixerSpec::Attention(spec) => {
            Box::new(attention::SoftmaxAttention::load(spec, hidden_size, hidden_size, scope)?)
        }
        MixerSpec::DeltaRule(spec) => Box::new(delta_rule::GatedDeltaRule::load(spec, hidden_size, scope)?),
        MixerSpec::LinearAttention(spec) => {
            Box::new(linear_attention::LinearAttention::load(spec, hidden_size, scope)?)
        }
        MixerSpec::Rwkv4(spec) => Box::new(rwkv4::Rwkv4::load(spec, hidden_size, scope)?),
        MixerSpec::Rwkv5(spec) => Box::new(rwkv5::Rwkv5::load(spec, hidden_size, scope)?),
        MixerSpec::Rwkv6(spec) => Box::new(rwkv6::Rwkv6::load(spec, hidden_size, scope)?),
        MixerSpec::Rwkv7(spec) => Box::new(rwkv7::Rwkv7::load(spec, hidden_size, scope)?),
        MixerSpec::RgLru(spec) => Box::new(rg_lru::RgLru::load(spec, hidden_size, scope)?),
        MixerSpec::Mlstm(spec) => Box::new(mlstm::Mlstm::load(spec, hidden_size, scope)?),
        MixerSpec::Slstm(spec) => Box::new(slstm::Slstm::load(spec, scope)?),
        MixerSpec::S4(spec) => Box::new(s4::S4::load(spec, hidden_size, scope)?),
        MixerSpec::H3(spec) => Box::new(h3::H3::load(spec, hidden_size, scope)?),
        MixerSpec::Hyena(spec) => Box::new(hyena::Hyena::load(spec, hidden_size, scope)?),
        MixerSpec::ShortConv(spec) => Box::new(short_conv::ShortConv::load(spec, hidden_size, scope)?),
    })
}

/// A = −exp(A_log).
fn negative_exp(log: Vec<f32>) -> Vec<f32> {
    log.into_iter().map(|a| -a.exp()).collect()
}

/// Runs a matrix over rows of its width: xs `[…, in]` → `[…, out]`.
fn project(matrix: &Matrix, bias: Option<&[f32]>, xs: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; xs.len() / matrix.cols() * matrix.rows()];
    linear(matrix, bias, xs, &mut out);
    out
}

/// [`project`], by columns: the first `[…, widths[0]]` and so on.
fn project_parts<const N: usize>(matrix: &Matrix, bias: Option<&[f32]>, xs: &[f32], widths: [usize; N]) -> [Room; N] {
    let rows = xs.len() / matrix.cols();
    let mut parts = widths.map(|width| Room::new(rows * width));
    linear_parts(matrix, bias, xs, &mut parts.each_mut().map(|part| &mut part[..]));
    parts
}

/// A short convolution (weight, bias) of xs `[…, C]` and its SiLU, by columns; between the two stands [`Point::Conv`] of part `shown`.
fn conv_silu<const N: usize>(
    (weight, bias): (&[f32], Option<&[f32]>),
    xs: &[f32],
    history: &mut [f32],
    mut parts: [&mut [f32]; N],
    shown: usize,
    hooks: &mut Hooks<'_>,
) {
    if hooks.unattended() {
        return causal_conv_silu(xs, weight, bias, history, &mut parts);
    }
    causal_conv_parts(xs, weight, bias, history, &mut parts);
    hooks.pass(Point::Conv, parts[shown]);
    parts.into_iter().for_each(silu_slice);
}

/// What follows from the record of a recurrence of one number a channel whose writes `input` weighs: decay, |write| and |read|.
fn derive_of_channels(
    (point, input): (Point, Point),
    tape: &LayerTape,
    position: usize,
    channels: Range<usize>,
    out: &mut Vec<f32>,
) -> bool {
    let row = |point| tape.row(point, position);
    match point {
        Point::Decay => {
            let Some(log) = row(Point::LogDecay) else { return false };
            out.extend(log[channels].iter().map(|log| log.exp()));
        }
        Point::Write => {
            let (Some(input), Some(x)) = (row(input), row(Point::Value)) else { return false };
            out.extend(channels.map(|c| (input[c] * x[c]).abs()));
        }
        Point::Read => {
            let Some(y) = row(Point::Core) else { return false };
            out.extend(channels.map(|c| y[c].abs()));
        }
        _ => return false,
    }
    true
}

/// Advances such a recurrence over recorded tokens.
fn fold_channels(tape: &LayerTape, positions: Range<usize>, input: Point, state: &mut [f32]) {
    let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
    let (log_decay, input, x) = (rows(Point::LogDecay), rows(input), rows(Point::Value));
    ChannelScan { channels: state.len(), log_decay, input, x, bonus: None }.fold(state);
}

/// What follows from the record of a state `[P, N]` a head with a decay by key: the decays, ‖k‖‖v‖ and ‖y‖.
fn derive_of_keys(
    point: Point,
    tape: &LayerTape,
    position: usize,
    heads: Range<usize>,
    [p, n]: [usize; 2],
    out: &mut Vec<f32>,
) -> bool {
    let row = |point| tape.row(point, position);
    match point {
        Point::Decay => {
            let Some(log) = row(Point::LogDecay) else { return false };
            let start = out.len();
            out.extend_from_slice(&log[heads.start * n..heads.end * n]);
            exp_slice(&mut out[start..]);
        }
        Point::Write => {
            let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
            out.extend(heads.map(|h| l2_norm(&k[h * n..(h + 1) * n]) * l2_norm(&v[h * p..(h + 1) * p])));
        }
        Point::Read => {
            let Some(y) = row(Point::Core) else { return false };
            out.extend(heads.map(|h| l2_norm(&y[h * p..(h + 1) * p])));
        }
        _ => return false,
    }
    true
}

/// a ⊙ b.
fn products(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// Layer norm inside each head of ys `[T, H, head_dim]`, then weight and bias over all heads, `[H · head_dim]`.
fn head_layer_norm(ys: &[f32], head_dim: usize, weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let mut normed = vec![0.0; ys.len()];
    layer_norm(ys, &vec![1.0; head_dim], None, eps, &mut normed);
    for row in normed.chunks_exact_mut(weight.len()) {
        row.iter_mut().zip(weight).for_each(|(y, weight)| *y *= weight);
        row.iter_mut().zip(bias.unwrap_or_default()).for_each(|(y, bias)| *y += bias);
    }
    normed
}

/// One number for all tokens, as a column of the record.
fn constant(value: &[f32]) -> Strided<'_> {
    Strided { data: value, stride: 0, offset: 0, width: 1 }
}

/// The tokens before those of xs `[T, d]`: each row is the one before it, the first is `last` `[d]`, which becomes the newest of xs
/// (RWKV's token shift).
pub fn shifted(xs: &[f32], last: &mut [f32]) -> Vec<f32> {
    let width = last.len();
    let mut before = Vec::with_capacity(xs.len());
    before.extend_from_slice(&last[..width.min(xs.len())]);
    if let Some(newest) = xs.len().checked_sub(width) {
        before.extend_from_slice(&xs[..newest]);
        last.copy_from_slice(&xs[newest..]);
    }
    before
}

/// x m + x' (1 − m): every token mixed with the one before it, m `[d]`.
pub fn interpolated(xs: &[f32], before: &[f32], share: &[f32]) -> Vec<f32> {
    let rows = xs.chunks_exact(share.len()).zip(before.chunks_exact(share.len()));
    rows.flat_map(|(x, before)| x.iter().zip(before).zip(share).map(|((x, b), m)| x * m + b * (1.0 - m))).collect()
}

/// Copies columns `from..from + width` of xs `[T, stride]` into a dense `[T, width]`.
fn columns(xs: &[f32], stride: usize, from: usize, width: usize) -> Room {
    /// Rows that a thread copies at a time.
    const ROWS: usize = 32;
    let rows = xs.len() / stride;
    let mut dense = Room::new(rows * width);
    // A number copied takes as long as a multiply-add or two.
    par::for_each_chunk(&mut dense, ROWS * width, 2 * rows * width, |i, dense| {
        for (row, to) in xs.chunks_exact(stride).skip(i * ROWS).zip(dense.chunks_exact_mut(width)) {
            to.copy_from_slice(&row[from..from + width]);
        }
    });
    dense
}
