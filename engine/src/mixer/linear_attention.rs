//! Linear attention with a fading state, in the layouts of flash-linear-attention: linear attention (Katharopoulos et al. 2020),
//! retention (RetNet, Sun et al. 2023), gated linear attention (GLA, Yang et al. 2024) and HGRN2 (Qin et al. 2024).
//!
//! ```text
//! q, k, v = W u, short convolution and silu where the model has them; feature map or rotary embedding of q and k; q ← q D_k^{−1/2}
//! S_t = Λ_t S_{t−1} + k_t v_tᵀ          y_t = S_tᵀ q_t          per head, S ∈ ℝ^{D_k×D_v}
//! Λ: 1 (linear attention) · γ_h (RetNet) · diag(σ(W_2 W_1 u + b)^{1/16}) (GLA) · diag(λ + (1 − λ) σ(W_f u)), and k = 1 − Λ (HGRN2)
//! out = W_o (w ⊙ RMS(y) ⊙ silu(W_g u))
//! ```

use std::ops::Range;

use statescope_kernels::activation::{exp_slice, silu, silu_slice, softplus};
use statescope_kernels::conv::causal_conv;
use statescope_kernels::linear::linear;
use statescope_kernels::linear_attention::{KeyDecay, LinearAttention as Op};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent};
use statescope_kernels::norm::{group_rms_norm_gated, rms_norm};
use statescope_kernels::rope::Rope;

use super::{Mixer, StateSlot, Surroundings, constant, derive_of_keys, project};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::{FeatureMap, LinearAttentionSpec, LinearDecay};
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Added to the sum of a row before it divides.
const NORMALISER_EPS: f32 = 1e-10;
/// Added to the sum of a query's or key's features before it divides.
const SUM_EPS: f32 = 1e-4;

/// Weights of one linear attention.
pub struct LinearAttention {
    spec: LinearAttentionSpec,
    q: Branch,
    /// None where the key follows from the decay.
    k: Option<Branch>,
    v: Branch,
    decay: DecayWeights,
    rope: Option<Rope>,
    /// Of q and of k.
    features: Option<[Hadamard; 2]>,
    /// `[H D_v, d]`.
    gate: Option<Matrix>,
    /// `[D_v]`, or `[H D_v]` where all heads are normed together.
    norm: Vec<f32>,
    /// `[d, H D_v]`.
    out_proj: Matrix,
}

/// A projection and the short convolution behind it.
struct Branch {
    /// `[C, d]`.
    matrix: Matrix,
    /// `[C, K]`.
    taps: Option<Vec<f32>>,
}

impl Branch {
    /// `wanted` rows of `stored`, each head's `head_dim` repeated until they are enough.
    fn load(
        spec: &LinearAttentionSpec,
        name: &str,
        head_dim: usize,
        shared: bool,
        d: usize,
        scope: &Scope<'_>,
    ) -> Result<Self, LoadError> {
        let heads = if shared { spec.kv_heads } else { spec.heads };
        let runs = repeated(heads, spec.heads, head_dim);
        let matrix = scope.matrix(&format!("{name}_proj.weight"), heads * head_dim, d)?.pick_rows(&runs);
        let taps = match spec.conv_taps {
            None => None,
            Some(taps) => {
                let stored = scope.tensor(&format!("{name}_conv1d.weight"), &[heads * head_dim, 1, taps])?;
                Some(runs.iter().flat_map(|run| &stored[run.start * taps..run.end * taps]).copied().collect())
            }
        };
        Ok(Self { matrix, taps })
    }

    /// xs `[T, d]` → what enters the convolution and what comes out of it; without one they are the same.
    fn forward(&self, xs: &[f32], history: &mut [f32]) -> (Vec<f32>, Option<Vec<f32>>) {
        let input = project(&self.matrix, None, xs);
        let convolved = self.taps.as_ref().map(|taps| {
            let mut out = vec![0.0; input.len()];
            causal_conv(&input, taps, None, history, &mut out);
            out
        });
        (input, convolved)
    }

    fn channels(&self) -> usize {
        self.matrix.rows()
    }
}

/// Rows of `heads` heads, each as often as `wanted` heads share them.
fn repeated(heads: usize, wanted: usize, head_dim: usize) -> Vec<Range<usize>> {
    if heads == wanted {
        return std::iter::once(0..heads * head_dim).collect();
    }
    (0..wanted).map(|head| head * heads / wanted).map(|head| head * head_dim..(head + 1) * head_dim).collect()
}

/// (W_1 x + b_1) ⊙ (W_2 x + b_2) of every head.
struct Hadamard {
    /// `[D_k, D_k]` and `[D_k]` each.
    layers: [(Matrix, Vec<f32>); 2],
}

impl Hadamard {
    fn load(width: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let layer = |name: &str| -> Result<_, LoadError> {
            let scope = scope.scope(name);
            Ok((scope.matrix("weight", width, width)?, scope.vector("bias", width)?))
        };
        Ok(Self { layers: [layer("layer1")?, layer("layer2")?] })
    }

    fn apply(&self, xs: &mut [f32]) {
        let [first, second] = self.layers.each_ref().map(|(matrix, bias)| project(matrix, Some(bias), xs));
        xs.iter_mut().zip(first.iter().zip(&second)).for_each(|(x, (a, b))| *x = a * b);
    }
}

enum DecayWeights {
    None,
    /// ln γ `[H]`.
    Fixed(Vec<f32>),
    /// ln α = lnσ(W_2 W_1 u + b) / normaliser, not below the floor.
    LowRank {
        down: Matrix,
        up: Matrix,
        bias: Vec<f32>,
        normaliser: f32,
        floor: Option<f32>,
    },
    /// α = λ + (1 − λ) σ(W_f u), λ `[H D_k]`.
    Bounded {
        matrix: Matrix,
        lowest: Vec<f32>,
    },
}

impl DecayWeights {
    fn load(spec: &LinearAttentionSpec, d: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let keys = spec.heads * spec.key_dim;
        Ok(match &spec.decay {
            LinearDecay::None => Self::None,
            // γ_h = 1 − 2^{−5−h}; ln(1 − x) in one step keeps the digits.
            LinearDecay::Retention => {
                Self::Fixed((0..spec.heads).map(|head| (-(-5.0 - head as f64).exp2()).ln_1p() as f32).collect())
            }
            &LinearDecay::LowRank { rank, normaliser, floor } => {
                let (stored, runs) = (spec.kv_heads * spec.key_dim, repeated(spec.kv_heads, spec.heads, spec.key_dim));
                let bias = scope.vector("gk_proj.1.bias", stored)?;
                Self::LowRank {
                    down: scope.matrix("gk_proj.0.weight", rank, d)?,
                    up: scope.matrix("gk_proj.1.weight", stored, rank)?.pick_rows(&runs),
                    bias: runs.into_iter().flat_map(|run| bias[run].to_vec()).collect(),
                    normaliser,
                    floor,
                }
            }
            &LinearDecay::Bounded { layer, layers } => {
                let lowest = match layers {
                    None => vec![0.0; keys],
                    Some(layers) => {
                        lower_bounds(&scope.root().tensor("model.lower_bounds", &[layers, keys])?, keys, layer)
                    }
                };
                Self::Bounded { matrix: scope.matrix("f_proj.weight", keys, d)?, lowest }
            }
        })
    }

    /// Logarithms `[T, H D_k]`; empty where they do not depend on the token.
    fn forward(&self, xs: &[f32]) -> Vec<f32> {
        match self {
            Self::None | Self::Fixed(_) => Vec::new(),
            Self::LowRank { down, up, bias, normaliser, floor } => {
                let mut logits = project(up, Some(bias), &project(down, None, xs));
                for x in &mut logits {
                    *x = -softplus(-*x) / normaliser;
                    *x = floor.map_or(*x, |floor| x.max(floor));
                }
                logits
            }
            Self::Bounded { matrix, lowest } => {
                let mut logits = project(matrix, None, xs);
                for row in logits.chunks_exact_mut(lowest.len()) {
                    for (x, &lowest) in row.iter_mut().zip(lowest) {
                        // ln(λ + (1 − λ) e^x) = ln(1 + (1 − λ)(e^x − 1)), and where λ is 0 just x.
                        let log = -softplus(-*x);
                        *x = if lowest == 0.0 { log } else { ((1.0 - lowest) * log.exp_m1()).ln_1p() };
                    }
                }
                logits
            }
        }
    }
}

/// λ of a layer: the running sum over the layers of softmax over the layers, without the first one's share. `stored` `[layers, width]`.
fn lower_bounds(stored: &[f32], width: usize, layer: usize) -> Vec<f32> {
    let bound = |channel: usize| {
        let column: Vec<f64> = stored[channel..].iter().step_by(width).map(|&x| x.into()).collect();
        let highest = column.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = column.iter().map(|x| (x - highest).exp()).sum();
        column.iter().take(layer + 1).skip(1).map(|x| (x - highest).exp() / total).sum::<f64>() as f32
    };
    (0..width).map(bound).collect()
}

impl LinearAttention {
    pub fn load(spec: &LinearAttentionSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (d, values) = (hidden_size, spec.heads * spec.head_dim);
        let branch = |name, width, shared| Branch::load(spec, name, width, shared, d, scope);
        let tied = matches!(spec.decay, LinearDecay::Bounded { .. });
        let features = match spec.feature_map {
            FeatureMap::Hadamard => {
                let load = |name: &str| Hadamard::load(spec.key_dim, &scope.scope(name));
                Some([load("feature_map_q")?, load("feature_map_k")?])
            }
            _ => None,
        };
        // The fused kernel has a name of its own.
        let norm = ["g_norm_swish_gate.weight", "g_norm.weight", "norm.weight"]
            .into_iter()
            .find(|name| scope.has(name))
            .unwrap_or("g_norm.weight");
        Ok(Self {
            q: branch("q", spec.key_dim, false)?,
            k: if tied { None } else { Some(branch("k", spec.key_dim, true)?) },
            v: branch(if tied { "i" } else { "v" }, spec.head_dim, true)?,
            decay: DecayWeights::load(spec, d, scope)?,
            rope: spec.rope.clone().map(Rope::new),
            features,
            gate: spec.gated.then(|| scope.matrix("g_proj.weight", values, d)).transpose()?,
            norm: scope.vector(norm, if spec.norm_whole { values } else { spec.head_dim })?,
            out_proj: scope.matrix("o_proj.weight", d, values)?,
            spec: spec.clone(),
        })
    }

    /// Numbers in the state, in the histories of the convolutions, and in the sums of a normaliser.
    fn sizes(&self) -> [usize; 3] {
        let spec = &self.spec;
        let channels = self.q.channels() + self.v.channels() + self.k.as_ref().map_or(0, Branch::channels);
        let sums = if spec.normalised { spec.heads * spec.key_dim } else { 0 };
        let history = spec.conv_taps.map_or(0, |taps| taps - 1);
        [spec.heads * spec.head_dim * spec.key_dim, history * channels, sums]
    }

    fn op<'a>(&'a self, q: &'a [f32], k: &'a [f32], v: &'a [f32], log: &'a [f32]) -> Op<'a> {
        let LinearAttentionSpec { heads, key_dim, head_dim, .. } = self.spec;
        let decay = match &self.decay {
            DecayWeights::None => KeyDecay::None,
            DecayWeights::Fixed(log) => KeyDecay::Fixed(log),
            _ => KeyDecay::Key(log),
        };
        Op { heads, key_dim, head_dim, q, k, v, decay, weight: None, correction: None, bonus: None }
    }

    /// Feature map, then the sum to 1 where asked for. xs `[T, H, D_k]`.
    fn map(&self, xs: &mut [f32], which: usize) {
        match (self.spec.feature_map, &self.features) {
            (FeatureMap::Hadamard, Some(features)) => features[which].apply(xs),
            (FeatureMap::Relu, _) => xs.iter_mut().for_each(|x| *x = x.max(0.0)),
            // elu(x) + 1.
            (FeatureMap::EluPlusOne, _) => xs.iter_mut().for_each(|x| *x = if *x > 0.0 { *x + 1.0 } else { x.exp() }),
            _ => {}
        }
        if self.spec.sum_to_one[which] {
            for row in xs.chunks_exact_mut(self.spec.key_dim) {
                let sum = row.iter().sum::<f32>() + SUM_EPS;
                row.iter_mut().for_each(|x| *x /= sum);
            }
        }
    }

    /// q, k and v `[T, …]`, v after convolution and activation, as the op reads them, and the logarithm of the decay.
    fn read(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>) -> [Vec<f32>; 4] {
        let LinearAttentionSpec { heads, key_dim, conv_taps, .. } = self.spec;
        let history = conv_taps.map_or(0, |taps| taps - 1);
        let k_history = self.k.as_ref().map_or(0, |k| history * k.channels());
        let (q_past, rest) = slot.conv.split_at_mut(history * self.q.channels());
        let (k_past, v_past) = rest.split_at_mut(k_history);
        let activated = |(input, convolved): (Vec<f32>, Option<Vec<f32>>)| match convolved {
            None => input,
            Some(mut x) => {
                silu_slice(&mut x);
                x
            }
        };
        let mut q = activated(self.q.forward(xs, q_past));
        let (input, convolved) = self.v.forward(xs, v_past);
        let mut v = match convolved {
            None => input,
            Some(mut v) => {
                hooks.show(Point::ConvIn, &input);
                hooks.pass(Point::Conv, &mut v);
                silu_slice(&mut v);
                v
            }
        };
        hooks.pass(Point::Value, &mut v);
        let mut log = self.decay.forward(xs);
        if !log.is_empty() {
            hooks.pass(Point::LogDecay, &mut log);
        }
        let mut k = match &self.k {
            Some(k) => activated(k.forward(xs, k_past)),
            // What the decay leaves: 1 − α.
            None => {
                silu_slice(&mut q);
                log.iter().map(|log| -log.exp_m1()).collect()
            }
        };
        self.map(&mut q, 0);
        self.map(&mut k, 1);
        if let Some(rope) = &self.rope {
            rope.apply(&mut q, heads, key_dim, slot.position);
            rope.apply(&mut k, heads, key_dim, slot.position);
        }
        slot.position += xs.len() / self.out_proj.rows();
        let scale = (key_dim as f32).powf(-0.5);
        q.iter_mut().for_each(|q| *q *= scale);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Query, &mut q);
        [q, k, v, log]
    }
}

impl Mixer for LinearAttention {
    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        Geometry {
            kind: match spec.decay {
                LinearDecay::None => MixerKind::LinearAttention,
                LinearDecay::Retention => MixerKind::Retention,
                LinearDecay::LowRank { .. } => MixerKind::Gla,
                LinearDecay::Bounded { .. } => MixerKind::Hgrn2,
            },
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.key_dim,
            groups: spec.heads,
            rank: 1,
            decay_dim: match spec.decay {
                LinearDecay::None => 0,
                LinearDecay::Retention => 1,
                _ => spec.key_dim,
            },
            conv_taps: spec.conv_taps.unwrap_or(0),
            gated: spec.gated,
            window: None,
            state_bytes: self.sizes().iter().sum::<usize>() * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let [state, conv, carried] = self.sizes().map(|len| vec![0.0; len]);
        StateSlot { state, conv, carried, ..StateSlot::default() }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let spec = &self.spec;
        let [q, k, v, log] = self.read(xs, slot, hooks);
        let mut y = vec![0.0; v.len()];
        self.op(&q, &k, &v, &log).forward(&mut slot.state, &mut y);
        if spec.normalised {
            // The sum of the row is what the op makes of ones.
            let ones = vec![1.0; v.len() / spec.head_dim];
            let mut sums = vec![0.0; ones.len()];
            let op = Op { head_dim: 1, ..self.op(&q, &k, &ones, &log) };
            op.forward(&mut slot.carried, &mut sums);
            sums.iter_mut().for_each(|sum| *sum += NORMALISER_EPS);
            hooks.pass(Point::Normaliser, &mut sums);
            for (y, sum) in y.chunks_exact_mut(spec.head_dim).zip(&sums) {
                y.iter_mut().for_each(|y| *y /= sum);
            }
        }
        hooks.pass(Point::Core, &mut y);
        let mut normed = vec![0.0; y.len()];
        match &self.gate {
            Some(gate) => {
                let mut gate = project(gate, None, xs);
                hooks.pass(Point::Gate, &mut gate);
                group_rms_norm_gated(&y, &gate, &self.norm, 1, spec.norm_eps, &mut normed, None);
            }
            None => rms_norm(&y, &self.norm, spec.norm_eps, &mut normed),
        }
        linear(&self.out_proj, None, &normed, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (n, offset) = (self.spec.key_dim, head * self.spec.key_dim);
        let keys = |point| tape.strided(point, offset, n);
        let decay = match &self.decay {
            DecayWeights::None => Decay::None,
            DecayWeights::Fixed(log) => Decay::Scalar { log: constant(&log[head..]), factor: 1.0 },
            _ => Decay::Key { log: keys(Point::LogDecay) },
        };
        let tokens = tape.positions().len();
        draw(&Lowered::Recurrent(Recurrent {
            decay,
            normaliser: self.spec.normalised.then(|| tape.strided(Point::Normaliser, head, 1)),
            ..Recurrent::new(tokens, keys(Point::Query), keys(Point::Key))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let (p, n) = (self.spec.head_dim, self.spec.key_dim);
        let row = |point| tape.row(point, position);
        match point {
            Point::Decay => {
                let start = out.len();
                match &self.decay {
                    DecayWeights::None => return false,
                    DecayWeights::Fixed(log) => out.extend_from_slice(&log[heads]),
                    _ => {
                        let Some(log) = row(Point::LogDecay) else { return false };
                        out.extend_from_slice(&log[heads.start * n..heads.end * n]);
                    }
                }
                exp_slice(&mut out[start..]);
            }
            _ => return derive_of_keys(point, tape, position, heads, [p, n], out),
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        self.op(&[], rows(Point::Key), rows(Point::Value), rows(Point::LogDecay)).fold(state);
    }

    fn surroundings(&self, head: usize, channel: usize) -> Option<Surroundings<'_>> {
        let (taps, c) = (self.spec.conv_taps?, head * self.spec.head_dim + channel);
        Some(Surroundings { taps: &self.v.taps.as_ref()?[c * taps..(c + 1) * taps], bias: 0.0, activated: true })
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, channel: usize) -> f32 {
        let Some(y) = tape.row(Point::Core, position) else { return f32::NAN };
        let (p, c) = (self.spec.head_dim, head * self.spec.head_dim + channel);
        let (group, weight) =
            if self.spec.norm_whole { (y, self.norm[c]) } else { (&y[head * p..(head + 1) * p], self.norm[channel]) };
        let square: f32 = group.iter().map(|y| y * y).sum();
        let scale = (square / group.len() as f32 + self.spec.norm_eps).sqrt().recip();
        let gate = match &self.gate {
            None => 1.0,
            Some(_) => tape.row(Point::Gate, position).map_or(f32::NAN, |z| silu(z[c])),
        };
        gate * scale * weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_bounds_rise_from_nothing() {
        // Two channels; softmax over three layers: ¼ ¼ ½ and ⅓ each.
        let stored = [0.0, 1.0, 0.0, 1.0, 2f32.ln(), 1.0];
        let close =
            |a: Vec<f32>, b: [f32; 2]| a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
        close(lower_bounds(&stored, 2, 0), [0.0, 0.0]);
        close(lower_bounds(&stored, 2, 1), [0.25, 1.0 / 3.0]);
        close(lower_bounds(&stored, 2, 2), [0.75, 2.0 / 3.0]);
    }

    #[test]
    fn shared_heads_are_repeated() {
        let rows: Vec<usize> = repeated(2, 4, 2).into_iter().flatten().collect();
        assert_eq!(rows, [0, 1, 0, 1, 2, 3, 2, 3]);
        assert_eq!(repeated(3, 3, 2), std::slice::from_ref(&(0..6)));
    }
}
