//! What softmax over logits comes to, and the most likely tokens.

use super::launch::{Ptr, Shape};
use super::{At, Gpu, Result, number};

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
    vocab: u32,
    count: u32,
}

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
    assert!(count <= 128, "rank: {count} candidates");
    let params = Params {
        logits: logits.ptr(tokens * vocab, "rank: logits"),
        next: next.ptr(tokens, "rank: next"),
        out: out.ptr(tokens * rank_width(count), "rank: out"),
        vocab: number(vocab),
        count: number(count),
    };
    let shape = Shape { grid: (number(tokens), 1), threads: 1024, shared: 0, early: false };
    gpu.launch("rank", "rank_rows", shape, &params)
}
