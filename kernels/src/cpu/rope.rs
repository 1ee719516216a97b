//! CPU twin of [`crate::rope`].

use crate::{
    cpu::simd::{Kernel, Simd, dispatch},
    par,
};

/// Tokens of a piece of work.
const PIECE: usize = 16;

/// `turns` [T, 2, half], `xs` [T, heads, head_dim].
pub(crate) fn apply(turns: &[f32], half: usize, xs: &mut [f32], heads: usize, head_dim: usize) {
    let work = xs.len();
    par::for_each_chunk(xs, PIECE * heads * head_dim, work, |i, xs| {
        dispatch(Turn { turns: &turns[i * PIECE * 2 * half..], half, xs, heads, head_dim });
    });
}

struct Turn<'a> {
    turns: &'a [f32],
    half: usize,
    xs: &'a mut [f32],
    heads: usize,
    head_dim: usize,
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Turn { turns, half, xs, heads, head_dim } = self;
        for (x, turns) in xs.chunks_exact_mut(heads * head_dim).zip(turns.chunks_exact(2 * half)) {
            let (cosines, sines) = turns.split_at(half);
            for x in x.chunks_exact_mut(head_dim) {
                let (first, second) = x[..2 * half].split_at_mut(half);
                let halves = first.chunks_mut(S::LANES).zip(second.chunks_mut(S::LANES));
                for ((first, second), (cos, sin)) in halves.zip(cosines.chunks(S::LANES).zip(sines.chunks(S::LANES))) {
                    let [a, b, cos, sin] =
                        [s.load_some(first), s.load_some(second), s.load_some(cos), s.load_some(sin)];
                    s.store_some(s.sub(s.mul(a, cos), s.mul(b, sin)), first);
                    s.store_some(s.fma(b, cos, s.mul(a, sin)), second);
                }
            }
        }
    }
}
