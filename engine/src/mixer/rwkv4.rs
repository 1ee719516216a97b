//! The time mixing of RWKV-4 (Peng et al. 2023, arXiv 2305.13048).
//!
//! ```text
//! k, v, r = W (u_t m + u_{t−1} (1 − m))          W and m of each
//! wkv_t = Σ_{s<t} e^{k_s + (t−1−s) w} v_s + e^{u + k_t} v_t, over the sum of the weights          per channel
//!       = (1 − c_t) h_{t−1} + c_t v_t          h_t = (1 − g_t) h_{t−1} + g_t v_t
//! out = W_o (σ(r) ⊙ wkv)
//! ```
//!
//! The state is the weighted mean h of the values so far; beside it goes the logarithm of the sum of their weights, from which
//! g and c follow. So the matrix is made of shares: its rows are positive and sum to 1.

use std::ops::Range;

use statescope_kernels::activation::{sigmoid, sigmoid_mul};
use statescope_kernels::channel_scan::{ChannelScan, WKV_EMPTY, wkv_gates};
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent, Strided};

use super::{Mixer, StateSlot, constant, derive_of_channels, fold_channels, interpolated, project, shifted};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::Rwkv4Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one time mixing. Every channel is a head of its own.
pub struct Rwkv4 {
    spec: Rwkv4Spec,
    key: Mixed,
    value: Mixed,
    receptance: Mixed,
    /// w `[C]`, negative: what the logarithm of a weight loses at every token.
    rates: Vec<f32>,
    /// u `[C]`.
    bonus: Vec<f32>,
    /// `[d, C]`.
    output: Matrix,
}

/// A projection of every token mixed with the one before.
pub struct Mixed {
    /// m `[d]`.
    share: Vec<f32>,
    /// `[C, d]`.
    matrix: Matrix,
}

impl Mixed {
    /// `time_mix_{name}` and `{name}.weight`.
    pub fn load(name: &str, rows: usize, width: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        Ok(Self {
            share: scope.tensor(&format!("time_mix_{name}"), &[1, 1, width])?,
            matrix: scope.matrix(&format!("{name}.weight"), rows, width)?,
        })
    }

    /// `{name}.weight`, with RWKV-7's share of the token before, μ = 1 − m `[d]`.
    pub fn load_from(mu: Vec<f32>, name: &str, rows: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let matrix = scope.matrix(&format!("{name}.weight"), rows, mu.len())?;
        Ok(Self { share: mu.into_iter().map(|mu| 1.0 - mu).collect(), matrix })
    }

    /// xs and the tokens before them `[T, d]` → `[T, C]`.
    pub fn forward(&self, xs: &[f32], before: &[f32]) -> Vec<f32> {
        project(&self.matrix, None, &interpolated(xs, before, &self.share))
    }
}

impl Rwkv4 {
    pub fn load(spec: &Rwkv4Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let mixed = |name| Mixed::load(name, spec.channels, hidden_size, scope);
        Ok(Self {
            key: mixed("key")?,
            value: mixed("value")?,
            receptance: mixed("receptance")?,
            rates: super::negative_exp(scope.vector("time_decay", spec.channels)?),
            bonus: scope.vector("time_first", spec.channels)?,
            output: scope.matrix("output.weight", hidden_size, spec.channels)?,
            spec: spec.clone(),
        })
    }
}

impl Mixer for Rwkv4 {
    fn geometry(&self) -> Geometry {
        let channels = self.spec.channels;
        Geometry {
            kind: MixerKind::Rwkv4,
            heads: channels,
            head_dim: 1,
            state_dim: 1,
            groups: channels,
            rank: 1,
            decay_dim: 1,
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: (2 * channels + self.output.rows()) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        StateSlot {
            state: vec![0.0; self.spec.channels],
            conv: vec![0.0; self.output.rows()],
            carried: vec![WKV_EMPTY; self.spec.channels],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let channels = self.spec.channels;
        let before = shifted(xs, &mut slot.conv);
        let mut k = self.key.forward(xs, &before);
        let mut v = self.value.forward(xs, &before);
        let mut r = self.receptance.forward(xs, &before);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        hooks.pass(Point::Gate, &mut r);

        let [mut log_decay, mut input, mut bonus, mut y] = [(); 4].map(|_| vec![0.0; v.len()]);
        wkv_gates(&k, &self.rates, &self.bonus, &mut slot.carried, &mut log_decay, &mut input, &mut bonus);
        hooks.pass(Point::LogDecay, &mut log_decay);
        hooks.pass(Point::InputGate, &mut input);
        hooks.pass(Point::Bonus, &mut bonus);
        let scan = ChannelScan { channels, log_decay: &log_decay, input: &input, x: &v, bonus: Some(&bonus) };
        scan.forward(&mut slot.state, &mut y);
        hooks.pass(Point::Core, &mut y);
        let mut gated = vec![0.0; y.len()];
        sigmoid_mul(&r, &y, &mut gated);
        linear(&self.output, None, &gated, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (tokens, column) = (tape.positions().len(), |point| tape.strided(point, head, 1));
        let bonus = column(Point::Bonus);
        // What is left for the tokens before.
        let rest: Vec<f32> = (0..tokens).map(|t| 1.0 - bonus.at(t)).collect();
        draw(&Lowered::Recurrent(Recurrent {
            weight: Some(column(Point::InputGate)),
            decay: Decay::Scalar { log: column(Point::LogDecay), factor: 1.0 },
            bonus: Some(bonus),
            ..Recurrent::new(tokens, Strided { data: &rest, stride: 1, offset: 0, width: 1 }, constant(&[1.0]))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let row = |point| tape.row(point, position);
        match point {
            Point::Read => {
                let (Some(y), Some(bonus), Some(v)) = (row(Point::Core), row(Point::Bonus), row(Point::Value)) else {
                    return false;
                };
                out.extend(heads.map(|c| (y[c] - bonus[c] * v[c]).abs()));
            }
            _ => return derive_of_channels((point, Point::InputGate), tape, position, heads, out),
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        fold_channels(tape, positions, Point::InputGate, state);
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, _channel: usize) -> f32 {
        tape.row(Point::Gate, position).map_or(f32::NAN, |r| sigmoid(r[head]))
    }
}
