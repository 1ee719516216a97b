//! What softmax over logits comes to, the most likely tokens, and one drawn.

use super::launch::{Ptr, Shape};
use super::{At, Buffer, Gpu, Result, To, number};

/// Numbers of a row of [`rank`] with `count` candidates.
pub fn rank_width(count: usize) -> usize {
    3 + 2 * count
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    logits: Ptr,
    next: Ptr,
    out: Ptr,
    part_keys: Ptr,
    part_sums: Ptr,
    ended: Ptr,
    vocab: u32,
    count: u32,
    parts: u32,
    pad: u32,
}

/// Candidates that can be ranked.
const MOST: usize = 128;
/// Blocks that share a single row.
const PARTS: usize = 32;

/// Of each row of `logits` [T, V], to `out` [T, [`rank_width`]]: ln Σ eˣ, the entropy in bits, the logit of token `next` [T] (0 where it is
/// beyond V), then for each of `count` ranks, 128 at most, the id as the bits of a float and its logit, largest first, equals by id; an id of
/// `u32::MAX` is none. See [`crate::reduce::summarise_softmax`] and [`crate::reduce::top_k`].
pub fn rank(
    gpu: &Gpu,
    logits: At<'_>,
    tokens: usize,
    vocab: usize,
    next: At<'_, u32>,
    count: usize,
    out: At<'_>,
) -> Result<()> {
    if tokens == 0 {
        return Ok(());
    }
    let params = params(logits, tokens, vocab, next, count, out.into());
    let shape = Shape { grid: (number(tokens), 1), threads: 1024, shared: 0, early: true };
    gpu.launch("rank", "rank_rows", shape, &params)
}

fn params(logits: At<'_>, tokens: usize, vocab: usize, next: At<'_, u32>, count: usize, out: To<'_>) -> Params {
    assert!(count <= MOST, "rank: {count} candidates");
    Params {
        logits: logits.ptr(tokens * vocab, "rank: logits"),
        next: next.ptr(tokens, "rank: next"),
        out: out.ptr(tokens * rank_width(count), "rank: out"),
        part_keys: Ptr::default(),
        part_sums: Ptr::default(),
        ended: Ptr::default(),
        vocab: number(vocab),
        count: number(count),
        parts: 1,
        pad: 0,
    }
}

/// Room for what parts of a row come to.
pub struct RankRow {
    keys: Buffer<u32>,
    sums: Buffer<f32>,
    ended: Buffer<u32>,
}

impl RankRow {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { keys: gpu.zeros(2 * PARTS * MOST)?, sums: gpu.zeros(3 * PARTS)?, ended: gpu.zeros(1)? })
    }

    /// As [`rank()`] of one row [V], by several blocks. `out` may lie in page-locked memory.
    pub fn run(
        &self,
        gpu: &Gpu,
        logits: At<'_>,
        vocab: usize,
        next: At<'_, u32>,
        count: usize,
        out: To<'_>,
    ) -> Result<()> {
        let params = Params {
            part_keys: self.keys.ptr(0),
            part_sums: self.sums.ptr(0),
            ended: self.ended.ptr(0),
            parts: number(PARTS),
            ..params(logits, 1, vocab, next, count, out)
        };
        gpu.launch("rank", "rank_row", Shape { grid: (params.parts, 1), threads: 256, shared: 0, early: true }, &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DrawParams {
    logits: Ptr,
    token: Ptr,
    uniform: f64,
    vocab: u32,
    temperature: f32,
    total_only: u32,
    pad: u32,
}

/// One token of softmax(`logits` [V] / `temperature`) to `token` [1]: the first whose weight, added to those before it, exceeds `uniform`
/// in [0, 1) of all. Weights are those of [`crate::activation::exp_slice`], where [`draws_as_the_cpu`], summed in f32 in stretches of 64 and
/// these in f64, one after the other. Logits that are not finite have none; 0 if no logit is. Without `uniform` the sum of all weights goes to
/// `token` [2], as an f64.
pub fn draw(
    gpu: &Gpu,
    logits: At<'_>,
    vocab: usize,
    temperature: f32,
    uniform: Option<f64>,
    token: To<'_, u32>,
) -> Result<()> {
    let params = DrawParams {
        logits: logits.ptr(vocab, "draw: logits"),
        token: token.ptr(if uniform.is_some() { 1 } else { 2 }, "draw: token"),
        uniform: uniform.unwrap_or(0.0),
        vocab: number(vocab),
        temperature,
        total_only: u32::from(uniform.is_none()),
        pad: 0,
    };
    // 256 stretches of weights, padded by one, and the sums of all, with eight zeros behind them.
    let shared = number(256 * 65 * 4 + (vocab.div_ceil(64) + 8) * 8);
    gpu.launch("rank", "draw", Shape { grid: (1, 1), threads: 1024, shared, early: true }, &params)
}

/// Whether [`crate::activation::exp_slice`] has, on this processor, the bits of [`draw`]: whether it fuses multiply-adds.
pub fn draws_as_the_cpu() -> bool {
    let xs: Vec<f32> = (0..256).map(|i| -0.0371 * i as f32).collect();
    let mut here = xs.clone();
    crate::activation::exp_slice(&mut here);
    here.iter().zip(xs).all(|(here, x)| here.to_bits() == exp_fused(x).to_bits())
}

/// `exp_as_there` of rank.cu, for x in [−80, 0].
fn exp_fused(x: f32) -> f32 {
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let terms = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let p = terms.into_iter().fold(1.987_569_1e-4f32, |p, c| p.mul_add(r, c));
    let p = (r * r).mul_add(p, r) + 1.0;
    let half = (n * 0.5).round_ties_even();
    p * half.exp2() * (n - half).exp2()
}
