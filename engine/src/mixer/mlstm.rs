//! The matrix LSTM of xLSTM-7B (Beck et al. 2024, arXiv 2405.04517 and 2503.13427).
//!
//! ```text
//! q, k, v, o = W u          ĩ = cap(W_i u + b), f̃ = cap(W_f u + b)          cap(x) = c tanh(x / c); per head
//! m_t = max(ln σ(f̃_t) + m_{t−1}, ĩ_t)          f = σ(f̃_t) e^{m_{t−1} − m_t}, i = e^{ĩ_t − m_t}
//! C_t = f C_{t−1} + i k_t v_tᵀ          n_t = f n_{t−1} + i k_t          h_t = C_tᵀ q_t / (max(|n_tᵀ q_t|, e^{−m_t}) + ε), q ← q D_k^{−1/2}
//! out = W_out (σ(o) ⊙ LN_head(h))
//! ```
//!
//! m only keeps the numbers small: C and n are e^{−m} times what they would be without. The matrix has the normaliser of the run in its
//! rows, so it is exact for this text and no other.

use std::ops::Range;

use statescope_kernels::activation::{sigmoid, sigmoid_mul, softplus};
use statescope_kernels::linear::linear;
use statescope_kernels::linear_attention::{KeyDecay, LinearAttention as Op};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent};
use statescope_kernels::reduce::l2_norm;

use super::{Mixer, StateSlot, head_layer_norm, project, project_parts};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::MlstmSpec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one mLSTM.
pub struct Mlstm {
    spec: MlstmSpec,
    /// `[2 H D_k + 2 H D_v, d]`: q, k, v, o.
    qkvo: Matrix,
    /// `[2H, d]`: i, f.
    gates: Matrix,
    gate_bias: Vec<f32>,
    /// `[H D_v]`.
    norm: Vec<f32>,
    /// `[d, H D_v]`.
    out_proj: Matrix,
}

impl Mlstm {
    pub fn load(spec: &MlstmSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (heads, keys, values) = (spec.heads, spec.heads * spec.key_dim, spec.heads * spec.head_dim);
        let matrix = |name: &str, rows| scope.matrix(&format!("{name}.weight"), rows, hidden_size);
        let (qkvo, gates, gate_bias) = if spec.fused {
            let bias = scope.vector("ifgate_preact.bias", 2 * heads)?;
            (matrix("qkv_opreact", 2 * keys + 2 * values)?, matrix("ifgate_preact", 2 * heads)?, bias)
        } else {
            let parts = [matrix("q", keys)?, matrix("k", keys)?, matrix("v", values)?, matrix("ogate_preact", values)?];
            let gates = [matrix("igate_preact", heads)?, matrix("fgate_preact", heads)?];
            let bias = [scope.vector("igate_preact.bias", heads)?, scope.vector("fgate_preact.bias", heads)?];
            (Matrix::stacked(&parts), Matrix::stacked(&gates), bias.concat())
        };
        Ok(Self {
            qkvo,
            gates,
            gate_bias,
            norm: scope.vector("multihead_norm.weight", values)?,
            out_proj: scope.matrix("out_proj.weight", hidden_size, values)?,
            spec: spec.clone(),
        })
    }

    fn op<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32], log: &'a [f32], input: &'a [f32]) -> Op<'a> {
        let MlstmSpec { heads, key_dim, head_dim, .. } = self.spec;
        let (decay, weight) = (KeyDecay::Scalar(log), Some(input));
        Op { heads, key_dim, head_dim, q, k, v, decay, weight, correction: None, bonus: None }
    }

    /// The gates of every token `[T, H]`: σ(f̃), the logarithm of f, i, and e^{−m}. Advances m `[H]`.
    fn gates(&self, xs: &[f32], m: &mut [f32]) -> [Vec<f32>; 4] {
        let (heads, cap) = (self.spec.heads, self.spec.gate_cap);
        let preact = project(&self.gates, Some(&self.gate_bias), xs);
        let len = preact.len() / 2;
        let [mut forget, mut log_decay, mut input, mut floor] = [(); 4].map(|_| Vec::with_capacity(len));
        for row in preact.chunks_exact(2 * heads) {
            for (head, m) in m.iter_mut().enumerate() {
                let [i, f] = [row[head], row[heads + head]].map(|x| cap * (x / cap).tanh());
                let kept = -softplus(-f) + *m;
                let next = kept.max(i);
                forget.push(sigmoid(f));
                log_decay.push(kept - next);
                input.push((i - next).exp());
                floor.push((-next).exp());
                *m = next;
            }
        }
        [forget, log_decay, input, floor]
    }
}

impl Mixer for Mlstm {
    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        Geometry {
            kind: MixerKind::Mlstm,
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.key_dim,
            groups: spec.heads,
            rank: 1,
            decay_dim: 1,
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: spec.heads * ((spec.head_dim + 1) * spec.key_dim + 1) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    /// Carried: n `[H, D_k]`, then m `[H]`.
    fn slot(&self) -> StateSlot {
        let spec = &self.spec;
        StateSlot {
            state: vec![0.0; spec.heads * spec.head_dim * spec.key_dim],
            carried: vec![0.0; spec.heads * (spec.key_dim + 1)],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let spec = &self.spec;
        let (keys, values) = (spec.heads * spec.key_dim, spec.heads * spec.head_dim);
        let [mut q, mut k, mut v, mut gate] = project_parts(&self.qkvo, None, xs, [keys, keys, values, values]);
        let scale = (spec.key_dim as f32).powf(-0.5);
        q.iter_mut().for_each(|q| *q *= scale);
        hooks.pass(Point::Query, &mut q);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        hooks.pass(Point::Gate, &mut gate);

        let (sums, m) = slot.carried.split_at_mut(keys);
        let [mut forget, mut log_decay, mut input, floor] = self.gates(xs, m);
        hooks.pass(Point::ForgetGate, &mut forget);
        hooks.pass(Point::LogDecay, &mut log_decay);
        hooks.pass(Point::InputGate, &mut input);
        let mut y = vec![0.0; v.len()];
        self.op(&q, &k, &v, &log_decay, &input).forward(&mut slot.state, &mut y);
        // n is the state that the op makes of ones.
        let ones = vec![1.0; floor.len()];
        let mut normaliser = vec![0.0; floor.len()];
        Op { head_dim: 1, ..self.op(&q, &k, &ones, &log_decay, &input) }.forward(sums, &mut normaliser);
        normaliser.iter_mut().zip(&floor).for_each(|(n, floor)| *n = n.abs().max(*floor) + spec.eps);
        hooks.pass(Point::Normaliser, &mut normaliser);
        for (y, normaliser) in y.chunks_exact_mut(spec.head_dim).zip(&normaliser) {
            y.iter_mut().for_each(|y| *y /= normaliser);
        }
        hooks.pass(Point::Core, &mut y);

        let normed = head_layer_norm(&y, spec.head_dim, &self.norm, None, spec.norm_eps);
        sigmoid_mul(&gate, &normed, &mut y);
        linear(&self.out_proj, None, &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let keys = |point| tape.strided(point, head * self.spec.key_dim, self.spec.key_dim);
        let column = |point| tape.strided(point, head, 1);
        draw(&Lowered::Recurrent(Recurrent {
            weight: Some(column(Point::InputGate)),
            decay: Decay::Scalar { log: column(Point::LogDecay), factor: 1.0 },
            normaliser: Some(column(Point::Normaliser)),
            ..Recurrent::new(tape.positions().len(), keys(Point::Query), keys(Point::Key))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let (p, n) = (self.spec.head_dim, self.spec.key_dim);
        let row = |point| tape.row(point, position);
        match point {
            // What the state as it is kept fades by; σ(f̃) is a point of its own.
            Point::Decay => {
                let Some(log) = row(Point::LogDecay) else { return false };
                out.extend(log[heads].iter().map(|log| log.exp()));
            }
            Point::Write => {
                let (Some(input), Some(k), Some(v)) = (row(Point::InputGate), row(Point::Key), row(Point::Value))
                else {
                    return false;
                };
                let strength = |h: usize| input[h] * l2_norm(&k[h * n..(h + 1) * n]) * l2_norm(&v[h * p..(h + 1) * p]);
                out.extend(heads.map(strength));
            }
            Point::Read => {
                let Some(y) = row(Point::Core) else { return false };
                out.extend(heads.map(|h| l2_norm(&y[h * p..(h + 1) * p])));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        let (k, v) = (rows(Point::Key), rows(Point::Value));
        self.op(&[], k, v, rows(Point::LogDecay), rows(Point::InputGate)).fold(state);
    }
}
