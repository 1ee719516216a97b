//! Attention of many tokens over a contiguous cache.

use half::bf16;

use super::launch::{Ptr, Shape};
use super::{At, attention_supported};
use super::{Buffer, Gpu, Result, number, optional};

/// As [`super::AttentionStep`], of T tokens from position `first` on, in f32: q and k normed (RMS, by head) and rotated, k and v put into
/// the cache, y = attention of all in sight, on tensor cores for heads of [`PromptAttention::has_tiles`]: each number there as the sum of two of
/// eleven bits, or, with room for `halves`, queries, keys, values and weights rounded to bf16; sums are f32.
#[derive(Clone, Copy, Debug)]
pub struct PromptAttention<'a> {
    pub tokens: usize,
    pub first: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// As projected: [T, H, hd], [T, H_kv, hd], [T, H_kv, hd].
    pub q: &'a Buffer<f32>,
    pub k: &'a Buffer<f32>,
    pub v: &'a Buffer<f32>,
    pub norms: Option<(&'a Buffer<f32>, &'a Buffer<f32>, f32)>,
    pub inv_freq: Option<&'a Buffer<f32>>,
    pub key_scale: f32,
    pub scale: f32,
    pub window: Option<usize>,
    /// [capacity, H_kv, hd] each.
    pub keys: &'a Buffer<f32>,
    pub values: &'a Buffer<f32>,
    /// Written: [T, H, hd], which may be q, [T, H, hd], [T, H].
    pub q_out: &'a Buffer<f32>,
    pub y: &'a Buffer<f32>,
    pub entropy_bits: &'a Buffer<f32>,
    /// Written, for head sizes of [`PromptAttention::has_tiles`]: q [T, H, hd], k and v [first + T, H_kv, hd].
    pub halves: Option<[&'a Buffer<bf16>; 3]>,
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
    q_out: Ptr,
    y: Ptr,
    entropy: Ptr,
    q16: Ptr,
    k16: Ptr,
    v16: Ptr,
    tokens: u32,
    first: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    half: u32,
    window: u32,
    scale: f32,
    eps: f32,
    key_scale: f32,
}

/// Queries of a block of prompt_f32.cu, and its bytes of shared memory: theirs, and two stages of 32 keys and values; rows are padded.
fn f32_tiles(head_dim: usize) -> (u32, usize) {
    let queries = if head_dim > 80 { 64 } else { 128 };
    let row = if head_dim.is_multiple_of(32) { head_dim + 16 } else { head_dim };
    (queries, 4 * (queries as usize * row + 2 * 32 * (row + head_dim + 4)))
}

impl PromptAttention<'_> {
    /// Whether heads of this size have kernels on tensor cores.
    pub fn has_tiles(head_dim: usize) -> bool {
        [32, 64, 80, 96, 128].contains(&head_dim)
    }

    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let PromptAttention { tokens, first, heads, kv_heads, head_dim, .. } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "attention: {heads} heads over {kv_heads}");
        assert!(attention_supported(head_dim), "attention: heads of {head_dim}");
        let of = |buffer: &Buffer<f32>, len: usize, what: &str| At::from(buffer).ptr(len, what);
        let norm = |scale: Option<&Buffer<f32>>| optional(scale.map(At::from), head_dim, "attention: norm");
        let (q_len, kv_len) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
        let cache = (first + tokens) * kv_heads * head_dim;
        assert!(self.halves.is_none() || Self::has_tiles(head_dim), "attention: heads of {head_dim} in bf16");
        let half = |which: usize, len: usize| {
            optional(self.halves.map(|halves| At::from(halves[which])), len, "attention: q, k or v in bf16")
        };
        let params = Params {
            q: of(self.q, q_len, "attention: q"),
            k: of(self.k, kv_len, "attention: k"),
            v: of(self.v, kv_len, "attention: v"),
            q_norm: norm(self.norms.map(|norms| norms.0)),
            k_norm: norm(self.norms.map(|norms| norms.1)),
            inv_freq: self.inv_freq.map_or(Ptr::default(), |freq| freq.ptr(0)),
            keys: of(self.keys, cache, "attention: keys"),
            values: of(self.values, cache, "attention: values"),
            q_out: of(self.q_out, q_len, "attention: q"),
            y: of(self.y, q_len, "attention: y"),
            entropy: of(self.entropy_bits, tokens * heads, "attention: entropy"),
            q16: half(0, q_len),
            k16: half(1, cache),
            v16: half(2, cache),
            tokens: number(tokens),
            first: number(first),
            heads: number(heads),
            kv_heads: number(kv_heads),
            head_dim: number(head_dim),
            half: number(self.inv_freq.map_or(0, Buffer::len)),
            window: number(self.window.unwrap_or(0)),
            scale: self.scale,
            eps: self.norms.map_or(0.0, |norms| norms.2),
            key_scale: self.key_scale,
        };
        assert!(2 * params.half as usize <= head_dim, "attention: {} frequencies", params.half);
        if tokens == 0 {
            return Ok(());
        }
        let rows = tokens * (heads + kv_heads);
        let shape = Shape { grid: (number(rows).div_ceil(4), 1), threads: 128, shared: 0, early: false };
        gpu.launch("prompt_attention", "prompt_heads", shape, &params)?;
        if self.halves.is_some() {
            return self.on_tensor_cores(gpu, &params);
        }
        if Self::has_tiles(head_dim) {
            let (queries, shared) = f32_tiles(head_dim);
            if shared <= gpu.shared_limit() {
                let grid = (number(tokens).div_ceil(queries), number(heads));
                let shape = Shape { grid, threads: 128, shared: number(shared), early: false };
                return gpu.launch("prompt_f32", &format!("prompt_f32_{head_dim}"), shape, &params);
            }
        }
        // 16 queries, 32 keys (padded by one) and values.
        let shared = number(4 * (16 * head_dim + 32 * (head_dim + 1) + 32 * head_dim));
        let shape = Shape { grid: (number(tokens).div_ceil(16), number(heads)), threads: 128, shared, early: false };
        let kernel = format!("prompt_attend_{}", head_dim.div_ceil(32).next_power_of_two());
        gpu.launch("prompt_attention", &kernel, shape, &params)
    }

    /// Queries and what is new in the cache have been rounded.
    fn on_tensor_cores(&self, gpu: &Gpu, params: &Params) -> Result<()> {
        if self.first > 0 {
            let quarters = (self.first * self.kv_heads * self.head_dim / 4).div_ceil(256);
            let grid = (number(quarters.min(16 * gpu.processors() as usize)), 1);
            let shape = Shape { grid, threads: 256, shared: 0, early: false };
            gpu.launch("prompt_flash", "prompt_earlier", shape, params)?;
        }
        // 128 queries, and two stages of 64 keys and values, padded by eight.
        let shared = number((128 + 4 * 64) * (self.head_dim + 8) * 2);
        let grid = (params.tokens.div_ceil(128), params.heads);
        let shape = Shape { grid, threads: 128, shared, early: false };
        gpu.launch("prompt_flash", &format!("prompt_flash_{}", self.head_dim), shape, params)
    }
}
