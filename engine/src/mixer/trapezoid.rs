//! What both forms of Mamba-3 have in common (Lahoti et al. 2026, arXiv 2603.15569; the layout is flash-linear-attention's): a turning state
//! that is written by the trapezoid rule, at r ranks at once; r is 1 with one input and one output.
//!
//! ```text
//! [z; x; B; C; dt; a; trap; angles] = W_in u          B, C ← w ⊙ RMS(B, C) of each rank, shared by the heads of a group, + a bias of each head
//! Δ = softplus(dt + b)          A = −max(softplus(a), floor)          α = e^{ΔA}          λ = σ(trap)          per head, all of the token
//! Φ_t = Φ_{t−1} + Δ_t π tanh(angles)          pairs of entries of B and C are turned by Φ_t: (2i, 2i + 1), of several ranks (i, i + N/2)
//! S_t = α_t (S_{t−1} + (1 − λ_t) Δ_t Σ_ρ x^ρ_{t−1} B^ρ_{t−1}ᵀ) + λ_t Δ_t Σ_ρ x^ρ_t B^ρ_tᵀ          x^ρ = x ⊙ X^ρ (`mimo_x`), or x
//! y^ρ_t = S_t C^ρ_t + D x^ρ_t
//! ```

use std::ops::Range;

use statescope_kernels::activation::{sigmoid, softplus};
use statescope_kernels::linear_attention::{KeyDecay, LinearAttention as Op};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::norm::rms_norm;
use statescope_kernels::room::Room;

use super::{StateSlot, project_parts};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::Mamba3Spec;
use crate::protocol::Point;
use crate::tape::LayerTape;

/// The weights before the output.
pub(super) struct Trapezoid {
    pub(super) spec: Mamba3Spec,
    /// `[2E + 2rGN + 3H + n_a, d]`.
    in_proj: Matrix,
    /// `[N]` each, of B and of C.
    norms: [Vec<f32>; 2],
    /// `[H, r, N]` each.
    biases: [Vec<f32>; 2],
    /// `[H]` each.
    dt_bias: Vec<f32>,
    skip: Vec<f32>,
    /// X `[H, r, P]`, of several ranks.
    inputs: Option<Vec<f32>>,
}

/// What becomes of T tokens.
pub(super) struct Tokens {
    /// `[T, E]`.
    pub(super) z: Room,
    pub(super) x: Room,
    /// `[T, H, r, N]`, turned.
    keys: Vec<f32>,
    queries: Vec<f32>,
    /// Δ, log α and λ `[T, H]`.
    delta: Room,
    log_decay: Room,
    lambda: Room,
}

/// Writes of T tokens, each in two parts of r ranks: first what the token before still has to write, then its own; and behind them as many
/// places that write nothing as there are further ranks to be read. W places a token in all.
struct Writes {
    /// `[T, W, H, N]`.
    keys: Vec<f32>,
    /// `[T, W, H, P]`.
    values: Vec<f32>,
    /// `[T, W, H]`.
    weights: Vec<f32>,
    log_decay: Vec<f32>,
}

impl Trapezoid {
    pub(super) fn load(spec: &Mamba3Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let Mamba3Spec { heads, head_dim, state_dim, ranks, .. } = *spec;
        let rank = spec.rank();
        let bias = |name: &str| scope.tensor(name, &[heads, rank, state_dim]);
        Ok(Self {
            in_proj: scope.matrix("in_proj.weight", widths(spec).iter().sum(), hidden_size)?,
            norms: [scope.vector("B_norm.weight", state_dim)?, scope.vector("C_norm.weight", state_dim)?],
            biases: [bias("B_bias")?, bias("C_bias")?],
            dt_bias: scope.vector("dt_bias", heads)?,
            skip: scope.vector("D", heads)?,
            inputs: ranks.map(|rank| scope.tensor("mimo_x", &[heads, rank, head_dim])).transpose()?,
            spec: spec.clone(),
        })
    }

    /// Bytes of what a sequence carries along.
    pub(super) fn state_bytes(&self) -> usize {
        let slot = self.slot();
        (slot.state.len() + slot.carried.len()) * size_of::<f32>()
    }

    /// Carried: Φ `[H, n_a]`, then B `[H, r, N]` and x `[H, P]` of the last token.
    pub(super) fn slot(&self) -> StateSlot {
        let Mamba3Spec { heads, head_dim, state_dim, angles, .. } = self.spec;
        StateSlot {
            state: vec![0.0; heads * head_dim * state_dim],
            carried: vec![0.0; heads * (angles + self.spec.rank() * state_dim + head_dim)],
            ..StateSlot::default()
        }
    }

    /// X of a channel for every rank: its share of x^ρ.
    pub(super) fn shares(&self, channel: usize) -> impl Iterator<Item = f32> {
        let (p, rank) = (self.spec.head_dim, self.spec.rank());
        let at = move |r| (channel / p * rank + r) * p + channel % p;
        (0..rank).map(move |r| self.inputs.as_ref().map_or(1.0, |inputs| inputs[at(r)]))
    }

    /// D of a head.
    pub(super) fn skip(&self, head: usize) -> f32 {
        self.skip[head]
    }

    /// From xs `[T, d]` and the memory to what is read and y `[T, r, H, P]`, D x in it.
    pub(super) fn forward(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>) -> (Tokens, Vec<f32>) {
        let Mamba3Spec { heads, head_dim, state_dim, angles, .. } = self.spec;
        let (rank, values) = (self.spec.rank(), heads * head_dim);
        let keys = heads * rank * state_dim;
        let (phase, before) = slot.carried.split_at_mut(heads * angles);
        let tokens = self.tokens(xs, phase, hooks);
        let (key_before, value_before) = before.split_at_mut(keys);
        let Tokens { x, queries, .. } = &tokens;
        let writes = self.writes(tokens.recorded(), [key_before, value_before], true);
        let places = 3 * rank - 1;
        let mut asked = vec![0.0; writes.keys.len()];
        for (asked, query) in asked.chunks_exact_mut(places * heads * state_dim).zip(queries.chunks_exact(keys)) {
            let reads = asked[(2 * rank - 1) * heads * state_dim..].chunks_exact_mut(heads * state_dim);
            for (r, asked) in reads.enumerate() {
                for (head, asked) in asked.chunks_exact_mut(state_dim).enumerate() {
                    asked.copy_from_slice(&query[(head * rank + r) * state_dim..][..state_dim]);
                }
            }
        }
        let mut all = vec![0.0; writes.values.len()];
        self.op(&asked, &writes).forward(&mut slot.state, &mut all);
        let mut y = Vec::with_capacity(x.len() * rank);
        for token in all.chunks_exact(places * values) {
            y.extend_from_slice(&token[(2 * rank - 1) * values..]);
        }
        for (y, x) in y.chunks_exact_mut(rank * values).zip(x.chunks_exact(values)) {
            let ranked = self.ranked(x);
            let heads = y.chunks_exact_mut(head_dim).zip(ranked.chunks_exact(head_dim)).zip(self.skip.iter().cycle());
            heads.for_each(|((y, x), skip)| y.iter_mut().zip(x).for_each(|(y, x)| *y += skip * x));
        }
        key_before.copy_from_slice(&tokens.keys[tokens.keys.len() - keys..]);
        value_before.copy_from_slice(&x[x.len() - values..]);
        (tokens, y)
    }

    /// `phase`: Φ `[H, n_a]`, which becomes that of the last token.
    fn tokens(&self, xs: &[f32], phase: &mut [f32], hooks: &mut Hooks<'_>) -> Tokens {
        let Mamba3Spec { heads, floor, .. } = self.spec;
        let [z, mut x, b, c, mut delta, mut log_decay, mut lambda, turns] =
            project_parts(&self.in_proj, None, xs, widths(&self.spec));
        for row in delta.chunks_exact_mut(heads) {
            row.iter_mut().zip(&self.dt_bias).for_each(|(dt, bias)| *dt = softplus(*dt + bias));
        }
        hooks.pass(Point::Delta, &mut delta);
        log_decay.iter_mut().zip(&delta).for_each(|(a, delta)| *a = -softplus(*a).max(floor) * delta);
        lambda.iter_mut().for_each(|x| *x = sigmoid(*x));
        hooks.pass(Point::LogDecay, &mut log_decay);
        hooks.pass(Point::InputGate, &mut lambda);
        let phases = self.phases(&turns, &delta, phase);
        let [mut keys, mut queries] = [(0, &b), (1, &c)].map(|(which, stored)| self.directions(which, stored, &phases));
        hooks.pass(Point::Key, &mut keys);
        hooks.pass(Point::Query, &mut queries);
        hooks.pass(Point::Value, &mut x);
        Tokens { z, x, keys, queries, delta, log_decay, lambda }
    }

    /// B or C `[T, r, G, N]` normed, for each head, with its bias, turned by `phases` `[T, H, n_a]`: `[T, H, r, N]`.
    fn directions(&self, which: usize, stored: &[f32], phases: &[f32]) -> Vec<f32> {
        let Mamba3Spec { heads, groups, state_dim, angles, norm_eps, ranks, .. } = self.spec;
        let rank = self.spec.rank();
        let mut normed = vec![0.0; stored.len()];
        rms_norm(stored, &self.norms[which], norm_eps, &mut normed);
        let mut out = Vec::with_capacity(stored.len() / groups * heads);
        for (token, rows) in normed.chunks_exact(rank * groups * state_dim).enumerate() {
            for head in 0..heads {
                let phases = &phases[(token * heads + head) * angles..][..angles];
                for r in 0..rank {
                    let from = out.len();
                    let row = &rows[(r * groups + head * groups / heads) * state_dim..][..state_dim];
                    let bias = &self.biases[which][(head * rank + r) * state_dim..];
                    out.extend(row.iter().zip(bias).map(|(x, bias)| x + bias));
                    for (i, phase) in phases.iter().enumerate() {
                        let pair = if ranks.is_some() { [i, i + state_dim / 2] } else { [2 * i, 2 * i + 1] };
                        let ((sin, cos), [a, b]) = (phase.sin_cos(), pair.map(|entry| out[from + entry]));
                        out[from + pair[0]] = a * cos - b * sin;
                        out[from + pair[1]] = a * sin + b * cos;
                    }
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

    /// x^ρ `[r, H, P]` of the x `[H, P]` of a token.
    fn ranked(&self, x: &[f32]) -> Vec<f32> {
        let Some(inputs) = &self.inputs else { return x.to_vec() };
        let (p, rank) = (self.spec.head_dim, self.spec.rank());
        let mut ranked = Vec::with_capacity(rank * x.len());
        for r in 0..rank {
            for (x, inputs) in x.chunks_exact(p).zip(inputs.chunks_exact(rank * p)) {
                ranked.extend(x.iter().zip(&inputs[r * p..]).map(|(x, share)| x * share));
            }
        }
        ranked
    }

    /// Of keys, values, Δ, λ and log α of tokens. `before`: key and value of the token before the first, `[H, r, N]` and `[H, P]`.
    /// `read`: whether there are places for further ranks.
    fn writes(&self, [k, v, delta, lambda, log]: [&[f32]; 5], before: [&[f32]; 2], read: bool) -> Writes {
        let Mamba3Spec { heads, head_dim, state_dim, .. } = self.spec;
        let rank = self.spec.rank();
        let (keys, values) = (heads * rank * state_dim, heads * head_dim);
        let row = |xs: &[f32], width: usize, t: usize| xs[t * width..(t + 1) * width].to_vec();
        let mut all = Writes { keys: Vec::new(), values: Vec::new(), weights: Vec::new(), log_decay: Vec::new() };
        for t in 0..delta.len() / heads {
            let at = t * heads..(t + 1) * heads;
            let (delta, lambda, log) = (&delta[at.clone()], &lambda[at.clone()], &log[at]);
            let gates = || delta.iter().zip(lambda);
            let earlier = match t.checked_sub(1) {
                None => before.map(<[f32]>::to_vec),
                Some(t) => [row(k, keys, t), row(v, values, t)],
            };
            // The op lets the state fade before it writes, so the first part fades here.
            let late = gates().zip(log).map(|((delta, lambda), log)| (1.0 - lambda) * delta * log.exp()).collect();
            let own = gates().map(|(delta, lambda)| lambda * delta).collect();
            let parts: [(_, Vec<f32>); 2] = [(earlier, late), ([row(k, keys, t), row(v, values, t)], own)];
            for ([key, value], weights) in &parts {
                all.values.extend(self.ranked(value));
                for r in 0..rank {
                    for head in key.chunks_exact(rank * state_dim) {
                        all.keys.extend_from_slice(&head[r * state_dim..(r + 1) * state_dim]);
                    }
                    all.weights.extend_from_slice(weights);
                }
            }
            let (places, rest) = if read { (3 * rank - 1, rank - 1) } else { (2 * rank, 0) };
            all.keys.resize(all.keys.len() + rest * heads * state_dim, 0.0);
            all.values.resize(all.values.len() + rest * values, 0.0);
            all.weights.resize(all.weights.len() + rest * heads, 0.0);
            all.log_decay.extend_from_slice(log);
            all.log_decay.resize(all.log_decay.len() + (places - 1) * heads, 0.0);
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

    /// Advances the state over recorded tokens.
    pub(super) fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let Mamba3Spec { heads, head_dim, state_dim, .. } = self.spec;
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        let before = |point, width: usize| -> Vec<f32> {
            match positions.start.checked_sub(1) {
                None => vec![0.0; width],
                // What is not recorded any more is not known.
                Some(position) => tape.row(point, position).map_or_else(|| vec![f32::NAN; width], <[f32]>::to_vec),
            }
        };
        let key = before(Point::Key, heads * self.spec.rank() * state_dim);
        let value = before(Point::Value, heads * head_dim);
        let tokens = [Point::Key, Point::Value, Point::Delta, Point::InputGate, Point::LogDecay].map(rows);
        self.op(&[], &self.writes(tokens, [&key, &value], false)).fold(state);
    }
}

impl Tokens {
    /// In the order of [`Trapezoid::writes`].
    fn recorded(&self) -> [&[f32]; 5] {
        [&self.keys, &self.x, &self.delta, &self.lambda, &self.log_decay]
    }
}

/// Rows of in_proj: z, x, B, C, dt, a, trap, angles.
fn widths(spec: &Mamba3Spec) -> [usize; 8] {
    let (inner, keys) = (spec.heads * spec.head_dim, spec.rank() * spec.groups * spec.state_dim);
    [inner, inner, keys, keys, spec.heads, spec.heads, spec.heads, spec.angles]
}

/// What determines M of one head or channel over the recorded tokens, of its λ, Δ and log α.
pub(super) struct Shares {
    /// λ_j Δ_j, written at once, and with it (1 − λ_{j+1}) Δ_{j+1}, written at the next token's step, `[T]` each.
    pub(super) own: Vec<f32>,
    pub(super) all: Vec<f32>,
}

impl Shares {
    pub(super) fn of(tape: &LayerTape, head: usize) -> Self {
        let tokens = tape.positions().len();
        let (delta, lambda) = (tape.strided(Point::Delta, head, 1), tape.strided(Point::InputGate, head, 1));
        let own: Vec<f32> = (0..tokens).map(|t| lambda.at(t) * delta.at(t)).collect();
        let later = |t: usize| if t + 1 < tokens { (1.0 - lambda.at(t + 1)) * delta.at(t + 1) } else { 0.0 };
        let all = own.iter().enumerate().map(|(t, own)| own + later(t)).collect();
        Self { own, all }
    }
}
