//! Mamba-3 with one input and one output (Lahoti et al. 2026, arXiv 2603.15569), in the layout of flash-linear-attention.
//!
//! ```text
//! [z; x; B; C; dt; a; trap; angles] = W_in u          B, C ← w ⊙ RMS(B, C), shared by the heads of a group, + a bias of each head
//! Δ = softplus(dt + b)          A = −max(softplus(a), floor)          α = e^{ΔA}          λ = σ(trap)          per head, all of the token
//! Φ_t = Φ_{t−1} + Δ_t π tanh(angles)          pairs (2i, 2i + 1) of B and C are turned by Φ_t[i]
//! S_t = α_t (S_{t−1} + (1 − λ_t) Δ_t x_{t−1} B_{t−1}ᵀ) + λ_t Δ_t x_t B_tᵀ          y_t = S_t C_t + D x_t
//! out = W_out (y ⊙ silu(z))
//! ```
//!
//! The trapezoid rule: a token is written in two parts, the share λ at once, the rest with the token after it, at that token's step. So the matrix is
//! M_ij = C_iᵀB_j Π_{s=j+1..i} α_s (λ_j Δ_j + (1 − λ_{j+1}) Δ_{j+1}), and C_iᵀB_i λ_i Δ_i + D on the diagonal.

use std::ops::Range;

use statescope_kernels::activation::{sigmoid, silu_mul, softplus};
use statescope_kernels::linear::linear;
use statescope_kernels::linear_attention::{KeyDecay, LinearAttention as Op};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent, Strided};
use statescope_kernels::norm::rms_norm;
use statescope_kernels::reduce::l2_norm;

use super::{Mixer, StateSlot, columns, project};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::Mamba3Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one Mamba-3.
pub struct Mamba3 {
    spec: Mamba3Spec,
    /// `[2E + 2GN + 3H + n_a, d]`.
    in_proj: Matrix,
    /// `[N]` each, of B and of C.
    norms: [Vec<f32>; 2],
    /// `[H, N]` each.
    biases: [Vec<f32>; 2],
    /// `[H]` each.
    dt_bias: Vec<f32>,
    skip: Vec<f32>,
    /// `[d, E]`.
    out_proj: Matrix,
}

/// Writes of T tokens, each in its two parts: first what the token before still has to write, then its own.
struct Writes {
    /// `[T, 2, H, N]`.
    keys: Vec<f32>,
    /// `[T, 2, H, P]`.
    values: Vec<f32>,
    /// `[T, 2, H]`.
    weights: Vec<f32>,
    log_decay: Vec<f32>,
}

impl Mamba3 {
    pub fn load(spec: &Mamba3Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let Mamba3Spec { heads, state_dim, .. } = *spec;
        let bias = |name: &str| scope.tensor(name, &[heads, 1, state_dim]);
        Ok(Self {
            in_proj: scope.matrix("in_proj.weight", widths(spec).iter().sum(), hidden_size)?,
            norms: [scope.vector("B_norm.weight", state_dim)?, scope.vector("C_norm.weight", state_dim)?],
            biases: [bias("B_bias")?, bias("C_bias")?],
            dt_bias: scope.vector("dt_bias", heads)?,
            skip: scope.vector("D", heads)?,
            out_proj: scope.matrix("out_proj.weight", hidden_size, heads * spec.head_dim)?,
            spec: spec.clone(),
        })
    }

    /// B or C `[T, G, N]` normed, for each head, with its bias, turned by `phases` `[T, H, n_a]`: `[T, H, N]`.
    fn directions(&self, which: usize, stored: &[f32], phases: &[f32]) -> Vec<f32> {
        let Mamba3Spec { heads, groups, state_dim, angles, norm_eps, .. } = self.spec;
        let mut normed = vec![0.0; stored.len()];
        rms_norm(stored, &self.norms[which], norm_eps, &mut normed);
        let mut out = Vec::with_capacity(stored.len() / groups * heads);
        for (token, groups_of) in normed.chunks_exact(groups * state_dim).enumerate() {
            for head in 0..heads {
                let from = out.len();
                let row = &groups_of[head * groups / heads * state_dim..][..state_dim];
                out.extend(row.iter().zip(&self.biases[which][head * state_dim..]).map(|(x, bias)| x + bias));
                let phases = &phases[(token * heads + head) * angles..][..angles];
                for (pair, phase) in out[from..].chunks_exact_mut(2).zip(phases) {
                    let ((sin, cos), (a, b)) = (phase.sin_cos(), (pair[0], pair[1]));
                    (pair[0], pair[1]) = (a * cos - b * sin, a * sin + b * cos);
                }
            }
        }
        out
    }

    /// Φ `[T, H, n_a]` of angles `[T, n_a]` and steps `[T, H]`, from `phase` `[H, n_a]`, which becomes the last.
    fn phases(&self, angles: &[f32], delta: &[f32], phase: &mut [f32]) -> Vec<f32> {
        let Mamba3Spec { heads, angles: count, .. } = self.spec;
        let mut all = Vec::with_capacity(delta.len() * count);
        for (angles, delta) in angles.chunks_exact(count).zip(delta.chunks_exact(heads)) {
            for (phase, delta) in phase.chunks_exact_mut(count).zip(delta) {
                for (phase, angle) in phase.iter_mut().zip(angles) {
                    let speed = std::f32::consts::PI * angle.tanh();
                    *phase = (*phase + delta * speed).rem_euclid(std::f32::consts::TAU);
                }
            }
            all.extend_from_slice(phase);
        }
        all
    }

    /// `before`: key and value of the token before the first, `[H, N]` and `[H, P]`.
    fn writes(&self, [k, v, delta, lambda, log]: [&[f32]; 5], [key_before, value_before]: [&[f32]; 2]) -> Writes {
        let Mamba3Spec { heads, head_dim, state_dim, .. } = self.spec;
        let (keys, values) = (heads * state_dim, heads * head_dim);
        let row = |xs: &[f32], before: &[f32], t: usize, width: usize| -> Vec<f32> {
            if t == 0 { before.to_vec() } else { xs[(t - 1) * width..t * width].to_vec() }
        };
        let mut all = Writes { keys: Vec::new(), values: Vec::new(), weights: Vec::new(), log_decay: Vec::new() };
        for t in 0..delta.len() / heads {
            all.keys.extend(row(k, key_before, t, keys));
            all.keys.extend_from_slice(&k[t * keys..(t + 1) * keys]);
            all.values.extend(row(v, value_before, t, values));
            all.values.extend_from_slice(&v[t * values..(t + 1) * values]);
            let at = t * heads..(t + 1) * heads;
            let gates = || delta[at.clone()].iter().zip(&lambda[at.clone()]);
            // The op lets the state fade before it writes, so the first part fades here.
            let fades = log[at.clone()].iter();
            all.weights.extend(gates().zip(fades).map(|((delta, lambda), log)| (1.0 - lambda) * delta * log.exp()));
            all.weights.extend(gates().map(|(delta, lambda)| lambda * delta));
            all.log_decay.extend_from_slice(&log[at]);
            all.log_decay.resize(all.log_decay.len() + heads, 0.0);
        }
        all
    }

    fn op<'a>(&self, q: &'a [f32], writes: &'a Writes) -> Op<'a> {
        let Mamba3Spec { heads, head_dim, state_dim, .. } = self.spec;
        Op {
            heads,
            key_dim: state_dim,
            head_dim,
            q,
            k: &writes.keys,
            v: &writes.values,
            decay: KeyDecay::Scalar(&writes.log_decay),
            weight: Some(&writes.weights),
            correction: None,
            bonus: None,
        }
    }
}

/// Rows of in_proj: z, x, B, C, dt, a, trap, angles.
fn widths(spec: &Mamba3Spec) -> [usize; 8] {
    let (inner, keys) = (spec.heads * spec.head_dim, spec.groups * spec.state_dim);
    [inner, inner, keys, keys, spec.heads, spec.heads, spec.heads, spec.angles]
}

impl Mixer for Mamba3 {
    fn geometry(&self) -> Geometry {
        let Mamba3Spec { heads, head_dim, state_dim, angles, .. } = self.spec;
        Geometry {
            kind: MixerKind::Mamba3,
            heads,
            head_dim,
            state_dim,
            groups: heads,
            decay_dim: 1,
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: heads * ((head_dim + 1) * state_dim + angles + head_dim) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    /// Carried: Φ `[H, n_a]`, then B `[H, N]` and x `[H, P]` of the last token.
    fn slot(&self) -> StateSlot {
        let Mamba3Spec { heads, head_dim, state_dim, angles, .. } = self.spec;
        StateSlot {
            state: vec![0.0; heads * head_dim * state_dim],
            carried: vec![0.0; heads * (angles + state_dim + head_dim)],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let Mamba3Spec { heads, head_dim, state_dim, angles, floor, .. } = self.spec;
        let projected = project(&self.in_proj, None, xs);
        let (mut from, stride) = (0, self.in_proj.rows());
        let [mut z, mut x, b, c, mut delta, mut log, mut lambda, turns] = widths(&self.spec).map(|width| {
            from += width;
            columns(&projected, stride, from - width, width)
        });
        for row in delta.chunks_exact_mut(heads) {
            row.iter_mut().zip(&self.dt_bias).for_each(|(dt, bias)| *dt = softplus(*dt + bias));
        }
        hooks.pass(Point::Delta, &mut delta);
        log.iter_mut().zip(&delta).for_each(|(a, delta)| *a = -softplus(*a).max(floor) * delta);
        lambda.iter_mut().for_each(|x| *x = sigmoid(*x));
        hooks.pass(Point::LogDecay, &mut log);
        hooks.pass(Point::InputGate, &mut lambda);
        let (phase, before) = slot.carried.split_at_mut(heads * angles);
        let phases = self.phases(&turns, &delta, phase);
        let [mut k, mut q] = [(0, &b), (1, &c)].map(|(which, stored)| self.directions(which, stored, &phases));
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Query, &mut q);
        hooks.pass(Point::Value, &mut x);
        hooks.pass(Point::Gate, &mut z);

        let (key_before, value_before) = before.split_at_mut(heads * state_dim);
        let writes = self.writes([&k, &x, &delta, &lambda, &log], [key_before, value_before]);
        let (keys, values) = (heads * state_dim, heads * head_dim);
        // Only the second part of a token is read.
        let queries: Vec<f32> = q.chunks_exact(keys).flat_map(|q| [q, q].concat()).collect();
        let mut both = vec![0.0; 2 * x.len()];
        self.op(&queries, &writes).forward(&mut slot.state, &mut both);
        let mut y: Vec<f32> = both.chunks_exact(2 * values).flat_map(|both| both[values..].to_vec()).collect();
        for (y, x) in y.chunks_exact_mut(values).zip(x.chunks_exact(values)) {
            for (head, skip) in self.skip.iter().enumerate() {
                let at = head * head_dim..(head + 1) * head_dim;
                y[at.clone()].iter_mut().zip(&x[at]).for_each(|(y, x)| *y += skip * x);
            }
        }
        key_before.copy_from_slice(&k[k.len() - keys..]);
        value_before.copy_from_slice(&x[x.len() - values..]);
        hooks.pass(Point::Core, &mut y);
        let mut gated = vec![0.0; y.len()];
        silu_mul(&z, &y, &mut gated);
        linear(&self.out_proj, None, &gated, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (tokens, n) = (tape.positions().len(), self.spec.state_dim);
        let column = |point| tape.strided(point, head, 1);
        let (log, delta, lambda) = (column(Point::LogDecay), column(Point::Delta), column(Point::InputGate));
        let (key, query) = (tape.strided(Point::Key, head * n, n), tape.strided(Point::Query, head * n, n));
        // As a state that is read before it is written: what fades at the token that reads is in the query.
        let faded: Vec<f32> = (0..tokens).flat_map(|t| query.row(t).iter().map(move |q| q * log.at(t).exp())).collect();
        let own = |t: usize| lambda.at(t) * delta.at(t);
        let later = |t: usize| if t + 1 < tokens { (1.0 - lambda.at(t + 1)) * delta.at(t + 1) } else { 0.0 };
        let weight: Vec<f32> = (0..tokens).map(|t| own(t) + later(t)).collect();
        let dot = |t: usize| query.row(t).iter().zip(key.row(t)).map(|(q, k)| q * k).sum::<f32>();
        let bonus: Vec<f32> = (0..tokens).map(|t| own(t) * dot(t)).collect();
        let one = |data| Strided { data, stride: 1, offset: 0, width: 1 };
        draw(&Lowered::Recurrent(Recurrent {
            weight: Some(one(&weight)),
            decay: Decay::Scalar { log, factor: 1.0 },
            bonus: Some(one(&bonus)),
            diagonal: self.skip[head],
            ..Recurrent::new(tokens, Strided { data: &faded, stride: n, offset: 0, width: n }, key)
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let (p, n) = (self.spec.head_dim, self.spec.state_dim);
        let row = |point| tape.row(point, position);
        match point {
            Point::Decay => {
                let Some(log) = row(Point::LogDecay) else { return false };
                out.extend(log[heads].iter().map(|log| log.exp()));
            }
            Point::Write => {
                let (Some(k), Some(x)) = (row(Point::Key), row(Point::Value)) else { return false };
                let (Some(delta), Some(lambda)) = (row(Point::Delta), row(Point::InputGate)) else { return false };
                let norms = |h: usize| l2_norm(&k[h * n..(h + 1) * n]) * l2_norm(&x[h * p..(h + 1) * p]);
                out.extend(heads.map(|h| lambda[h] * delta[h] * norms(h)));
            }
            Point::Read => {
                let (Some(y), Some(x)) = (row(Point::Core), row(Point::Value)) else { return false };
                out.extend(heads.map(|h| {
                    let pairs = y[h * p..(h + 1) * p].iter().zip(&x[h * p..]);
                    pairs.map(|(y, x)| (y - self.skip[h] * x).powi(2)).sum::<f32>().sqrt()
                }));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let Mamba3Spec { heads, head_dim, state_dim, .. } = self.spec;
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        let before = |point, width: usize| -> Vec<f32> {
            match positions.start.checked_sub(1) {
                None => vec![0.0; width],
                // What is not recorded any more is not known.
                Some(position) => tape.row(point, position).map_or_else(|| vec![f32::NAN; width], <[f32]>::to_vec),
            }
        };
        let (key, value) = (before(Point::Key, heads * state_dim), before(Point::Value, heads * head_dim));
        let tokens = [Point::Key, Point::Value, Point::Delta, Point::InputGate, Point::LogDecay].map(rows);
        self.op(&[], &self.writes(tokens, [&key, &value])).fold(state);
    }
}
