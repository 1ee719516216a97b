//! CPU twin of [`crate::linear`].

use half::{bf16, f16};

use crate::{
    Matrix, Q8Block, Values,
    cpu::{
        product::{PANEL, View, add_product},
        simd::{Kernel, LANES, Simd, dispatch},
    },
    par,
};

/// What a row of weights is stored in.
trait Weight: Copy + Sync {
    /// Weights of an item: 1, or a block.
    const WEIGHTS: usize;

    /// R rows times x at once: their sums are independent, which hides the latency of the multiply-adds, and x is loaded once for all.
    fn dot_rows<S: Simd, const R: usize>(s: S, rows: [&[Self]; R], x: &[f32]) -> [f32; R];

    /// The eight weights from `start`, a multiple of eight; 0 beyond the end of the row.
    fn eight<S: Simd>(s: S, row: &[Self], start: usize) -> S::V;
}

/// A weight that is stored as a number of its own.
trait Number: Copy + Sync {
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
        let (n, body) = (x.len(), x.len() - x.len() % (2 * LANES));
        let rows = rows.map(|r| &r[..n]);
        let mut sums = [[s.splat(0.0); 2]; R];
        let mut i = 0;
        while i < body {
            let x = [s.load(&x[i..]), s.load(&x[i + LANES..])];
            for r in 0..R {
                sums[r][0] = s.fma(N::load(s, &rows[r][i..]), x[0], sums[r][0]);
                sums[r][1] = s.fma(N::load(s, &rows[r][i + LANES..]), x[1], sums[r][1]);
            }
            i += 2 * LANES;
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
    fn eight<S: Simd>(s: S, row: &[N], start: usize) -> S::V {
        let row = &row[start..];
        if row.len() >= LANES {
            return N::load(s, row);
        }
        let mut lanes = [0.0; LANES];
        lanes.iter_mut().zip(row).for_each(|(lane, w)| *lane = w.to_f32());
        s.load(&lanes)
    }
}

/// sum + scale · Σ quants · x.
#[inline(always)]
fn add_block<S: Simd>(s: S, block: &Q8Block, x: &[f32; Q8Block::WEIGHTS], sum: S::V) -> S::V {
    let q = &block.quants;
    let mut products = s.mul(s.load_i8(q), s.load(x));
    for j in [LANES, 2 * LANES, 3 * LANES] {
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

    #[inline(always)]
    fn eight<S: Simd>(s: S, row: &[Q8Block], start: usize) -> S::V {
        let block = &row[start / Q8Block::WEIGHTS];
        s.mul(s.splat_f16(block.scale), s.load_i8(&block.quants[start % Q8Block::WEIGHTS..]))
    }
}

/// Rows of a piece of a matrix-vector product: some 64 Ki weights, a multiple of the rows that go together.
fn gemv_rows(inputs: usize) -> usize {
    ((1 << 16) / inputs.max(1)).clamp(ROWS, 128).next_multiple_of(ROWS)
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
    let rows = gemv_rows(x.len());
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

/// Tokens of a piece of work: enough tiles to reuse a panel while it is in L1, few enough that threads share the 128 of a chunk evenly.
const PIECE: usize = 16;
/// Inputs taken at a time: that part of a panel and of the tokens (16 KiB each) stays in L1.
const DEPTH: usize = 256;
/// Weights packed at a time (1 MiB of f32): they stay in L2 and L3 while all tokens pass.
const GROUP: usize = 1 << 18;

/// y [T, out] = x [T, in] Wᵀ.
pub(crate) fn gemm(weight: &Matrix, xs: &[f32], ys: &mut [f32]) {
    match weight.values() {
        Values::F32(w) => gemm_of(w, weight.cols(), xs, ys),
        Values::Bf16(w) => gemm_of(w, weight.cols(), xs, ys),
        Values::F16(w) => gemm_of(w, weight.cols(), xs, ys),
        Values::Q8(w) => gemm_of(w, weight.cols(), xs, ys),
    }
}

fn gemm_of<W: Weight>(weight: &[W], inputs: usize, xs: &[f32], ys: &mut [f32]) {
    ys.fill(0.0);
    if inputs == 0 {
        return;
    }
    let items = inputs.div_ceil(W::WEIGHTS);
    let (outputs, tokens) = (weight.len() / items, xs.len() / inputs);
    let group = (GROUP / (inputs * PANEL)).max(1) * PANEL;
    let mut packed = vec![0.0; group.min(outputs.next_multiple_of(PANEL)) * inputs];
    for first in (0..outputs).step_by(group) {
        let count = group.min(outputs - first);
        let packed = &mut packed[..count.next_multiple_of(PANEL) * inputs];
        let rows = &weight[first * items..(first + count) * items];
        par::for_each_chunk(packed, PANEL * inputs, count * inputs, |p, panel| {
            let first = p * PANEL * items;
            dispatch(Pack { rows: &rows[first..rows.len().min(first + PANEL * items)], items, panel });
        });
        let packed = &*packed;
        par::for_each_chunk(ys, PIECE * outputs, tokens * count * inputs / LANES, |i, ys| {
            let xs = &xs[i * PIECE * inputs..][..ys.len() / outputs * inputs];
            dispatch(Gemm { packed, xs, ys, inputs, outputs, first, count });
        });
    }
}

/// Turns up to 16 rows [rows, in] into a panel [in, 16], the columns of missing rows 0.
struct Pack<'a, W> {
    rows: &'a [W],
    /// Of a row.
    items: usize,
    panel: &'a mut [f32],
}

impl<W: Weight> Kernel for Pack<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut rows: [&[W]; PANEL] = [&[]; PANEL];
        let count = self.rows.len() / self.items;
        rows.iter_mut().zip(self.rows.chunks_exact(self.items)).for_each(|(row, own)| *row = own);
        // Squares of eight rows and eight inputs.
        for (i, panel) in self.panel.chunks_mut(LANES * PANEL).enumerate() {
            for first in [0, LANES] {
                let mut square = [s.splat(0.0); LANES];
                for r in 0..LANES.min(count.saturating_sub(first)) {
                    square[r] = W::eight(s, rows[first + r], i * LANES);
                }
                let square = s.transpose(square);
                for (column, weights) in panel.chunks_exact_mut(PANEL).zip(square) {
                    s.store(weights, &mut column[first..]);
                }
            }
        }
    }
}

struct Gemm<'a> {
    /// Panels [in, 16].
    packed: &'a [f32],
    /// [tokens, in]
    xs: &'a [f32],
    /// [tokens, out], to whose columns from `first`, `count` of them, the product is added.
    ys: &'a mut [f32],
    inputs: usize,
    outputs: usize,
    first: usize,
    count: usize,
}

impl Kernel for Gemm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Gemm { packed, xs, ys, inputs, outputs, first, count } = self;
        let tokens = xs.len() / inputs;
        for input in (0..inputs).step_by(DEPTH) {
            let depth = DEPTH.min(inputs - input);
            let x = View { data: &xs[input..], stride: inputs };
            for (p, panel) in packed.chunks_exact(PANEL * inputs).enumerate() {
                let width = PANEL.min(count - p * PANEL);
                let w = View { data: &panel[input * PANEL..], stride: PANEL };
                let y = &mut ys[first + p * PANEL..];
                add_product::<S, false>(s, x, w, (tokens, width, depth), y, outputs);
            }
        }
    }
}
