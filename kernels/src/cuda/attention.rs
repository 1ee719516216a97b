//! Attention of one token over a contiguous cache.

use super::launch::{Ptr, Shape};
use super::{At, Buffer, Gpu, Result, number, optional};

/// Whether [`AttentionStep`] has a kernel for these heads.
pub fn attention_supported(head_dim: usize) -> bool {
    (1..=256).contains(&head_dim) && head_dim.is_multiple_of(4)
}

/// q and k normed (RMS, by head) and rotated, k and v appended, y = attention of all in sight: [`crate::Rope`], [`crate::Attention`]. H
/// heads over H_kv of head_dim, a multiple of 4 up to 256.
#[derive(Clone, Copy, Debug)]
pub struct AttentionStep<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// As projected: [H, hd], [H_kv, hd], [H_kv, hd], each from a multiple of four elements.
    pub q: At<'a>,
    pub k: At<'a>,
    pub v: At<'a>,
    /// Scales [hd] of the norms of q and k, and ε.
    pub norms: Option<(&'a Buffer<f32>, &'a Buffer<f32>, f32)>,
    /// Inverse frequencies [r] of the rotation.
    pub inv_freq: Option<&'a Buffer<f32>>,
    /// Factor on k before norm and rotation.
    pub key_scale: f32,
    pub scale: f32,
    pub window: Option<usize>,
    /// [capacity, H_kv, hd] each.
    pub keys: &'a Buffer<f32>,
    pub values: &'a Buffer<f32>,
    /// {token, position}; the position is below the capacity, as the caller sees to.
    pub place: &'a Buffer<u32>,
    /// Written: [H, hd], [H_kv, hd], [H, hd], [H].
    pub q_out: At<'a>,
    pub k_out: At<'a>,
    pub y: At<'a>,
    pub entropy_bits: At<'a>,
    /// [`AttentionStep::scratch_len`] floats, and [H] zeros.
    pub scratch: &'a Buffer<f32>,
    pub counters: &'a Buffer<u32>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    q: Ptr,
    k: Ptr,
    v: Ptr,
    q_norm: Ptr,
    k_norm: Ptr,
    inv_freq: Ptr,
    keys: Ptr,
    values: Ptr,
    place: Ptr,
    q_out: Ptr,
    k_out: Ptr,
    y: Ptr,
    entropy: Ptr,
    partial: Ptr,
    counters: Ptr,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    half: u32,
    window: u32,
    splits: u32,
    scale: f32,
    eps: f32,
    key_scale: f32,
    pad: u32,
}

/// (quarters of 32 dimensions, query heads a block).
fn blocking(heads: usize, kv_heads: usize, head_dim: usize) -> (usize, usize) {
    let quarters = head_dim.div_ceil(32).next_power_of_two();
    (quarters, if quarters <= 4 && heads / kv_heads > 1 { 4 } else { 1 })
}

impl AttentionStep<'_> {
    fn splits(gpu: &Gpu, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
        let (_, together) = blocking(heads, kv_heads, head_dim);
        let blocks = kv_heads * (heads / kv_heads).div_ceil(together);
        // Two blocks a multiprocessor, whatever the capacity: a cache that has grown gives the same bits.
        (2 * gpu.processors() as usize).div_ceil(blocks).min(64)
    }

    pub fn scratch_len(gpu: &Gpu, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
        heads * Self::splits(gpu, heads, kv_heads, head_dim) * (head_dim + 3)
    }

    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let AttentionStep { heads, kv_heads, head_dim, .. } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "attention step: {heads} heads over {kv_heads}");
        assert!(attention_supported(head_dim), "attention step: heads of {head_dim}");
        assert!(
            [self.q.1, self.k.1, self.v.1].iter().all(|start| start.is_multiple_of(4)),
            "attention step: alignment"
        );
        let (q_len, kv_len) = (heads * head_dim, kv_heads * head_dim);
        let capacity = self.keys.len() / kv_len;
        let splits = Self::splits(gpu, heads, kv_heads, head_dim);
        let of = |buffer: &Buffer<f32>, len: usize, what: &str| At::from(buffer).ptr(len, what);
        let norm = |scale: Option<&Buffer<f32>>| optional(scale.map(At::from), head_dim, "attention step: norm");
        let params = Params {
            q: self.q.ptr(q_len, "attention step: q"),
            k: self.k.ptr(kv_len, "attention step: k"),
            v: self.v.ptr(kv_len, "attention step: v"),
            q_norm: norm(self.norms.map(|norms| norms.0)),
            k_norm: norm(self.norms.map(|norms| norms.1)),
            inv_freq: self.inv_freq.map_or(Ptr::default(), |freq| freq.ptr(0)),
            keys: of(self.keys, capacity * kv_len, "attention step: keys"),
            values: of(self.values, capacity * kv_len, "attention step: values"),
            place: At::from(self.place).ptr(2, "attention step: place"),
            q_out: self.q_out.ptr(q_len, "attention step: q"),
            k_out: self.k_out.ptr(kv_len, "attention step: k"),
            y: self.y.ptr(q_len, "attention step: y"),
            entropy: self.entropy_bits.ptr(heads, "attention step: entropy"),
            partial: of(self.scratch, heads * splits * (head_dim + 3), "attention step: scratch"),
            counters: At::from(self.counters).ptr(heads, "attention step: counters"),
            heads: number(heads),
            kv_heads: number(kv_heads),
            head_dim: number(head_dim),
            half: number(self.inv_freq.map_or(0, Buffer::len)),
            window: number(self.window.unwrap_or(0)),
            splits: number(splits),
            scale: self.scale,
            eps: self.norms.map_or(0.0, |norms| norms.2),
            key_scale: self.key_scale,
            pad: 0,
        };
        assert!(2 * params.half as usize <= head_dim, "attention step: {} frequencies", params.half);
        let (quarters, together) = blocking(heads, kv_heads, head_dim);
        let blocks = kv_heads * (heads / kv_heads).div_ceil(together);
        let shape = Shape { grid: (number(blocks), number(splits)), threads: 128, shared: 0, early: true };
        gpu.launch("attention", &format!("attention_step_{quarters}_{together}"), shape, &params)
    }
}
