//! The place of a mixer in a layer that has none.

use std::ops::Range;

use statescope_kernels::mixing::Lowered;

use super::{Mixer, StateSlot};
use crate::hooks::Hooks;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Mixes nothing: the layer is feed-forward alone.
pub struct NoMixer {
    pub hidden_size: usize,
}

impl Mixer for NoMixer {
    fn geometry(&self) -> Geometry {
        Geometry {
            kind: MixerKind::FeedForward,
            heads: 1,
            head_dim: self.hidden_size,
            state_dim: 0,
            groups: 1,
            rank: 1,
            decay_dim: 0,
            conv_taps: 0,
            gated: false,
            window: None,
            state_bytes: 0,
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        StateSlot::default()
    }

    fn prefill(&self, _xs: &[f32], _slot: &mut StateSlot, _hooks: &mut Hooks<'_>, out: &mut [f32]) {
        out.fill(0.0);
    }

    fn lower(&self, _tape: &LayerTape, _head: usize, _draw: &mut dyn FnMut(&Lowered<'_>)) {}

    fn derive(
        &self,
        _point: Point,
        _tape: &LayerTape,
        _position: usize,
        _heads: Range<usize>,
        _out: &mut Vec<f32>,
    ) -> bool {
        false
    }

    fn fold(&self, _tape: &LayerTape, _positions: Range<usize>, _state: &mut [f32]) {}
}
