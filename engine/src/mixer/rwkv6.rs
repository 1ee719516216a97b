//! The time mixing of RWKV-6 (Peng et al. 2024, arXiv 2404.05892), in the layouts of flash-linear-attention, of the official files and of
//! GGUF.
//!
//! ```text
//! δ = u_{t−1} − u_t          h = tanh(W_x (u + δ μ))          x_j = u + δ (m_j + M_j h_j)          for each of r, w, k, v, g
//! r, k, v, g = W x          w = exp(−exp(W_2 tanh(W_1 x_w) + b)) ∈ (0, 1)
//! y_t = S_{t−1}ᵀ r_t + (Σ_n r_t u k_t) v_t          S_t = diag(w_t) S_{t−1} + k_t v_tᵀ          per head
//! out = W_o (LN_head(y) ⊙ silu(g))
//! ```
//!
//! The state is read before it is written: what a token reads of its own value is the bonus Σ r u k.

use std::ops::Range;

use statescope_kernels::activation::{exp_slice, silu_mul};
use statescope_kernels::linear::linear;
use statescope_kernels::linear_attention::{KeyDecay, LinearAttention as Op};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent};

use super::rwkv7::LowRank;
use super::{Mixer, StateSlot, columns, derive_of_keys, head_layer_norm, interpolated, project, shifted};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::{Rwkv6Layout, Rwkv6Spec};
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one time mixing.
pub struct Rwkv6 {
    spec: Rwkv6Spec,
    /// 1 − μ `[d]`.
    share: Vec<f32>,
    /// W_x `[5R, d]`.
    mix_down: Matrix,
    /// M of r, w, k, v, g, `[d, R]` each.
    mix_up: Vec<Matrix>,
    /// m of the same, `[5, d]`.
    mix_bias: Vec<f32>,
    r: Matrix,
    k: Matrix,
    v: Matrix,
    g: Matrix,
    decay: LowRank,
    /// u `[H, D_k]`.
    bonus: Vec<f32>,
    /// `[H D_v]` each.
    norm: Vec<f32>,
    norm_bias: Vec<f32>,
    out_proj: Matrix,
}

/// The maps that the layouts store each their own way, here in the order r, w, k, v, g.
struct Mixes {
    /// `[d]`.
    mu: Vec<f32>,
    down: Matrix,
    up: Vec<Matrix>,
    bias: Vec<f32>,
    decay: LowRank,
}

impl Mixes {
    fn of_fla(spec: &Rwkv6Spec, d: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (rank, keys) = (spec.mix_rank, spec.heads * spec.key_dim);
        // `[d, 5R]`: the columns of each stand together.
        let ups = scope.matrix("x_proj.2.weight", d, 5 * rank)?.transposed();
        Ok(Self {
            mu: scope.vector("x_proj.0.mu", d)?,
            down: scope.matrix("x_proj.0.linear.weight", 5 * rank, d)?,
            up: (0..5).map(|j| part(&ups, j, rank).transposed()).collect(),
            bias: scope.tensor("x_bias", &[5, d])?,
            decay: LowRank::load("w_proj.linear.lora", [d, spec.decay_rank, keys], true, scope)?,
        })
    }

    /// `turned`: matrices are `[out, in]`.
    fn official(spec: &Rwkv6Spec, d: usize, scope: &Scope<'_>, turned: bool) -> Result<Self, LoadError> {
        let (rank, keys) = (spec.mix_rank, spec.heads * spec.key_dim);
        // Of w, k, v, r, g.
        const ORDER: [usize; 5] = [3, 0, 1, 2, 4];
        let matrix = |name: &str, outputs, inputs| match turned {
            true => scope.matrix(name, outputs, inputs),
            false => Ok(scope.matrix(name, inputs, outputs)?.transposed()),
        };
        let downs = matrix("time_maa_w1", 5 * rank, d)?;
        let (rows, cols) = if turned { (d, rank) } else { (rank, d) };
        let ups = scope.stacked_matrix("time_maa_w2", 5, rows, cols)?;
        let up = |j: usize| if turned { part(&ups, j, d) } else { part(&ups, j, rank).transposed() };
        let share = |name: &str| scope.tensor(&format!("time_maa_{name}"), &[1, 1, d]);
        Ok(Self {
            mu: share("x")?,
            down: downs.pick_rows(&ORDER.map(|j| j * rank..(j + 1) * rank)),
            up: ORDER.into_iter().map(up).collect(),
            bias: [share("r")?, share("w")?, share("k")?, share("v")?, share("g")?].concat(),
            decay: LowRank {
                down: matrix("time_decay_w1", spec.decay_rank, d)?,
                up: matrix("time_decay_w2", keys, spec.decay_rank)?,
                bias: Some(scope.tensor("time_decay", &[1, 1, keys])?),
            },
        })
    }
}

/// What tokens read of their own value, Σ_n r u k: r, k `[T, H, N]` and u `[H, N]` → `[T, H]`.
pub(super) fn own_reads(r: &[f32], k: &[f32], u: &[f32], key_dim: usize) -> Vec<f32> {
    let heads = r.chunks_exact(key_dim).zip(k.chunks_exact(key_dim)).zip(u.chunks_exact(key_dim).cycle());
    heads.map(|((r, k), u)| r.iter().zip(k).zip(u).map(|((r, k), u)| r * k * u).sum()).collect()
}

/// Appends ‖y − (Σ r u k) v‖ of each of `heads`; false if the token is not recorded.
pub(super) fn read_without_bonus(
    tape: &LayerTape,
    position: usize,
    heads: Range<usize>,
    head_dim: usize,
    out: &mut Vec<f32>,
) -> bool {
    let row = |point| tape.row(point, position);
    let (Some(y), Some(bonus), Some(v)) = (row(Point::Core), row(Point::Bonus), row(Point::Value)) else {
        return false;
    };
    out.extend(heads.map(|h| {
        let at = h * head_dim..(h + 1) * head_dim;
        y[at.clone()].iter().zip(&v[at]).map(|(y, v)| (y - bonus[h] * v).powi(2)).sum::<f32>().sqrt()
    }));
    true
}

/// The `j`-th of several matrices of so many rows.
fn part(matrix: &Matrix, j: usize, rows: usize) -> Matrix {
    matrix.pick_rows(std::slice::from_ref(&(j * rows..(j + 1) * rows)))
}

impl Rwkv6 {
    pub fn load(spec: &Rwkv6Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (d, keys, values) = (hidden_size, spec.heads * spec.key_dim, spec.heads * spec.head_dim);
        let matrix = |name: &str, rows| scope.matrix(&format!("{name}_proj.linear.weight"), rows, d);
        let Mixes { mu, down, up, bias, decay } = match spec.layout {
            Rwkv6Layout::Fla => Mixes::of_fla(spec, d, scope)?,
            layout => Mixes::official(spec, d, scope, layout == Rwkv6Layout::Gguf)?,
        };
        Ok(Self {
            share: mu.into_iter().map(|mu| 1.0 - mu).collect(),
            mix_down: down,
            mix_up: up,
            mix_bias: bias,
            r: matrix("r", keys)?,
            k: matrix("k", keys)?,
            v: matrix("v", values)?,
            g: matrix("g", values)?,
            decay,
            bonus: scope.tensor("bonus", &[spec.heads, spec.key_dim])?,
            norm: scope.vector("g_norm.weight", values)?,
            norm_bias: scope.vector("g_norm.bias", values)?,
            out_proj: scope.matrix("o_proj.weight", d, values)?,
            spec: spec.clone(),
        })
    }

    /// What r, w, k, v and g are made of, `[T, d]` each.
    fn mixed(&self, xs: &[f32], before: &[f32]) -> [Vec<f32>; 5] {
        let (d, rank) = (self.share.len(), self.spec.mix_rank);
        let mut low = project(&self.mix_down, None, &interpolated(xs, before, &self.share));
        low.iter_mut().for_each(|x| *x = x.tanh());
        std::array::from_fn(|j| {
            let bias = &self.mix_bias[j * d..(j + 1) * d];
            let mut mixed = project(&self.mix_up[j], Some(bias), &columns(&low, 5 * rank, j * rank, rank));
            let tokens = xs.iter().zip(before);
            mixed.iter_mut().zip(tokens).for_each(|(mix, (x, before))| *mix = x + (before - x) * *mix);
            mixed
        })
    }

    fn op<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32], log: &'a [f32], bonus: &'a [f32]) -> Op<'a> {
        let Rwkv6Spec { heads, key_dim, head_dim, .. } = self.spec;
        let (decay, bonus) = (KeyDecay::Key(log), Some(bonus));
        Op { heads, key_dim, head_dim, q, k, v, decay, weight: None, correction: None, bonus }
    }
}

impl Mixer for Rwkv6 {
    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        Geometry {
            kind: MixerKind::Rwkv6,
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.key_dim,
            groups: spec.heads,
            rank: 1,
            decay_dim: spec.key_dim,
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: (self.norm.len() * spec.key_dim + self.share.len()) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        StateSlot {
            state: vec![0.0; self.norm.len() * self.spec.key_dim],
            conv: vec![0.0; self.share.len()],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let spec = &self.spec;
        let before = shifted(xs, &mut slot.conv);
        let [x_r, x_w, x_k, x_v, x_g] = self.mixed(xs, &before);
        let mut r = project(&self.r, None, &x_r);
        let mut k = project(&self.k, None, &x_k);
        let mut v = project(&self.v, None, &x_v);
        let mut gate = project(&self.g, None, &x_g);
        let mut log = self.decay.forward(&x_w, |low| low.iter_mut().for_each(|x| *x = x.tanh()));
        exp_slice(&mut log);
        log.iter_mut().for_each(|log| *log = -*log);
        hooks.pass(Point::Query, &mut r);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        hooks.pass(Point::Gate, &mut gate);
        hooks.pass(Point::LogDecay, &mut log);
        let mut bonus = own_reads(&r, &k, &self.bonus, spec.key_dim);
        hooks.pass(Point::Bonus, &mut bonus);

        let mut y = vec![0.0; v.len()];
        self.op(&r, &k, &v, &log, &bonus).forward(&mut slot.state, &mut y);
        hooks.pass(Point::Core, &mut y);
        let normed = head_layer_norm(&y, spec.head_dim, &self.norm, Some(&self.norm_bias), spec.norm_eps);
        silu_mul(&gate, &normed, &mut y);
        linear(&self.out_proj, None, &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let n = self.spec.key_dim;
        let keys = |point| tape.strided(point, head * n, n);
        draw(&Lowered::Recurrent(Recurrent {
            decay: Decay::Key { log: keys(Point::LogDecay) },
            bonus: Some(tape.strided(Point::Bonus, head, 1)),
            ..Recurrent::new(tape.positions().len(), keys(Point::Query), keys(Point::Key))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let (p, n) = (self.spec.head_dim, self.spec.key_dim);
        match point {
            Point::Read => read_without_bonus(tape, position, heads, p, out),
            _ => derive_of_keys(point, tape, position, heads, [p, n], out),
        }
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        let (k, v, bonus) = (rows(Point::Key), rows(Point::Value), rows(Point::Bonus));
        self.op(&[], k, v, rows(Point::LogDecay), bonus).fold(state);
    }
}
