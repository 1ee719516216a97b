//! Causal softmax attention with grouped queries and rotary positions (Vaswani et al. 2017; Ainslie et al. 2023; Su et al. 2021).
//!
//! ```text
//! q, k, v = W_q u, W_k u, W_v u          q, k ← RoPE(norm(q), norm(k))          M_ts = softmax_s(scale · q_t·k_s), t − W < s ≤ t
//! y_t = Σ_s M_ts v_s          out = W_o y, or W_o (y ⊙ σ(gate))
//! ```

use std::ops::Range;

use statescope_kernels::activation::{sigmoid, sigmoid_slice};
use statescope_kernels::attention::{Attention, PAGE, Rope};
#[cfg(feature = "cuda")]
use statescope_kernels::cuda;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::Lowered;
use statescope_kernels::reduce::l2_norm;

use super::slot::KvCache;
use super::{Mixer, StateSlot};
#[cfg(feature = "cuda")]
use crate::device::{DeviceMixer, Upload};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::feed_forward::{Adapter, add, scale};
use crate::model::norm::Norm;
use crate::model::spec::{AttentionSpec, QkvLayout};
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one attention mixer.
#[derive(Clone)]
pub struct SoftmaxAttention {
    pub(crate) spec: AttentionSpec,
    pub(crate) rope: Option<Rope>,
    pub(crate) q: Projection,
    pub(crate) k: Projection,
    pub(crate) v: Projection,
    /// `[H·hd, d]`.
    pub(crate) gate: Option<Projection>,
    /// Over head_dim.
    pub(crate) qk_norm: Option<(Norm, Norm)>,
    pub(crate) adapters: Option<QkvAdapters>,
    /// `[d, H·hd]`.
    pub(crate) o_proj: Matrix,
    pub(crate) o_bias: Option<Vec<f32>>,
}

/// A linear map with its bias.
#[derive(Clone)]
pub(crate) struct Projection {
    pub(crate) matrix: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Projection {
    /// Rows `runs` of both.
    fn pick(&self, runs: &[Range<usize>]) -> Self {
        let pick = |bias: &Vec<f32>| runs.iter().flat_map(|run| &bias[run.clone()]).copied().collect();
        Self { matrix: self.matrix.pick_rows(runs), bias: self.bias.as_ref().map(pick) }
    }

    /// xs `[T, in]` → `[T, out]`.
    fn forward(&self, xs: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; xs.len() / self.matrix.cols() * self.matrix.rows()];
        linear(&self.matrix, self.bias.as_deref(), xs, &mut out);
        out
    }
}

/// Low-rank additions to q, k and v.
#[derive(Clone)]
pub struct QkvAdapters([Adapter; 3]);

impl QkvAdapters {
    /// Use number `usage` of a shared attention that reads `[T, inputs]`.
    pub fn load(
        spec: &AttentionSpec,
        inputs: usize,
        rank: usize,
        usage: usize,
        scope: &Scope<'_>,
    ) -> Result<Self, LoadError> {
        let load = |name: &str, heads: usize| {
            let scope = scope.scope(&format!("linear_{name}_adapter_list.{usage}"));
            Adapter::load(inputs, rank, heads * spec.head_dim, &scope)
        };
        Ok(Self([load("q", spec.heads)?, load("k", spec.kv_heads)?, load("v", spec.kv_heads)?]))
    }
}

/// `count` runs of `len` rows, one every `stride`, from `offset`.
fn runs(count: usize, stride: usize, offset: usize, len: usize) -> Vec<Range<usize>> {
    (0..count).map(|i| i * stride + offset..i * stride + offset + len).collect()
}

impl SoftmaxAttention {
    /// Reads `[T, inputs]`, writes `[T, outputs]`.
    pub fn load(spec: &AttentionSpec, inputs: usize, outputs: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (heads, hd) = (spec.heads, spec.head_dim);
        let (q_rows, kv_rows) = (heads * hd, spec.kv_heads * hd);
        let load = |name: &str, rows: usize| -> Result<Projection, LoadError> {
            let matrix = scope.matrix(&format!("{name}.weight"), rows, inputs)?;
            Ok(Projection { matrix, bias: scope.vector_if(spec.qkv_bias, &format!("{name}.bias"), rows)? })
        };
        let (q, gate, k, v) = match spec.layout {
            QkvLayout::Separate => {
                let (q, gate) = if spec.gated {
                    let both = load("q_proj", 2 * q_rows)?;
                    (both.pick(&runs(heads, 2 * hd, 0, hd)), Some(both.pick(&runs(heads, 2 * hd, hd, hd))))
                } else {
                    (load("q_proj", q_rows)?, None)
                };
                (q, gate, load("k_proj", kv_rows)?, load("v_proj", kv_rows)?)
            }
            QkvLayout::ByHead => {
                let all = load("qkv_proj", 3 * q_rows)?;
                let part = |i: usize| all.pick(&runs(heads, 3 * hd, i * hd, hd));
                (part(0), None, part(1), part(2))
            }
            QkvLayout::ByKind => {
                let all = load("qkv_proj", q_rows + 2 * kv_rows)?;
                let part = |start: usize, len: usize| all.pick(&runs(1, 0, start, len));
                (part(0, q_rows), None, part(q_rows, kv_rows), part(q_rows + kv_rows, kv_rows))
            }
        };
        let qk_norm = match spec.qk_norm {
            Some(norm) => Some((Norm::load(norm, "q_norm", hd, scope)?, Norm::load(norm, "k_norm", hd, scope)?)),
            None => None,
        };
        Ok(Self {
            rope: spec.rope.clone().map(Rope::new),
            q,
            k,
            v,
            gate,
            qk_norm,
            adapters: None,
            o_proj: scope.matrix("o_proj.weight", outputs, q_rows)?,
            o_bias: scope.vector_if(spec.out_bias, "o_proj.bias", outputs)?,
            spec: spec.clone(),
        })
    }

    /// The same attention with low-rank additions.
    pub fn with_adapters(&self, adapters: Option<QkvAdapters>) -> Self {
        Self { adapters, ..self.clone() }
    }

    /// q `[T, H, hd]`, k and v `[T, H_kv, hd]` of tokens from position `first`.
    fn project(&self, xs: &[f32], first: usize) -> [Vec<f32>; 3] {
        let mut qkv = [self.q.forward(xs), self.k.forward(xs), self.v.forward(xs)];
        if let Some(QkvAdapters(adapters)) = &self.adapters {
            qkv.iter_mut().zip(adapters).for_each(|(x, adapter)| add(x, &adapter.forward(xs)));
        }
        let [q, k, _] = &mut qkv;
        scale(k, self.spec.key_scale);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q_norm.apply(q);
            k_norm.apply(k);
        }
        if let Some(rope) = &self.rope {
            rope.apply(q, self.spec.heads, self.spec.head_dim, first);
            rope.apply(k, self.spec.kv_heads, self.spec.head_dim, first);
        }
        qkv
    }

    fn kv_width(&self) -> usize {
        self.spec.kv_heads * self.spec.head_dim
    }

    fn kv_head(&self, head: usize) -> usize {
        head * self.spec.kv_heads / self.spec.heads
    }

    fn attention<'a>(&self, keys: &'a [&'a [f32]], values: &'a [&'a [f32]]) -> Attention<'a> {
        let AttentionSpec { heads, kv_heads, head_dim, scale, window, .. } = self.spec;
        Attention { heads, kv_heads, head_dim, scale, window, keys, values }
    }
}

impl Mixer for SoftmaxAttention {
    #[cfg(feature = "cuda")]
    fn upload(&self, to: &Upload<'_>) -> cuda::Result<Option<DeviceMixer>> {
        Ok(crate::device::attention::Attention::upload(self, to)?.map(DeviceMixer::Attention))
    }

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
            gated: spec.gated,
            window: spec.window,
            state_bytes: 0,
            kv_bytes_per_token: 2 * self.kv_width() * size_of::<f32>(),
        }
    }

    fn slot(&self) -> StateSlot {
        StateSlot { kv: KvCache::new(self.kv_width()), ..StateSlot::default() }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let (heads, head_dim) = (self.spec.heads, self.spec.head_dim);
        let (rows, first) = (xs.len() / self.q.matrix.cols(), slot.kv.len());
        let [mut q, mut k, mut v] = self.project(xs, first);
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
        if let Some(gate) = &self.gate {
            let mut gate = gate.forward(xs);
            hooks.pass(Point::Gate, &mut gate);
            sigmoid_slice(&mut gate);
            y.iter_mut().zip(&gate).for_each(|(y, gate)| *y *= gate);
        }
        if let Some(window) = self.spec.window {
            slot.kv.forget_before((first + rows).saturating_sub(window));
        }
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

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let head_dim = self.spec.head_dim;
        let row = |point| tape.row(point, position);
        match point {
            Point::Write => {
                let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
                out.extend(heads.map(|head| {
                    let at = self.kv_head(head) * head_dim..(self.kv_head(head) + 1) * head_dim;
                    l2_norm(&k[at.clone()]) * l2_norm(&v[at])
                }));
            }
            Point::Read => {
                let Some(y) = row(Point::Core) else { return false };
                out.extend(heads.map(|head| l2_norm(&y[head * head_dim..(head + 1) * head_dim])));
            }
            _ => return false,
        }
        true
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, channel: usize) -> f32 {
        let gate = tape.row(Point::Gate, position);
        gate.map_or(1.0, |gate| sigmoid(gate[head * self.spec.head_dim + channel]))
    }

    fn fold(&self, _tape: &LayerTape, _positions: Range<usize>, _state: &mut [f32]) {}
}
