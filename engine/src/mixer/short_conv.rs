//! Double-gated short convolution, the mixer of LFM2 (Liquid AI 2025).
//!
//! ```text
//! [B; C; x] = W_in u          y_t = C_t ⊙ (b + Σ_k W_k ⊙ (B ⊙ x)_{t−K+1+k})          out = W_out y
//! ```
//!
//! It sees the last K tokens and nothing else: its state is a shift register of K − 1 values a channel.

use std::ops::Range;

use statescope_kernels::conv::causal_conv;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Lowered, Toeplitz};

use super::{Mixer, StateSlot, project_parts};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::ShortConvSpec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one short convolution. Every channel is a head of its own.
pub struct ShortConv {
    spec: ShortConvSpec,
    /// `[3d, d]`: B, C, x.
    in_proj: Matrix,
    in_bias: Option<Vec<f32>>,
    /// `[d, K]`, the last tap for the current token.
    taps: Vec<f32>,
    conv_bias: Option<Vec<f32>>,
    /// `[d, d]`.
    out_proj: Matrix,
    out_bias: Option<Vec<f32>>,
}

impl ShortConv {
    pub fn load(spec: &ShortConvSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let d = spec.channels;
        Ok(Self {
            in_proj: scope.matrix("in_proj.weight", 3 * d, hidden_size)?,
            in_bias: scope.vector_if(spec.bias, "in_proj.bias", 3 * d)?,
            taps: scope.tensor("conv1d.weight", &[d, 1, spec.taps])?,
            conv_bias: scope.vector_if(spec.bias, "conv1d.bias", d)?,
            out_proj: scope.matrix("out_proj.weight", hidden_size, d)?,
            out_bias: scope.vector_if(spec.bias, "out_proj.bias", hidden_size)?,
            spec: spec.clone(),
        })
    }
}

impl Mixer for ShortConv {
    fn geometry(&self) -> Geometry {
        let (d, history) = (self.spec.channels, self.spec.taps - 1);
        Geometry {
            kind: MixerKind::ShortConv,
            heads: d,
            head_dim: 1,
            state_dim: history,
            groups: d,
            rank: 1,
            decay_dim: 0,
            conv_taps: 0,
            gated: false,
            window: Some(self.spec.taps),
            state_bytes: d * history * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let history = vec![0.0; (self.spec.taps - 1) * self.spec.channels];
        StateSlot { state: history.clone(), conv: history, ..StateSlot::default() }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let d = self.spec.channels;
        let rows = xs.len() / self.in_proj.cols();
        let [mut b, mut c, mut x] = project_parts(&self.in_proj, self.in_bias.as_deref(), xs, [d; 3]);
        hooks.pass(Point::Key, &mut b);
        hooks.pass(Point::Query, &mut c);
        hooks.pass(Point::Value, &mut x);

        let written: Vec<f32> = b.iter().zip(&x).map(|(b, x)| b * x).collect();
        let mut y = vec![0.0; rows * d];
        causal_conv(&written, &self.taps, self.conv_bias.as_deref(), &mut slot.conv, &mut y);
        shift(&mut slot.state, &written, d);
        y.iter_mut().zip(&c).for_each(|(y, c)| *y *= c);
        hooks.pass(Point::Core, &mut y);
        linear(&self.out_proj, self.out_bias.as_deref(), &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        draw(&Lowered::Toeplitz(Toeplitz {
            tokens: tape.positions().len(),
            taps: &self.taps[head * self.spec.taps..(head + 1) * self.spec.taps],
            pre: tape.strided(Point::Key, head, 1),
            post: tape.strided(Point::Query, head, 1),
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let row = |point| tape.row(point, position);
        match point {
            Point::Write => {
                let (Some(b), Some(x)) = (row(Point::Key), row(Point::Value)) else { return false };
                out.extend(heads.map(|c| (b[c] * x[c]).abs()));
            }
            Point::Read => {
                let Some(y) = row(Point::Core) else { return false };
                out.extend(heads.map(|c| y[c].abs()));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        let written: Vec<f32> = rows(Point::Key).iter().zip(rows(Point::Value)).map(|(b, x)| b * x).collect();
        shift(state, &written, self.spec.channels);
    }

    fn offset(&self, tape: &LayerTape, position: usize, head: usize, _channel: usize) -> f32 {
        let Some(bias) = &self.conv_bias else { return 0.0 };
        tape.row(Point::Query, position).map_or(f32::NAN, |c| c[head] * bias[head])
    }
}

/// Pushes the rows of `written` `[T, d]` into a register `[d, 1, K − 1]`, oldest first.
fn shift(state: &mut [f32], written: &[f32], channels: usize) {
    let history = state.len() / channels;
    if history == 0 {
        return;
    }
    for row in written.chunks_exact(channels) {
        for (register, value) in state.chunks_exact_mut(history).zip(row) {
            register.copy_within(1.., 0);
            register[history - 1] = *value;
        }
    }
}
