//! The time mixing of RWKV-7 (Peng et al. 2025, arXiv 2503.14456), in the layout of flash-linear-attention.
//!
//! ```text
//! x_j = u_t + (u_{t−1} − u_t) μ_j          r, k, v = W x          a = σ(A_2 A_1 x_a + a_0)          g = G_2 σ(G_1 x_g)
//! w = exp(−e^{−1/2} σ(W_2 tanh(W_1 x_w) + w_0)) ∈ (0.545, 1)          κ = l2(k ⊙ k_k)          k ← k ⊙ (1 + (a − 1) k_a)
//! v ← v + (v of the first layer − v) σ(V_2 V_1 x_v + v_0)          but in the first layer
//! S_t = S_{t−1} diag(w_t) − (S_{t−1} κ_t)(a_t ⊙ κ_t)ᵀ + v_t k_tᵀ          y_t = S_t r_t          per head
//! out = W_o ((LN_head(y) + (Σ r k r_k) v) ⊙ g)
//! ```
//!
//! The matrix is that of y. What a token adds of its own value after the norm, Σ r k r_k, is not in it.

use std::ops::Range;

use statescope_kernels::activation::sigmoid_slice;
use statescope_kernels::linear::linear;
use statescope_kernels::linear_attention::{Correction, KeyDecay, LinearAttention as Op};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent, Strided};
use statescope_kernels::norm::l2_normalise;

use super::{Handed, Mixer, StateSlot, derive_of_keys, head_layer_norm, interpolated, products, project, shifted};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::Rwkv7Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one time mixing.
pub struct Rwkv7 {
    spec: Rwkv7Spec,
    /// 1 − μ of r, w, k, v, a, g, `[d]` each.
    shares: [Vec<f32>; 6],
    /// r, k, v, out, `[d, d]` each.
    projections: [Matrix; 4],
    decay: LowRank,
    rate: LowRank,
    /// None in the first layer.
    value_mix: Option<LowRank>,
    gate: LowRank,
    /// k_k and k_a, `[d]` each.
    erase_scale: Vec<f32>,
    key_scale: Vec<f32>,
    /// r_k `[H, N]`.
    bonus: Vec<f32>,
    /// `[d]` each.
    norm: Vec<f32>,
    norm_bias: Vec<f32>,
}

/// up f(down x) + bias.
pub(super) struct LowRank {
    /// `[R, d]`.
    pub(super) down: Matrix,
    /// `[d, R]`.
    pub(super) up: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

impl LowRank {
    /// From inputs over a rank to outputs.
    pub(super) fn load(
        prefix: &str,
        [inputs, rank, outputs]: [usize; 3],
        bias: bool,
        scope: &Scope<'_>,
    ) -> Result<Self, LoadError> {
        // Whole names, for a file may spell each its own way.
        Ok(Self {
            down: scope.matrix(&format!("{prefix}.0.weight"), rank, inputs)?,
            up: scope.matrix(&format!("{prefix}.2.weight"), outputs, rank)?,
            bias: scope.vector_if(bias, &format!("{prefix}.2.bias"), outputs)?,
        })
    }

    pub(super) fn forward(&self, xs: &[f32], activation: impl Fn(&mut [f32])) -> Vec<f32> {
        let mut low = project(&self.down, None, xs);
        activation(&mut low);
        project(&self.up, self.bias.as_deref(), &low)
    }
}

impl Rwkv7 {
    pub fn load(spec: &Rwkv7Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let d = hidden_size;
        let share = |name: &str| -> Result<Vec<f32>, LoadError> {
            let mu = scope.tensor(&format!("x_{name}"), &[1, 1, d])?;
            Ok(mu.into_iter().map(|mu| 1.0 - mu).collect())
        };
        let square = |name: &str| scope.matrix(&format!("{name}_proj.weight"), d, d);
        let [decay, rate, value, gate] = spec.ranks;
        Ok(Self {
            shares: [share("r")?, share("w")?, share("k")?, share("v")?, share("a")?, share("g")?],
            projections: [square("r")?, square("k")?, square("v")?, square("o")?],
            decay: LowRank::load("w_lora.lora", [d, decay, d], true, scope)?,
            rate: LowRank::load("a_lora.lora", [d, rate, d], true, scope)?,
            value_mix: match spec.first {
                true => None,
                false => Some(LowRank::load("v_lora.lora", [d, value, d], true, scope)?),
            },
            gate: LowRank::load("g_lora.lora", [d, gate, d], false, scope)?,
            erase_scale: scope.vector("k_k", d)?,
            key_scale: scope.vector("k_a", d)?,
            bonus: scope.tensor("r_k", &[spec.heads, spec.head_dim])?,
            norm: scope.vector("g_norm.weight", d)?,
            norm_bias: scope.vector("g_norm.bias", d)?,
            spec: spec.clone(),
        })
    }

    fn op<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32], log: &'a [f32], correction: Correction<'a>) -> Op<'a> {
        let Rwkv7Spec { heads, head_dim, .. } = self.spec;
        let (decay, correction) = (KeyDecay::Key(log), Some(correction));
        Op { heads, key_dim: head_dim, head_dim, q, k, v, decay, weight: None, correction, bonus: None }
    }
}

impl Mixer for Rwkv7 {
    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        Geometry {
            kind: MixerKind::Rwkv7,
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.head_dim,
            groups: spec.heads,
            rank: 1,
            decay_dim: spec.head_dim,
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: (spec.head_dim + 1) * self.norm.len() * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let (d, n) = (self.norm.len(), self.spec.head_dim);
        StateSlot { state: vec![0.0; d * n], conv: vec![0.0; d], ..StateSlot::default() }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        self.prefill_after(xs, &mut Handed::default(), slot, hooks, out);
    }

    fn prefill_after(
        &self,
        xs: &[f32],
        handed: &mut Handed,
        slot: &mut StateSlot,
        hooks: &mut Hooks<'_>,
        out: &mut [f32],
    ) -> bool {
        let (d, n) = (self.norm.len(), self.spec.head_dim);
        let before = shifted(xs, &mut slot.conv);
        let [x_r, x_w, x_k, x_v, x_a, x_g] = self.shares.each_ref().map(|share| interpolated(xs, &before, share));
        let [w_r, w_k, w_v, w_o] = &self.projections;
        let mut r = project(w_r, None, &x_r);
        let mut k = project(w_k, None, &x_k);
        let mut v = project(w_v, None, &x_v);
        let first = &mut handed.first_values;
        match &self.value_mix {
            Some(mix) if first.len() == v.len() => {
                let mut share = mix.forward(&x_v, |_| {});
                sigmoid_slice(&mut share);
                v.iter_mut().zip(first.iter().zip(&share)).for_each(|(v, (first, share))| *v += (first - *v) * share);
            }
            _ => first.clone_from(&v),
        }
        let mut log = self.decay.forward(&x_w, |low| low.iter_mut().for_each(|x| *x = x.tanh()));
        sigmoid_slice(&mut log);
        let slowest = -(-0.5f32).exp();
        log.iter_mut().for_each(|log| *log *= slowest);
        let mut rate = self.rate.forward(&x_a, |_| {});
        sigmoid_slice(&mut rate);
        let mut gate = self.gate.forward(&x_g, sigmoid_slice);
        let mut erase = k.clone();
        for row in erase.chunks_exact_mut(d) {
            row.iter_mut().zip(&self.erase_scale).for_each(|(x, scale)| *x *= scale);
        }
        l2_normalise(&mut erase, n, self.spec.l2_eps, 1.0);
        for (row, rate) in k.chunks_exact_mut(d).zip(rate.chunks_exact(d)) {
            row.iter_mut()
                .zip(rate.iter().zip(&self.key_scale))
                .for_each(|(k, (a, scale))| *k *= 1.0 + (a - 1.0) * scale);
        }
        hooks.pass(Point::Query, &mut r);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        hooks.pass(Point::LogDecay, &mut log);
        hooks.pass(Point::Beta, &mut rate);
        hooks.pass(Point::Erase, &mut erase);
        hooks.pass(Point::Gate, &mut gate);

        let replace = products(&rate, &erase);
        let mut y = vec![0.0; v.len()];
        let correction = Correction { erase: &erase, replace: &replace };
        self.op(&r, &k, &v, &log, correction).forward(&mut slot.state, &mut y);
        hooks.pass(Point::Core, &mut y);
        let mut normed = head_layer_norm(&y, n, &self.norm, Some(&self.norm_bias), self.spec.norm_eps);
        for (t, row) in normed.chunks_exact_mut(d).enumerate() {
            for (head, row) in row.chunks_exact_mut(n).enumerate() {
                let at = t * d + head * n..t * d + (head + 1) * n;
                let pairs = r[at.clone()].iter().zip(&k[at.clone()]).zip(&self.bonus[head * n..]);
                let own: f32 = pairs.map(|((r, k), bonus)| r * k * bonus).sum();
                row.iter_mut().zip(&v[at]).for_each(|(y, v)| *y += own * v);
            }
        }
        linear(w_o, None, &products(&normed, &gate), out);
        true
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let n = self.spec.head_dim;
        let keys = |point| tape.strided(point, head * n, n);
        let (tokens, erase, rate) = (tape.positions().len(), keys(Point::Erase), keys(Point::Beta));
        let replace: Vec<f32> = (0..tokens).flat_map(|t| products(rate.row(t), erase.row(t))).collect();
        let replace = Strided { data: &replace, stride: n, offset: 0, width: n };
        draw(&Lowered::Recurrent(Recurrent {
            decay: Decay::Corrected { log: keys(Point::LogDecay), erase, replace },
            ..Recurrent::new(tokens, keys(Point::Query), keys(Point::Key))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        derive_of_keys(point, tape, position, heads, [self.spec.head_dim; 2], out)
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        let replace = products(rows(Point::Beta), rows(Point::Erase));
        let correction = Correction { erase: rows(Point::Erase), replace: &replace };
        self.op(&[], rows(Point::Key), rows(Point::Value), rows(Point::LogDecay), correction).fold(state);
    }
}
