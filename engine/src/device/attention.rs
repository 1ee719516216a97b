//! Softmax attention on the GPU: see [`crate::mixer::attention`].

use statescope_kernels::cuda::{
    At, AttentionStep, Buffer, CudaError, DeviceMatrix, Element, GateFunction, GateRows, Gemm, Gpu, Input, Linear,
    PromptAttention, Result, attention_supported,
};

use super::memory::Slot;
use super::record::{Taken, Written};
use super::upload::{Output, Upload};
use super::{Added, Rows, Token, all};
use crate::mixer::attention::{Projection as HostProjection, SoftmaxAttention as Host};
use crate::model::spec::{AttentionSpec, KvUse, NormKind};
use crate::protocol::Point;

/// Weights, and room for what one token makes.
pub struct Attention {
    spec: AttentionSpec,
    q: Projection,
    k: Projection,
    v: Projection,
    gate: Option<Projection>,
    /// Scales of the norms of q and k, and ε.
    qk_norm: Option<(Buffer<f32>, Buffer<f32>, f32)>,
    inv_freq: Option<Buffer<f32>>,
    output: Output,
    /// q and k normed and rotated; y; entropies `[H]`.
    query: Buffer<f32>,
    key: Buffer<f32>,
    core: Buffer<f32>,
    entropy: Buffer<f32>,
    scratch: Buffer<f32>,
    counters: Buffer<u32>,
}

/// A linear map with its bias, and room for what it makes of one token.
struct Projection {
    matrix: DeviceMatrix,
    bias: Option<Buffer<f32>>,
    made: Buffer<f32>,
}

impl Projection {
    fn upload(host: &HostProjection, to: &Upload<'_>) -> Result<Self> {
        Ok(Self {
            matrix: to.matrix(&host.matrix)?,
            bias: to.optional(host.bias.as_deref())?,
            made: to.room(host.matrix.rows())?,
        })
    }

    fn step(&self, gpu: &Gpu, input: Input<'_>) -> Result<()> {
        let plain = Linear::new(&self.matrix, input, Some(all(&self.made)));
        Linear { bias: self.bias.as_ref(), ..plain }.run(gpu)
    }

    fn gemm<'a, T: Element>(&'a self, rows: &Rows<'_, T>, x: &'a Buffer<T>) -> Gemm<'a, T> {
        Gemm { bias: self.bias.as_ref(), ..Gemm::new(rows.count, &self.matrix, all(x)) }
    }
}

impl Attention {
    /// None for low-rank adapters (Zamba), other norms of q and k than RMS, head sizes without a kernel, and what only Hymba has: a norm
    /// of the output, shared keys, sinks.
    pub(crate) fn upload(host: &Host, to: &Upload<'_>) -> Result<Option<Self>> {
        let (spec, gpu) = (&host.spec, to.gpu);
        let rms = host.qk_norm.as_ref().is_none_or(|(q, k)| {
            [q, k].iter().all(|norm| norm.spec.kind != NormKind::Layer) && q.spec.eps == k.spec.eps
        });
        let plain =
            spec.value_dim == spec.head_dim && spec.sinks == 0 && spec.kv == KvUse::Own && host.out_norm.is_none();
        let (Some([k, v]), true, true, None) = (&host.kv, plain, rms, &host.adapters) else { return Ok(None) };
        if !attention_supported(spec.head_dim) {
            return Ok(None);
        }
        let qk_norm = match &host.qk_norm {
            None => None,
            Some((q, k)) => Some((to.vector(&q.scale)?, to.vector(&k.scale)?, q.spec.eps)),
        };
        let (q_len, kv_len) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let scratch = AttentionStep::scratch_len(gpu, spec.heads, spec.kv_heads, spec.head_dim);
        Ok(Some(Self {
            q: Projection::upload(&host.q, to)?,
            k: Projection::upload(k, to)?,
            v: Projection::upload(v, to)?,
            gate: host.gate.as_ref().map(|gate| Projection::upload(gate, to)).transpose()?,
            qk_norm,
            inv_freq: to.optional(spec.rope.as_deref().filter(|freq| !freq.is_empty()))?,
            output: Output::upload(to, &host.o_proj, host.o_bias.as_deref())?,
            query: to.room(q_len)?,
            key: to.room(kv_len)?,
            core: to.room(q_len)?,
            entropy: to.room(spec.heads)?,
            scratch: to.room(scratch)?,
            counters: gpu.zeros(spec.heads)?,
            spec: spec.clone(),
        }))
    }

    fn kv_width(&self) -> usize {
        self.spec.kv_heads * self.spec.head_dim
    }

    /// Without a cache, which comes with the first token.
    pub(super) fn slot(&self, gpu: &Gpu) -> Result<Slot> {
        Ok(Slot { state: gpu.zeros(0)?, conv: gpu.zeros(0)?, cache: None, kv_width: self.kv_width() })
    }

    fn norms(&self) -> Option<(&Buffer<f32>, &Buffer<f32>, f32)> {
        self.qk_norm.as_ref().map(|(q, k, eps)| (q, k, *eps))
    }

    pub(super) fn step(&self, token: &Token<'_>, input: Input<'_>, slot: &Slot, added: Added<'_>) -> Result<()> {
        let (gpu, spec) = (token.gpu, &self.spec);
        let (keys, values) = cache(slot)?;
        for projection in [&self.q, &self.k, &self.v].into_iter().chain(&self.gate) {
            projection.step(gpu, input)?;
        }
        AttentionStep {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            q: all(&self.q.made),
            k: all(&self.k.made),
            v: all(&self.v.made),
            norms: self.norms(),
            inv_freq: self.inv_freq.as_ref(),
            key_scale: spec.key_scale,
            scale: spec.scale,
            window: spec.window,
            keys,
            values,
            place: token.place,
            q_out: all(&self.query),
            k_out: all(&self.key),
            y: all(&self.core),
            entropy_bits: all(&self.entropy),
            scratch: &self.scratch,
            counters: &self.counters,
        }
        .run(gpu)?;
        let input = match &self.gate {
            Some(gate) => Input::SigmoidGate { x: all(&self.core), gate: all(&gate.made) },
            None => Input::Plain(all(&self.core)),
        };
        self.output.step(gpu, input, added)
    }

    pub(super) fn quantities(&self) -> Vec<(Point, Taken<'_, f32>)> {
        let row = |from| Taken::Rows { from: all(from), stride: from.len(), width: from.len() };
        let mut quantities = vec![
            (Point::Query, row(&self.query)),
            (Point::Key, row(&self.key)),
            (Point::Value, row(&self.v.made)),
            (Point::Entropy, row(&self.entropy)),
            (Point::Core, row(&self.core)),
        ];
        quantities.extend(self.gate.as_ref().map(|gate| (Point::Gate, row(&gate.made))));
        quantities.push((Point::Out, row(&self.output.out)));
        quantities
    }

    pub(super) fn strength(&self) -> Taken<'_, f32> {
        self.written(all(&self.key), all(&self.v.made))
    }

    /// Keys and values `[T, H_kv, hd]`.
    fn written<'a>(&self, keys: At<'a>, values: At<'a>) -> Taken<'a, f32> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        Taken::Write(Written {
            heads,
            delta: None,
            keys,
            keys_stride: self.kv_width(),
            groups: kv_heads,
            key_dim: head_dim,
            values,
            values_stride: self.kv_width(),
            value_groups: kv_heads,
            value_dim: head_dim,
        })
    }

    pub(super) fn rows<T: Element>(
        &self,
        rows: &mut Rows<'_, T>,
        normed: &Buffer<T>,
        slot: &Slot,
        added: Added<'_>,
    ) -> Result<()> {
        let (gpu, count, spec) = (rows.gpu, rows.count, &self.spec);
        let (q_len, kv_len) = (spec.heads * spec.head_dim, self.kv_width());
        let (keys, values) = cache(slot)?;
        let (q, k, v) = (rows.wide("q", q_len)?, rows.wide("k", kv_len)?, rows.wide("v", kv_len)?);
        let (core, entropy) = (rows.wide("y", q_len)?, rows.wide("entropy", spec.heads)?);
        for (projection, made) in [(&self.q, &q), (&self.k, &k), (&self.v, &v)] {
            Gemm { wide: Some(made), ..projection.gemm(rows, normed) }.run(gpu)?;
        }
        let cached = (rows.first + count) * kv_len;
        let halves = match rows.halves.filter(|_| PromptAttention::has_tiles(spec.head_dim)) {
            Some(room) => {
                let of = |name, len| room.get(gpu, name, len);
                Some([of("q", count * q_len)?, of("keys", cached)?, of("values", cached)?])
            }
            None => None,
        };
        PromptAttention {
            tokens: count,
            first: rows.first,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            q: &q,
            k: &k,
            v: &v,
            norms: self.norms(),
            inv_freq: self.inv_freq.as_ref(),
            key_scale: spec.key_scale,
            scale: spec.scale,
            window: spec.window,
            keys,
            values,
            q_out: &q,
            y: &core,
            entropy_bits: &entropy,
            halves: halves.as_ref().map(|halves| halves.each_ref()),
        }
        .run(gpu)?;
        let key = At(keys, rows.first * kv_len);
        rows.show_strength(self.written(key, all(&v)))?;
        rows.show(Point::Query, Taken::Rows { from: all(&q), stride: q_len, width: q_len })?;
        rows.show(Point::Key, Taken::Rows { from: key, stride: kv_len, width: kv_len })?;
        rows.show(Point::Value, Taken::Rows { from: all(&v), stride: kv_len, width: kv_len })?;
        rows.show(Point::Entropy, Taken::Rows { from: all(&entropy), stride: spec.heads, width: spec.heads })?;
        rows.show(Point::Core, Taken::Rows { from: all(&core), stride: q_len, width: q_len })?;
        let gate = match &self.gate {
            None => None,
            Some(projection) => {
                let gate = rows.own("gate", q_len)?;
                Gemm { y: Some(&gate), ..projection.gemm(rows, normed) }.run(gpu)?;
                rows.show(Point::Gate, Taken::Rows { from: all(&gate), stride: q_len, width: q_len })?;
                Some(gate)
            }
        };
        let gated = rows.own("gated", q_len)?;
        GateRows {
            tokens: count,
            width: q_len,
            x: all(&core),
            x_stride: q_len,
            gate: gate.as_ref().map(|gate| (all(gate), q_len)),
            function: GateFunction::Sigmoid,
            gate_scale: 1.0,
            y: &gated,
        }
        .run(gpu)?;
        self.output.rows(rows, &gated, added)
    }
}

fn cache(slot: &Slot) -> Result<(&Buffer<f32>, &Buffer<f32>)> {
    let missing = || CudaError::Driver("the KV cache was not made before it was needed".to_owned());
    slot.cache.as_ref().map(|(keys, values)| (keys, values)).ok_or_else(missing)
}
