//! CPU twin of [`crate::linear`].

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use crate::{
    Matrix, Q8Block, Values,
    cpu::{
        gemm,
        simd::{Kernel, Simd, dispatch},
    },
    par,
};

/// A cache line: vectors that lie across two of them take twice as long to load.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [f32; Line::FLOATS]);

impl Line {
    pub(super) const FLOATS: usize = 16;
}

/// What a row of weights is stored in.
pub(super) trait Weight: Copy + Sync {
    /// Weights of an item: 1, or a block.
    const WEIGHTS: usize;

    /// R rows times x at once: their sums are independent, which hides the latency of the multiply-adds, and x is loaded once for all.
    fn dot_rows<S: Simd, const R: usize>(s: S, rows: [&[Self]; R], x: &[f32]) -> [f32; R];

    /// Line `i` of a row as f32: its inputs from 16 i on, zeros beyond the last.
    fn line<S: Simd>(s: S, row: &[Self], inputs: usize, i: usize, out: &mut Line);
}

/// A weight that is stored as a number of its own.
pub(super) trait Number: Copy + Sync {
    fn load<S: Simd>(s: S, xs: &[Self]) -> S::V;
    fn to_f32(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, xs: &[f32]) -> S::V {
        s.load(xs)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, xs: &[bf16]) -> S::V {
        s.load_bf16(xs)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Number for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, xs: &[f16]) -> S::V {
        s.load_f16(xs)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl<N: Number> Weight for N {
    const WEIGHTS: usize = 1;

    #[inline(always)]
    fn dot_rows<S: Simd, const R: usize>(s: S, rows: [&[N]; R], x: &[f32]) -> [f32; R] {
        let (n, body) = (x.len(), x.len() - x.len() % (2 * S::LANES));
        let rows = rows.map(|r| &r[..n]);
        let mut sums = [[s.splat(0.0); 2]; R];
        let mut i = 0;
        while i < body {
            let x = [s.load(&x[i..]), s.load(&x[i + S::LANES..])];
            for r in 0..R {
                s.prefetch(&rows[r][i..], AHEAD);
                if S::LANES * size_of::<N>() >= size_of::<Line>() {
                    s.prefetch(&rows[r][i + S::LANES..], AHEAD);
                }
                sums[r][0] = s.fma(N::load(s, &rows[r][i..]), x[0], sums[r][0]);
                sums[r][1] = s.fma(N::load(s, &rows[r][i + S::LANES..]), x[1], sums[r][1]);
            }
            i += 2 * S::LANES;
        }
        let mut out = [0.0; R];
        for r in 0..R {
            out[r] = s.sum(s.add(sums[r][0], sums[r][1]));
            for (w, x) in rows[r][body..].iter().zip(&x[body..]) {
                out[r] += w.to_f32() * x;
            }
        }
        out
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, row: &[N], inputs: usize, i: usize, Line(out): &mut Line) {
        let row = &row[i * Line::FLOATS..inputs];
        if row.len() >= Line::FLOATS {
            for lane in (0..Line::FLOATS).step_by(S::LANES) {
                s.store(N::load(s, &row[lane..]), &mut out[lane..]);
            }
        } else {
            *out = [0.0; Line::FLOATS];
            out.iter_mut().zip(row).for_each(|(out, w)| *out = w.to_f32());
        }
    }
}

/// Bytes of a row asked for ahead of the multiply-adds: what the machine itself asks for stops at the end of each page, and a core that
/// waits there does not multiply.
const AHEAD: usize = 2048;

/// sum + scale · Σ quants · x.
#[inline(always)]
fn add_block<S: Simd>(s: S, block: &Q8Block, x: &[f32; Q8Block::WEIGHTS], sum: S::V) -> S::V {
    let q = &block.quants;
    let mut products = s.mul(s.load_i8(q), s.load(x));
    for j in (S::LANES..Q8Block::WEIGHTS).step_by(S::LANES) {
        products = s.fma(s.load_i8(&q[j..]), s.load(&x[j..]), products);
    }
    s.fma(s.splat_f16(block.scale), products, sum)
}

impl Weight for Q8Block {
    const WEIGHTS: usize = Q8Block::WEIGHTS;

    /// The quants of a block times x are summed before the scale comes in.
    #[inline(always)]
    fn dot_rows<S: Simd, const R: usize>(s: S, rows: [&[Q8Block]; R], x: &[f32]) -> [f32; R] {
        let mut sums = [s.splat(0.0); R];
        let (whole, rest) = x.as_chunks::<{ Q8Block::WEIGHTS }>();
        for (i, x) in whole.iter().enumerate() {
            for r in 0..R {
                s.prefetch(&rows[r][i..], AHEAD);
                sums[r] = add_block(s, &rows[r][i], x, sums[r]);
            }
        }
        if !rest.is_empty() {
            let mut x = [0.0; Q8Block::WEIGHTS];
            x[..rest.len()].copy_from_slice(rest);
            for r in 0..R {
                sums[r] = add_block(s, &rows[r][whole.len()], &x, sums[r]);
            }
        }
        let mut out = [0.0; R];
        for r in 0..R {
            out[r] = s.sum(sums[r]);
        }
        out
    }

    /// The last block ends in zeros of its own.
    #[inline(always)]
    fn line<S: Simd>(s: S, row: &[Q8Block], _: usize, i: usize, Line(out): &mut Line) {
        let (block, half) = (&row[i / 2], i % 2 * Line::FLOATS);
        let scale = s.splat_f16(block.scale);
        for lane in (0..Line::FLOATS).step_by(S::LANES) {
            s.store(s.mul(scale, s.load_i8(&block.quants[half + lane..])), &mut out[lane..]);
        }
    }
}

/// Rows of a piece of a matrix-vector product, a multiple of the rows that go together: at most some 256 Ki weights, since threads end
/// at different times, but no fewer than need be, since each piece begins with waiting for memory, and as many for each thread.
/// (A row has the same bits in every piece, so these may depend on the number of threads.)
fn gemv_rows(rows: usize, inputs: usize) -> usize {
    let pieces = (rows * inputs).div_ceil(1 << 18).max(1).next_multiple_of(par::threads());
    rows.div_ceil(pieces).max(1).next_multiple_of(ROWS)
}

/// Rows that go together.
const ROWS: usize = 4;

/// y [out] = W x, x [in].
pub(crate) fn gemv(weight: &Matrix, x: &[f32], y: &mut [f32]) {
    match weight.values() {
        Values::F32(w) => gemv_of(w, x, y),
        Values::Bf16(w) => gemv_of(w, x, y),
        Values::F16(w) => gemv_of(w, x, y),
        Values::Q8(w) => gemv_of(w, x, y),
    }
}

fn gemv_of<W: Weight>(weight: &[W], x: &[f32], y: &mut [f32]) {
    let (work, items) = (y.len() * x.len(), x.len().div_ceil(W::WEIGHTS));
    let rows = gemv_rows(y.len(), x.len());
    par::for_each_chunk(y, rows, work, |i, y| {
        let first = i * rows * items;
        dispatch(Gemv { rows: &weight[first..first + y.len() * items], x, y });
    });
}

struct Gemv<'a, W> {
    rows: &'a [W],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<W: Weight> Kernel for Gemv<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let items = self.x.len().div_ceil(W::WEIGHTS);
        if items == 0 {
            return self.y.fill(0.0);
        }
        // Row by row in each quarter: four long streams from memory, which the prefetchers of the machine follow. Four rows side by side
        // lie in one page, where they follow none of them.
        let quarter = self.y.len() / ROWS;
        let row = |i: usize| &self.rows[i * items..(i + 1) * items];
        for i in 0..quarter {
            let rows = [row(i), row(i + quarter), row(i + 2 * quarter), row(i + 3 * quarter)];
            for (r, sum) in W::dot_rows(s, rows, self.x).into_iter().enumerate() {
                self.y[i + r * quarter] = sum;
            }
        }
        for i in ROWS * quarter..self.y.len() {
            self.y[i] = W::dot_rows(s, [row(i)], self.x)[0];
        }
    }
}

/// y [T, out] = x [T, in] Wᵀ, in parts [T, …].
pub(crate) fn gemm(weight: &Matrix, xs: &[f32], parts: &mut [&mut [f32]]) {
    match weight.values() {
        Values::F32(w) => gemm::gemm(w, weight.cols(), xs, parts),
        Values::Bf16(w) => gemm::gemm(w, weight.cols(), xs, parts),
        Values::F16(w) => gemm::gemm(w, weight.cols(), xs, parts),
        Values::Q8(w) => gemm::gemm(w, weight.cols(), xs, parts),
    }
}
