//! Token mixers: what happens between the tokens of a layer. One file a family, one trait for all.
//!
//! A mixer turns xs `[T, d]` into out `[T, d]` and carries its memory in a [`StateSlot`]. Every quantity it computes passes the
//! hooks once. What people look at later (gates, strengths, states, matrices) it derives from the recorded [`LayerTape`], so that
//! looking costs nothing while nobody looks, and the picture comes from the numbers of the run itself.

pub mod attention;
pub mod delta_rule;
pub mod mamba1;
pub mod mamba2;
pub mod none;
pub mod short_conv;
pub mod slot;

use std::ops::Range;

use statescope_kernels::mixing::Lowered;
use statescope_kernels::reduce::l2_norm;

use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::MixerSpec;
use crate::protocol::{Geometry, Point};
use crate::tape::LayerTape;
pub use slot::StateSlot;

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
}

/// Builds the mixer that a spec describes from the tensors below `scope`.
pub fn load(spec: &MixerSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Box<dyn Mixer>, LoadError> {
    Ok(match spec {
        MixerSpec::Mamba1(spec) => Box::new(mamba1::Mamba1::load(spec, hidden_size, scope)?),
        MixerSpec::Mamba2(spec) => Box::new(mamba2::Mamba2::load(spec, hidden_size, scope)?),
        MixerSpec::Attention(spec) => {
            Box::new(attention::SoftmaxAttention::load(spec, hidden_size, hidden_size, scope)?)
        }
        MixerSpec::DeltaRule(spec) => Box::new(delta_rule::GatedDeltaRule::load(spec, hidden_size, scope)?),
        MixerSpec::ShortConv(spec) => Box::new(short_conv::ShortConv::load(spec, hidden_size, scope)?),
    })
}

/// A = −exp(A_log).
fn negative_exp(log: Vec<f32>) -> Vec<f32> {
    log.into_iter().map(|a| -a.exp()).collect()
}

/// Copies columns `from..from + width` of xs `[T, stride]` into a dense `[T, width]`.
fn columns(xs: &[f32], stride: usize, from: usize, width: usize) -> Vec<f32> {
    let mut dense = Vec::with_capacity(xs.len() / stride * width);
    for row in xs.chunks_exact(stride) {
        dense.extend_from_slice(&row[from..from + width]);
    }
    dense
}
