//! Causal softmax attention with grouped queries and rotary positions (Vaswani et al. 2017; Ainslie et al. 2023; Su et al. 2021).
//!
//! ```text
//! q, k, v = W_q u, W_k u, W_v u          q, k ← RoPE(q, k)          M_ts = softmax_s(scale · q_t·k_s), s ≤ t          y_t = Σ_s M_ts v_s
//! out = W_o y
//! ```

use std::ops::Range;

use statescope_kernels::attention::{Attention, PAGE, Rope};
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::Lowered;
use statescope_kernels::reduce::l2_norm;

use super::slot::KvCache;
use super::{Mixer, StateSlot};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::AttentionSpec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one attention mixer.
pub struct SoftmaxAttention {
    spec: AttentionSpec,
    rope: Option<Rope>,
    /// `[H·hd, d]`, then twice `[H_kv·hd, d]`.
    q_proj: Matrix,
    k_proj: Matrix,
    v_proj: Matrix,
    q_bias: Option<Vec<f32>>,
    k_bias: Option<Vec<f32>>,
    v_bias: Option<Vec<f32>>,
    /// `[d, H·hd]`.
    o_proj: Matrix,
    o_bias: Option<Vec<f32>>,
}

impl SoftmaxAttention {
    pub fn load(spec: &AttentionSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let bias = |name: &str, present: bool, len: usize| present.then(|| scope.vector(name, len)).transpose();
        Ok(Self {
            rope: spec.rope.clone().map(Rope::new),
            q_proj: scope.matrix("q_proj.weight", q, hidden_size)?,
            k_proj: scope.matrix("k_proj.weight", kv, hidden_size)?,
            v_proj: scope.matrix("v_proj.weight", kv, hidden_size)?,
            q_bias: bias("q_proj.bias", spec.qkv_bias, q)?,
            k_bias: bias("k_proj.bias", spec.qkv_bias, kv)?,
            v_bias: bias("v_proj.bias", spec.qkv_bias, kv)?,
            o_proj: scope.matrix("o_proj.weight", hidden_size, q)?,
            o_bias: bias("o_proj.bias", spec.out_bias, hidden_size)?,
            spec: spec.clone(),
        })
    }

    fn kv_width(&self) -> usize {
        self.spec.kv_heads * self.spec.head_dim
    }

    fn kv_head(&self, head: usize) -> usize {
        head * self.spec.kv_heads / self.spec.heads
    }

    fn attention<'a>(&self, keys: &'a [&'a [f32]], values: &'a [&'a [f32]]) -> Attention<'a> {
        let AttentionSpec { heads, kv_heads, head_dim, scale, .. } = self.spec;
        Attention { heads, kv_heads, head_dim, scale, keys, values }
    }
}

impl Mixer for SoftmaxAttention {
    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        Geometry {
            kind: MixerKind::Attention,
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.head_dim,
            groups: spec.kv_heads,
            decay_dim: 0,
            conv_taps: 0,
            state_bytes: 0,
            kv_bytes_per_token: 2 * self.kv_width() * size_of::<f32>(),
        }
    }

    fn slot(&self) -> StateSlot {
        StateSlot { kv: KvCache::new(self.kv_width()), ..StateSlot::default() }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let (heads, head_dim) = (self.spec.heads, self.spec.head_dim);
        let (rows, first) = (xs.len() / self.q_proj.cols(), slot.kv.len());
        let mut q = vec![0.0; rows * heads * head_dim];
        let mut k = vec![0.0; rows * self.kv_width()];
        let mut v = vec![0.0; rows * self.kv_width()];
        linear(&self.q_proj, self.q_bias.as_deref(), xs, &mut q);
        linear(&self.k_proj, self.k_bias.as_deref(), xs, &mut k);
        linear(&self.v_proj, self.v_bias.as_deref(), xs, &mut v);
        if let Some(rope) = &self.rope {
            rope.apply(&mut q, heads, head_dim, first);
            rope.apply(&mut k, self.spec.kv_heads, head_dim, first);
        }
        hooks.pass(Point::Query, &mut q);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        slot.kv.append(&k, &v);

        let mut y = vec![0.0; rows * heads * head_dim];
        let mut entropy = vec![0.0; if hooks.wanted() { rows * heads } else { 0 }];
        self.attention(&slot.kv.key_pages(), &slot.kv.value_pages()).forward(
            &q,
            first,
            &mut y,
            hooks.wanted().then_some(&mut entropy),
        );
        hooks.show(Point::Entropy, &entropy);
        hooks.pass(Point::Core, &mut y);
        linear(&self.o_proj, self.o_bias.as_deref(), &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (head_dim, page) = (self.spec.head_dim, PAGE * self.kv_width());
        let pages = |point| tape.rows(point, tape.positions()).unwrap_or_default().chunks(page).collect::<Vec<_>>();
        draw(&Lowered::Softmax {
            attention: self.attention(&pages(Point::Key), &pages(Point::Value)),
            query: tape.strided(Point::Query, head * head_dim, head_dim),
            head,
        });
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, out: &mut Vec<f32>) -> bool {
        let head_dim = self.spec.head_dim;
        let row = |point| tape.row(point, position);
        match point {
            Point::Write => {
                let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
                out.extend((0..self.spec.heads).map(|head| {
                    let at = self.kv_head(head) * head_dim..(self.kv_head(head) + 1) * head_dim;
                    l2_norm(&k[at.clone()]) * l2_norm(&v[at])
                }));
            }
            Point::Read => {
                let Some(y) = row(Point::Core) else { return false };
                out.extend(y.chunks_exact(head_dim).map(l2_norm));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, _tape: &LayerTape, _positions: Range<usize>, _state: &mut [f32]) {}
}
