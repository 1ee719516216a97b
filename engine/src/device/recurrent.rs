//! What Mamba and Mamba-2 have in common: the maps around the recurrence, the convolution in front of it, and how all of it runs as a layer
//! of a token in one launch.

use statescope_kernels::cuda::{Buffer, Conv, Convolved, DeviceMatrix, Gpu, Result, TokenKind, TokenLayer, TokenShape};

use super::memory::Slot;
use super::upload::{Output, Upload};
use super::{TokenPart, all};

/// Weights, and room for what one token makes.
pub(super) struct Recurrent {
    pub(super) in_proj: DeviceMatrix,
    pub(super) in_bias: Option<Buffer<f32>>,
    pub(super) conv_weight: Buffer<f32>,
    pub(super) conv_bias: Option<Buffer<f32>>,
    pub(super) dt_bias: Buffer<f32>,
    pub(super) a: Buffer<f32>,
    pub(super) d: Buffer<f32>,
    pub(super) output: Output,
    pub(super) made: Made,
}

/// One token's numbers: what `in_proj` makes; what is convolved, before and after silu `[C]`; Δ; y before and after its gate `[E]`.
pub(super) struct Made {
    pub(super) projected: Buffer<f32>,
    pub(super) convolved: Buffer<f32>,
    pub(super) activated: Buffer<f32>,
    pub(super) delta: Buffer<f32>,
    pub(super) core: Buffer<f32>,
    pub(super) gated: Buffer<f32>,
}

impl Made {
    /// Room for `projected`, convolved channels, Δ and y.
    pub(super) fn room(to: &Upload<'_>, [projected, convolved, delta, inner]: [usize; 4]) -> Result<Self> {
        Ok(Self {
            projected: to.room(projected)?,
            convolved: to.room(convolved)?,
            activated: to.room(convolved)?,
            delta: to.room(delta)?,
            core: to.room(inner)?,
            gated: to.room(inner)?,
        })
    }
}

impl Recurrent {
    /// C: channels that are convolved.
    fn convolved_channels(&self) -> usize {
        self.made.convolved.len()
    }

    /// Empty memory with a state of so many numbers.
    pub(super) fn slot(&self, gpu: &Gpu, state: usize) -> Result<Slot> {
        // The token that comes is no part of the history.
        let history = self.conv_weight.len() - self.convolved_channels();
        Ok(Slot { state: gpu.zeros(state)?, conv: gpu.zeros(history)?, cache: None, kv_width: 0 })
    }

    /// The convolution of one token's `projected` from a place on.
    pub(super) fn convolved<'a>(&'a self, from: usize, slot: &'a Slot) -> Convolved<'a> {
        Convolved {
            from,
            channels: self.convolved_channels(),
            weight: &self.conv_weight,
            bias: self.conv_bias.as_ref(),
            history: &slot.conv,
            convolved: all(&self.made.convolved),
            activated: all(&self.made.activated),
        }
    }

    /// That of many tokens; `history` is what they leave.
    pub(super) fn conv<'a>(&'a self, slot: &'a Slot, history: &'a Buffer<f32>, silu: bool) -> Conv<'a> {
        Conv {
            weight: &self.conv_weight,
            bias: self.conv_bias.as_ref(),
            history: (&slot.conv, history),
            channels: self.convolved_channels(),
            silu,
        }
    }

    /// A layer of a token in one launch, of states of `state_dim`; none with biases that it does not know.
    pub(super) fn token_layer(
        &self,
        part: &TokenPart<'_>,
        state_dim: usize,
        kind: TokenKind,
    ) -> Option<(TokenShape, TokenLayer)> {
        let (None, None) = (&self.in_bias, &self.output.bias) else { return None };
        let made = &self.made;
        let shape = TokenShape {
            width: self.in_proj.cols(),
            inner: made.gated.len(),
            state_dim,
            eps: part.norm.eps,
            output_scale: part.output_scale,
            residual_scale: part.residual_scale,
            ..TokenShape::default()
        };
        let layer = TokenLayer {
            in_proj: self.in_proj.clone(),
            out_proj: self.output.weight.clone(),
            norm: part.norm.weight.clone(),
            conv_weight: self.conv_weight.clone(),
            conv_bias: self.conv_bias.clone(),
            dt_bias: self.dt_bias.clone(),
            a: self.a.clone(),
            d: self.d.clone(),
            state: part.slot.state.clone(),
            history: part.slot.conv.clone(),
            projected: made.projected.clone(),
            convolved: made.convolved.clone(),
            activated: made.activated.clone(),
            delta: made.delta.clone(),
            core: made.core.clone(),
            gated: made.gated.clone(),
            output: self.output.out.clone(),
            resid: part.resid.clone(),
            kind,
        };
        Some((shape, layer))
    }
}
