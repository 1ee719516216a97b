//! Causal softmax attention with grouped queries and rotary positions (Vaswani et al. 2017; Ainslie et al. 2023; Su et al. 2021).
//!
//! ```text
//! q, k, v = W_q u, W_k u, W_v u          q, k ← RoPE(norm(q), norm(k))          M_ts = softmax_s(scale · q_t·k_s), t − W < s ≤ t
//! y_t = Σ_s M_ts v_s          out = W_o y, or W_o (y ⊙ σ(gate)), or W_o norm(y)
//! ```
//!
//! Hymba (Dong et al. 2024, arXiv 2411.13676) keeps its meta tokens in sight of every window, has values wider than keys, norms y over
//! all heads, and lets a layer read the keys and values of an earlier one.

use std::ops::Range;

use statescope_kernels::activation::{sigmoid, sigmoid_slice};
use statescope_kernels::attention::{Attention, Layout, PAGE};
#[cfg(feature = "cuda")]
use statescope_kernels::cuda;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::Lowered;
use statescope_kernels::reduce::l2_norm;
use statescope_kernels::room::Room;
use statescope_kernels::rope::Rope;

use super::slot::KvCache;
use super::{Handed, Lent, Mixer, StateSlot};
#[cfg(feature = "cuda")]
use crate::device::{DeviceMixer, Upload};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::feed_forward::{Adapter, add, scale};
use crate::model::norm::Norm;
use crate::model::spec::{AttentionSpec, KvUse, QkvLayout};
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one attention mixer.
#[derive(Clone)]
pub struct SoftmaxAttention {
    pub(crate) spec: AttentionSpec,
    pub(crate) rope: Option<Rope>,
    pub(crate) q: Projection,
    /// To k and v; none where they are borrowed.
    pub(crate) kv: Option<[Projection; 2]>,
    /// `[H·hv, d]`.
    pub(crate) gate: Option<Projection>,
    /// Over head_dim.
    pub(crate) qk_norm: Option<(Norm, Norm)>,
    pub(crate) adapters: Option<QkvAdapters>,
    /// Over H·hv.
    pub(crate) out_norm: Option<Norm>,
    /// `[d, H·hv]`.
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
    fn forward(&self, xs: &[f32]) -> Room {
        let mut out = Room::new(xs.len() / self.matrix.cols() * self.matrix.rows());
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
        let [q_rows, k_rows, v_rows, out_rows] =
            [heads * hd, spec.kv_heads * hd, spec.kv_heads * spec.value_dim, heads * spec.value_dim];
        let load = |name: &str, rows: usize| -> Result<Projection, LoadError> {
            let matrix = scope.matrix(&format!("{name}.weight"), rows, inputs)?;
            Ok(Projection { matrix, bias: scope.vector_if(spec.qkv_bias, &format!("{name}.bias"), rows)? })
        };
        let (q, gate, kv) = match spec.layout {
            QkvLayout::Separate => {
                let (q, gate) = if spec.gated {
                    let both = load("q_proj", 2 * q_rows)?;
                    (both.pick(&runs(heads, 2 * hd, 0, hd)), Some(both.pick(&runs(heads, 2 * hd, hd, hd))))
                } else {
                    (load("q_proj", q_rows)?, None)
                };
                (q, gate, Some([load("k_proj", k_rows)?, load("v_proj", v_rows)?]))
            }
            QkvLayout::ByHead => {
                let all = load("qkv_proj", 3 * q_rows)?;
                let part = |i: usize| all.pick(&runs(heads, 3 * hd, i * hd, hd));
                (part(0), None, Some([part(1), part(2)]))
            }
            QkvLayout::ByKind => {
                let all = load("qkv_proj", q_rows + k_rows + v_rows)?;
                let part = |start: usize, len: usize| all.pick(&runs(1, 0, start, len));
                (part(0, q_rows), None, Some([part(q_rows, k_rows), part(q_rows + k_rows, v_rows)]))
            }
            QkvLayout::InProj => {
                let owns = !matches!(spec.kv, KvUse::Borrowed { .. });
                let all = load("in_proj", spec.in_proj_rows() + 2 * out_rows)?;
                let part = |start: usize, len: usize| all.pick(&runs(1, 0, start, len));
                let kv = owns.then(|| [part(q_rows, k_rows), part(q_rows + k_rows, v_rows)]);
                (part(0, q_rows), None, kv)
            }
        };
        let qk_norm = match spec.qk_norm {
            Some(norm) => Some((Norm::load(norm, "q_norm", hd, scope)?, Norm::load(norm, "k_norm", hd, scope)?)),
            None => None,
        };
        Ok(Self {
            rope: spec.rope.clone().map(Rope::new),
            q,
            kv,
            gate,
            qk_norm,
            adapters: None,
            out_norm: spec.out_norm.map(|norm| Norm::load(norm, "attention_norm", out_rows, scope)).transpose()?,
            o_proj: scope.matrix("o_proj.weight", outputs, out_rows)?,
            o_bias: scope.vector_if(spec.out_bias, "o_proj.bias", outputs)?,
            spec: spec.clone(),
        })
    }

    /// The same attention with low-rank additions.
    pub fn with_adapters(&self, adapters: Option<QkvAdapters>) -> Self {
        Self { adapters, ..self.clone() }
    }

    /// q `[T, H, hd]` of tokens from position `first`.
    fn queries(&self, xs: &[f32], first: usize) -> Room {
        let mut q = self.q.forward(xs);
        if let Some(QkvAdapters([adapter, ..])) = &self.adapters {
            add(&mut q, &adapter.forward(xs));
        }
        if let Some((norm, _)) = &self.qk_norm {
            norm.apply(&mut q);
        }
        if let Some(rope) = &self.rope {
            rope.apply(&mut q, self.spec.heads, self.spec.head_dim, first);
        }
        q
    }

    /// k `[T, H_kv, hd]` and v `[T, H_kv, hv]` of tokens from position `first`.
    fn keys_and_values(&self, [k, v]: &[Projection; 2], xs: &[f32], first: usize) -> [Room; 2] {
        let [mut k, mut v] = [k.forward(xs), v.forward(xs)];
        if let Some(QkvAdapters([_, of_keys, of_values])) = &self.adapters {
            add(&mut k, &of_keys.forward(xs));
            add(&mut v, &of_values.forward(xs));
        }
        scale(&mut k, self.spec.key_scale);
        if let Some((_, norm)) = &self.qk_norm {
            norm.apply(&mut k);
        }
        if let Some(rope) = &self.rope {
            rope.apply(&mut k, self.spec.kv_heads, self.spec.head_dim, first);
        }
        [k, v]
    }

    /// y `[T, H, hv]` of q `[T, H, hd]` from position `first` over what `cache` holds.
    fn attend(&self, q: &[f32], first: usize, cache: &KvCache, hooks: &mut Hooks<'_>) -> Room {
        let rows = q.len() / (self.spec.heads * self.spec.head_dim);
        let mut y = Room::new(rows * self.spec.heads * self.spec.value_dim);
        let mut entropy = vec![0.0; if hooks.wanted() { rows * self.spec.heads } else { 0 }];
        let (keys, values) = (cache.key_pages(), cache.value_pages());
        let entropy_bits = hooks.wanted().then_some(&mut entropy[..]);
        self.attention(&keys, &values, KvCache::LAYOUT, self.spec.sinks).forward(q, first, &mut y, entropy_bits);
        hooks.show(Point::Entropy, &entropy);
        y
    }

    /// Of keys and of values.
    fn kv_widths(&self) -> [usize; 2] {
        [self.spec.head_dim, self.spec.value_dim].map(|dim| self.spec.kv_heads * dim)
    }

    fn kv_head(&self, head: usize) -> usize {
        head * self.spec.kv_heads / self.spec.heads
    }

    fn attention<'a>(
        &self,
        keys: &'a [&'a [f32]],
        values: &'a [&'a [f32]],
        layout: Layout,
        sinks: usize,
    ) -> Attention<'a> {
        let AttentionSpec { heads, kv_heads, head_dim, value_dim, scale, window, .. } = self.spec;
        Attention { heads, kv_heads, head_dim, value_dim, scale, window, sinks, keys, values, layout }
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
            head_dim: spec.value_dim,
            state_dim: spec.head_dim,
            groups: spec.kv_heads,
            rank: 1,
            decay_dim: 0,
            conv_taps: 0,
            gated: spec.gated,
            window: spec.window,
            state_bytes: 0,
            kv_bytes_per_token: match self.kv {
                Some(_) => self.kv_widths().iter().sum::<usize>() * size_of::<f32>(),
                None => 0,
            },
        }
    }

    fn slot(&self) -> StateSlot {
        let AttentionSpec { kv_heads, head_dim, value_dim, .. } = self.spec;
        StateSlot { kv: KvCache::new(kv_heads, head_dim, value_dim), ..StateSlot::default() }
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
        let first = match self.spec.kv {
            KvUse::Borrowed { layer } => handed.lent_by(layer).first,
            _ => slot.kv.len(),
        };
        let mut q = self.queries(xs, first);
        hooks.pass(Point::Query, &mut q);
        let mut y = match (self.spec.kv, &self.kv) {
            (KvUse::Borrowed { layer }, _) => {
                let lent = handed.lent_by(layer);
                hooks.show(Point::Key, &lent.keys);
                hooks.show(Point::Value, &lent.values);
                self.attend(&q, first, &lent.cache, hooks)
            }
            (_, None) => unreachable!("a layer without projections borrows"),
            (using, Some(kv)) => {
                let [mut keys, mut values] = self.keys_and_values(kv, xs, first);
                hooks.pass(Point::Key, &mut keys);
                hooks.pass(Point::Value, &mut values);
                slot.kv.append(&keys, &values);
                let y = self.attend(&q, first, &slot.kv, hooks);
                if let KvUse::Lent { layer } = using {
                    handed.lend(layer, Lent { first, keys, values, cache: slot.kv.clone() });
                }
                y
            }
        };
        hooks.pass(Point::Core, &mut y);
        if let Some(gate) = &self.gate {
            let mut gate = gate.forward(xs);
            hooks.pass(Point::Gate, &mut gate);
            sigmoid_slice(&mut gate);
            y.iter_mut().zip(&gate).for_each(|(y, gate)| *y *= gate);
        }
        if let Some(norm) = &self.out_norm {
            norm.apply(&mut y);
        }
        if let Some(window) = self.spec.window {
            let end = (slot.kv.len()).saturating_sub(window);
            slot.kv.forget(self.spec.sinks..end);
        }
        linear(&self.o_proj, self.o_bias.as_deref(), &y, out);
        true
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (head_dim, [keys, values]) = (self.spec.head_dim, self.kv_widths());
        let pages = |point, width: usize| -> Vec<&[f32]> {
            tape.rows(point, tape.positions()).unwrap_or_default().chunks(PAGE * width).collect()
        };
        // Of a record that begins later the first tokens are no sinks.
        let sinks = self.spec.sinks.saturating_sub(tape.positions().start);
        draw(&Lowered::Softmax {
            attention: self.attention(&pages(Point::Key, keys), &pages(Point::Value, values), Layout::ByToken, sinks),
            query: tape.strided(Point::Query, head * head_dim, head_dim),
            head,
        });
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let AttentionSpec { head_dim, value_dim, .. } = self.spec;
        let row = |point| tape.row(point, position);
        match point {
            Point::Write => {
                let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
                out.extend(heads.map(|head| {
                    let head = self.kv_head(head);
                    l2_norm(&k[head * head_dim..][..head_dim]) * l2_norm(&v[head * value_dim..][..value_dim])
                }));
            }
            Point::Read => {
                let Some(y) = row(Point::Core) else { return false };
                out.extend(heads.map(|head| l2_norm(&y[head * value_dim..][..value_dim])));
            }
            _ => return false,
        }
        true
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, channel: usize) -> f32 {
        let at = head * self.spec.value_dim + channel;
        let gate = tape.row(Point::Gate, position);
        let gain = gate.map_or(1.0, |gate| sigmoid(gate[at]));
        let Some(norm) = &self.out_norm else { return gain };
        let Some(y) = tape.row(Point::Core, position) else { return f32::NAN };
        let gated = |(c, y): (usize, &f32)| (y * gate.map_or(1.0, |gate| sigmoid(gate[c]))).powi(2);
        let square: f32 = y.iter().enumerate().map(gated).sum();
        gain * norm.scale[at] / (square / y.len() as f32 + norm.spec.eps).sqrt()
    }

    fn fold(&self, _tape: &LayerTape, _positions: Range<usize>, _state: &mut [f32]) {}
}
