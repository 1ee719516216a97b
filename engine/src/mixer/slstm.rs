//! The scalar LSTM of xLSTM (Beck et al. 2024, arXiv 2405.04517), in a layout of our own (`assets/layouts.md`).
//!
//! ```text
//! u' = silu(conv(u))          ĩ = W_i u' + R_i h_{t−1} + b, f̃ likewise          z̃ = W_z u + R_z h_{t−1} + b, õ likewise          W, R block-diagonal
//! m_t = max(ln σ(f̃_t) + m_{t−1}, ĩ_t)          f = σ(f̃_t) e^{m_{t−1} − m_t}, i = e^{ĩ_t − m_t}
//! c_t = f c_{t−1} + i tanh(z̃_t)          n_t = f n_{t−1} + i          h_t = σ(õ_t) c_t / n_t          per channel
//! out = LN_head(h)
//! ```
//!
//! The gates see what was read before, so nothing but a step after the other computes it, and no matrix is that of the map from the
//! input. Given the gates of a run, h is linear in the values tanh(z̃): M_ij = σ(õ_i) i_j Π_{s=j+1..i} f_s / n_i, whose rows sum to σ(õ_i).
//! That is what is drawn: exact for this text.

use std::ops::Range;

use statescope_kernels::activation::{sigmoid, softplus};
use statescope_kernels::channel_scan::ChannelScan;
use statescope_kernels::conv::causal_conv_silu;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent, Strided};

use super::rg_lru::Blocks;
use super::{Mixer, StateSlot, constant, derive_of_channels, fold_channels, head_layer_norm, project};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::SlstmSpec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// m before the first token: its input then comes in whole. Finite, so that differences are.
const EMPTY: f32 = -1e30;
/// Logarithm of a decay of which nothing is left in f32.
const FORGOTTEN: f32 = -104.0;

/// Weights of one sLSTM. Every channel is a head of its own matrix; channels share the blocks of W and R by cell head.
pub struct Slstm {
    spec: SlstmSpec,
    /// `[C, K]`.
    taps: Vec<f32>,
    conv_bias: Vec<f32>,
    /// Of ĩ, f̃, z̃ and õ.
    inputs: [Blocks; 4],
    /// R by cell head, `[4B, B]`: the rows of ĩ, f̃, z̃, õ.
    recurrent: Vec<Matrix>,
    /// `[C]`.
    norm: Vec<f32>,
}

impl Slstm {
    pub fn load(spec: &SlstmSpec, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let SlstmSpec { channels, heads, conv_taps, .. } = *spec;
        let width = channels / heads;
        let block = |name: &str| Blocks::load(name, heads, width, scope);
        // `[4 H, in, out]`.
        let stored = scope.stacked_matrix("recurrent_weight", 4 * heads, width, width)?;
        let part =
            |index: usize| stored.pick_rows(std::slice::from_ref(&(index * width..(index + 1) * width))).transposed();
        let of_head = |head: usize| Matrix::stacked(&[0, 1, 2, 3].map(|gate| part(gate * heads + head)));
        Ok(Self {
            taps: scope.tensor("conv1d.weight", &[channels, 1, conv_taps])?,
            conv_bias: scope.vector("conv1d.bias", channels)?,
            inputs: [block("input_gate")?, block("forget_gate")?, block("cell_input")?, block("output_gate")?],
            recurrent: (0..heads).map(of_head).collect(),
            norm: scope.vector("group_norm.weight", channels)?,
            spec: spec.clone(),
        })
    }
}

impl Mixer for Slstm {
    fn geometry(&self) -> Geometry {
        let SlstmSpec { channels, conv_taps, .. } = self.spec;
        Geometry {
            kind: MixerKind::Slstm,
            heads: channels,
            head_dim: 1,
            state_dim: 1,
            groups: channels,
            rank: 1,
            decay_dim: 1,
            // The convolution is in front of the gates, not of the values.
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: (conv_taps + 3) * channels * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    /// State: c. Carried: n, m, h, `[C]` each.
    fn slot(&self) -> StateSlot {
        let channels = self.spec.channels;
        let mut carried = vec![0.0; 3 * channels];
        carried[channels..2 * channels].fill(EMPTY);
        StateSlot {
            state: vec![0.0; channels],
            conv: vec![0.0; (self.spec.conv_taps - 1) * channels],
            carried,
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let channels = self.spec.channels;
        let width = channels / self.recurrent.len();
        let mut convolved = vec![0.0; xs.len()];
        causal_conv_silu(xs, &self.taps, Some(&self.conv_bias), &mut slot.conv, &mut [&mut convolved]);
        let [of_i, of_f, of_z, of_o] = &self.inputs;
        let inputs = [of_i.apply(&convolved), of_f.apply(&convolved), of_z.apply(xs), of_o.apply(xs)];

        let (n, rest) = slot.carried.split_at_mut(channels);
        let (m, h) = rest.split_at_mut(channels);
        let mut all = Vec::with_capacity(xs.len());
        for token in 0..xs.len() / channels {
            let mut preact = inputs.each_ref().map(|of| of[token * channels..(token + 1) * channels].to_vec());
            for (head, matrix) in self.recurrent.iter().enumerate() {
                let at = head * width..(head + 1) * width;
                let seen = project(matrix, None, &h[at.clone()]);
                for (of, seen) in preact.iter_mut().zip(seen.chunks_exact(width)) {
                    of[at.clone()].iter_mut().zip(seen).for_each(|(x, seen)| *x += seen);
                }
            }
            let [mut input, mut forget, mut value, mut gate] = preact;
            let mut log_decay = vec![0.0; channels];
            for (c, m) in m.iter_mut().enumerate() {
                let kept = *m - softplus(-forget[c]);
                let next = kept.max(input[c]);
                log_decay[c] = (kept - next).max(FORGOTTEN);
                input[c] = (input[c] - next).exp();
                forget[c] = sigmoid(forget[c]);
                value[c] = value[c].tanh();
                *m = next;
            }
            hooks.pass_token(token, Point::ForgetGate, &mut forget);
            hooks.pass_token(token, Point::LogDecay, &mut log_decay);
            hooks.pass_token(token, Point::InputGate, &mut input);
            hooks.pass_token(token, Point::Value, &mut value);
            hooks.pass_token(token, Point::Gate, &mut gate);
            let ones = vec![1.0; channels];
            let (mut normaliser, mut y) = (vec![0.0; channels], vec![0.0; channels]);
            let scan = ChannelScan { channels, log_decay: &log_decay, input: &input, x: &value, bonus: None };
            scan.forward(&mut slot.state, &mut y);
            ChannelScan { x: &ones, ..scan }.forward(n, &mut normaliser);
            hooks.pass_token(token, Point::Normaliser, &mut normaliser);
            y.iter_mut().zip(gate.iter().zip(&normaliser)).for_each(|(y, (o, n))| *y *= sigmoid(*o) / n);
            hooks.pass_token(token, Point::Core, &mut y);
            h.copy_from_slice(&y);
            all.extend(y);
        }
        out.copy_from_slice(&head_layer_norm(&all, width, &self.norm, None, self.spec.norm_eps));
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (tokens, column) = (tape.positions().len(), |point| tape.strided(point, head, 1));
        let gate = column(Point::Gate);
        let open: Vec<f32> = (0..tokens).map(|t| sigmoid(gate.at(t))).collect();
        draw(&Lowered::Recurrent(Recurrent {
            weight: Some(column(Point::InputGate)),
            decay: Decay::Scalar { log: column(Point::LogDecay), factor: 1.0 },
            normaliser: Some(column(Point::Normaliser)),
            ..Recurrent::new(tokens, Strided { data: &open, stride: 1, offset: 0, width: 1 }, constant(&[1.0]))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        derive_of_channels((point, Point::InputGate), tape, position, heads, out)
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        fold_channels(tape, positions, Point::InputGate, state);
    }
}
