//! The recurrent block of Griffin and RecurrentGemma: a real-gated linear recurrent unit (De et al. 2024, arXiv 2402.19427).
//!
//! ```text
//! x = conv(W_x u + b)          i = σ(G_i x + b_i), r = σ(G_r x + b_r)          G block-diagonal, one block a head
//! log a_t = −8 r_t softplus(Λ)          h_t = a_t h_{t−1} + √(1 − a_t²) i_t x_t          per channel; the first token enters whole
//! out = W_o (h ⊙ gelu(W_y u + b)) + b
//! ```

use std::ops::Range;

use statescope_kernels::activation::{gelu_tanh_slice, sigmoid_slice, softplus};
use statescope_kernels::channel_scan::ChannelScan;
use statescope_kernels::conv::causal_conv;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent};

use super::{Mixer, StateSlot, Surroundings, columns, constant, derive_of_channels, fold_channels, project};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::RgLruSpec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// c of the paper: how much faster than softplus(Λ) a state fades at r = 1.
const SHARPNESS: f32 = 8.0;
/// Logarithm of the decay at the first token, of which nothing is left in f32.
const RESET: f32 = -104.0;

/// Weights of one recurrent block. Every channel is a head of its own.
pub struct RgLru {
    spec: RgLruSpec,
    x: Affine,
    y: Affine,
    out: Affine,
    /// `[C, K]`.
    taps: Vec<f32>,
    conv_bias: Vec<f32>,
    input_gate: Blocks,
    recurrence_gate: Blocks,
    /// −8 softplus(Λ) `[C]`.
    rates: Vec<f32>,
}

/// W x + b.
struct Affine {
    matrix: Matrix,
    bias: Vec<f32>,
}

impl Affine {
    fn load(name: &str, rows: usize, cols: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let scope = scope.scope(name);
        Ok(Self { matrix: scope.matrix("weight", rows, cols)?, bias: scope.vector("bias", rows)? })
    }

    fn forward(&self, xs: &[f32]) -> Vec<f32> {
        project(&self.matrix, Some(&self.bias), xs)
    }
}

/// A block-diagonal map: every head its own `[B, B]`.
pub(super) struct Blocks {
    matrices: Vec<Matrix>,
    /// `[C]`.
    bias: Vec<f32>,
}

impl Blocks {
    /// `{name}_weight` and `{name}_bias`.
    pub(super) fn load(name: &str, heads: usize, width: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        // Stored `[in, out]`.
        let stored = scope.stacked_matrix(&format!("{name}_weight"), heads, width, width)?;
        let block =
            |head: usize| stored.pick_rows(std::slice::from_ref(&(head * width..(head + 1) * width))).transposed();
        Ok(Self {
            matrices: (0..heads).map(block).collect(),
            bias: scope.tensor(&format!("{name}_bias"), &[heads, width])?,
        })
    }

    /// σ(G x + b) of xs `[T, C]`.
    fn gate(&self, xs: &[f32]) -> Vec<f32> {
        let mut out = self.apply(xs);
        sigmoid_slice(&mut out);
        out
    }

    /// G x + b of xs `[T, C]`.
    pub(super) fn apply(&self, xs: &[f32]) -> Vec<f32> {
        let (channels, width) = (self.bias.len(), self.matrices[0].rows());
        let mut out = vec![0.0; xs.len()];
        for (head, matrix) in self.matrices.iter().enumerate() {
            let from = head * width;
            let block = project(matrix, Some(&self.bias[from..from + width]), &columns(xs, channels, from, width));
            for (out, row) in out.chunks_exact_mut(channels).zip(block.chunks_exact(width)) {
                out[from..from + width].copy_from_slice(row);
            }
        }
        out
    }
}

impl RgLru {
    pub fn load(spec: &RgLruSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (channels, unit) = (spec.channels, scope.scope("rg_lru"));
        let blocks = |name: &str| Blocks::load(name, spec.gate_heads, channels / spec.gate_heads, &unit);
        let parameter = unit.vector("recurrent_param", channels)?;
        Ok(Self {
            x: Affine::load("linear_x", channels, hidden_size, scope)?,
            y: Affine::load("linear_y", channels, hidden_size, scope)?,
            out: Affine::load("linear_out", hidden_size, channels, scope)?,
            taps: scope.tensor("conv_1d.weight", &[channels, 1, spec.conv_taps])?,
            conv_bias: scope.vector("conv_1d.bias", channels)?,
            input_gate: blocks("input_gate")?,
            recurrence_gate: blocks("recurrent_gate")?,
            rates: parameter.into_iter().map(|lambda| -SHARPNESS * softplus(lambda)).collect(),
            spec: spec.clone(),
        })
    }
}

impl Mixer for RgLru {
    fn geometry(&self) -> Geometry {
        let channels = self.spec.channels;
        Geometry {
            kind: MixerKind::RgLru,
            heads: channels,
            head_dim: 1,
            state_dim: 1,
            groups: channels,
            rank: 1,
            decay_dim: 1,
            conv_taps: self.spec.conv_taps,
            gated: true,
            window: None,
            state_bytes: self.spec.conv_taps * channels * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let channels = self.spec.channels;
        StateSlot {
            state: vec![0.0; channels],
            conv: vec![0.0; (self.spec.conv_taps - 1) * channels],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let channels = self.spec.channels;
        let mut gate = self.y.forward(xs);
        hooks.pass(Point::Gate, &mut gate);
        let mut input = self.x.forward(xs);
        hooks.pass(Point::ConvIn, &mut input);
        let mut x = vec![0.0; input.len()];
        causal_conv(&input, &self.taps, Some(&self.conv_bias), &mut slot.conv, &mut x);
        hooks.pass(Point::Conv, &mut x);
        hooks.pass(Point::Value, &mut x);

        let mut i = self.input_gate.gate(&x);
        let mut r = self.recurrence_gate.gate(&x);
        hooks.pass(Point::InputGate, &mut i);
        hooks.pass(Point::RecurrenceGate, &mut r);
        let mut log_decay = r;
        for row in log_decay.chunks_exact_mut(channels) {
            row.iter_mut().zip(&self.rates).for_each(|(log, rate)| *log *= rate);
        }
        if slot.position == 0 {
            log_decay.iter_mut().take(channels).for_each(|log| *log = RESET);
        }
        slot.position += x.len() / channels;
        hooks.pass(Point::LogDecay, &mut log_decay);
        // √(1 − a²) keeps the size of the state; 1 − e^{2 log a} in one step keeps the digits.
        let mut write = i;
        write.iter_mut().zip(&log_decay).for_each(|(i, log)| *i *= (-(2.0 * log).exp_m1()).sqrt());
        hooks.pass(Point::Key, &mut write);

        let mut y = vec![0.0; x.len()];
        let scan = ChannelScan { channels, log_decay: &log_decay, input: &write, x: &x, bonus: None };
        scan.forward(&mut slot.state, &mut y);
        hooks.pass(Point::Core, &mut y);
        gelu_tanh_slice(&mut gate);
        y.iter_mut().zip(&gate).for_each(|(y, gate)| *y *= gate);
        linear(&self.out.matrix, Some(&self.out.bias), &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (tokens, column) = (tape.positions().len(), |point| tape.strided(point, head, 1));
        draw(&Lowered::Recurrent(Recurrent {
            decay: Decay::Scalar { log: column(Point::LogDecay), factor: 1.0 },
            ..Recurrent::new(tokens, constant(&[1.0]), column(Point::Key))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        derive_of_channels((point, Point::Key), tape, position, heads, out)
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        fold_channels(tape, positions, Point::Key, state);
    }

    fn surroundings(&self, head: usize, _channel: usize) -> Option<Surroundings<'_>> {
        let taps = self.spec.conv_taps;
        let bias = self.conv_bias[head];
        Some(Surroundings { taps: &self.taps[head * taps..(head + 1) * taps], bias, activated: false })
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, _channel: usize) -> f32 {
        let Some(gate) = tape.row(Point::Gate, position) else { return f32::NAN };
        let mut gate = [gate[head]];
        gelu_tanh_slice(&mut gate);
        gate[0]
    }
}
