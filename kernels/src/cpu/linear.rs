//! CPU twin of [`crate::linear`].

use half::{bf16, f16};

use crate::{
    Matrix, Values,
    cpu::{
        product::{PANEL, TILE, View, add_product},
        simd::{Kernel, LANES, Simd, dispatch},
    },
    par,
};

/// A stored weight.
trait Weight: Copy + Sync {
    fn load<S: Simd>(s: S, xs: &[Self]) -> S::V;
    fn to_f32(self) -> f32;
}

impl Weight for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, xs: &[f32]) -> S::V {
        s.load(xs)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, xs: &[bf16]) -> S::V {
        s.load_bf16(xs)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, xs: &[f16]) -> S::V {
        s.load_f16(xs)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

/// Rows of one GEMV piece.
const GEMV_ROWS: usize = 128;

/// y [out] = W x, x [in].
pub(crate) fn gemv(weight: &Matrix, x: &[f32], y: &mut [f32]) {
    match weight.values() {
        Values::F32(w) => gemv_of(w, x, y),
        Values::Bf16(w) => gemv_of(w, x, y),
        Values::F16(w) => gemv_of(w, x, y),
    }
}

fn gemv_of<W: Weight>(weight: &[W], x: &[f32], y: &mut [f32]) {
    let work = weight.len();
    par::for_each_chunk(y, GEMV_ROWS, work, |i, y| {
        let first = i * GEMV_ROWS * x.len();
        dispatch(Gemv { rows: &weight[first..first + y.len() * x.len()], x, y });
    });
}

struct Gemv<'a, W> {
    rows: &'a [W],
    x: &'a [f32],
    y: &'a mut [f32],
}

/// R rows at once: their sums are independent, which hides the latency of the multiply-adds, and x is loaded once for all.
#[inline(always)]
fn dot_rows<S: Simd, W: Weight, const R: usize>(s: S, rows: [&[W]; R], x: &[f32]) -> [f32; R] {
    let (n, body) = (x.len(), x.len() - x.len() % (2 * LANES));
    let rows = rows.map(|r| &r[..n]);
    let mut sums = [[s.splat(0.0); 2]; R];
    let mut i = 0;
    while i < body {
        let x = [s.load(&x[i..]), s.load(&x[i + LANES..])];
        for r in 0..R {
            sums[r][0] = s.fma(W::load(s, &rows[r][i..]), x[0], sums[r][0]);
            sums[r][1] = s.fma(W::load(s, &rows[r][i + LANES..]), x[1], sums[r][1]);
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

impl<W: Weight> Kernel for Gemv<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const R: usize = 4;
        let n = self.x.len();
        if n == 0 {
            return self.y.fill(0.0);
        }
        let mut rows = self.rows.chunks_exact(n);
        let mut ys = self.y.chunks_exact_mut(R);
        for y in &mut ys {
            let four = std::array::from_fn(|_| rows.next().unwrap_or(&[]));
            y.copy_from_slice(&dot_rows::<S, W, R>(s, four, self.x));
        }
        for (y, row) in ys.into_remainder().iter_mut().zip(rows) {
            *y = dot_rows(s, [row], self.x)[0];
        }
    }
}

/// Tokens of a piece of work: enough tiles to reuse a panel while it is in L1, few enough that two threads share the work evenly.
fn piece(tokens: usize) -> usize {
    if tokens < 128 { 4 * TILE } else { 8 * TILE }
}
/// Inputs taken at a time: that part of a panel (32 KiB) stays in L1.
const DEPTH: usize = 512;
/// Inputs packed at a time: a cache line of bf16.
const PACKED: usize = 32;
/// Weights packed at a time (1 MiB of f32): they stay in L2 and L3 while all tokens pass.
const GROUP: usize = 1 << 18;

/// y [T, out] = x [T, in] Wᵀ.
pub(crate) fn gemm(weight: &Matrix, xs: &[f32], ys: &mut [f32]) {
    match weight.values() {
        Values::F32(w) => gemm_of(w, weight.cols(), xs, ys),
        Values::Bf16(w) => gemm_of(w, weight.cols(), xs, ys),
        Values::F16(w) => gemm_of(w, weight.cols(), xs, ys),
    }
}

fn gemm_of<W: Weight>(weight: &[W], inputs: usize, xs: &[f32], ys: &mut [f32]) {
    ys.fill(0.0);
    if inputs == 0 {
        return;
    }
    let (outputs, tokens) = (weight.len() / inputs, xs.len() / inputs);
    let group = (GROUP / (inputs * PANEL)).max(1) * PANEL;
    let piece = piece(tokens);
    let mut packed = vec![0.0; group.min(outputs.next_multiple_of(PANEL)) * inputs];
    for first in (0..outputs).step_by(group) {
        let count = group.min(outputs - first);
        let packed = &mut packed[..count.next_multiple_of(PANEL) * inputs];
        let rows = &weight[first * inputs..(first + count) * inputs];
        // Packing an element takes about as long as two vectors of multiply-adds.
        par::for_each_chunk(packed, PANEL * inputs, 2 * rows.len(), |p, panel| {
            let first = p * PANEL * inputs;
            dispatch(Pack { rows: &rows[first..rows.len().min(first + PANEL * inputs)], inputs, panel });
        });
        let packed = &*packed;
        par::for_each_chunk(ys, piece * outputs, tokens * rows.len() / LANES, |i, ys| {
            let xs = &xs[i * piece * inputs..][..ys.len() / outputs * inputs];
            dispatch(Gemm { packed, xs, ys, inputs, outputs, first, count });
        });
    }
}

/// Turns up to 16 rows [rows, in] into a panel [in, 16]; the columns of missing rows are left as they are, and never used.
struct Pack<'a, W> {
    rows: &'a [W],
    inputs: usize,
    panel: &'a mut [f32],
}

impl<W: Weight> Kernel for Pack<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // A block of inputs of all rows at a time: what is written stays in L1, and lines of rows that fall on one set are read once.
        for (block, panel) in self.panel.chunks_mut(PACKED * PANEL).enumerate() {
            let count = panel.len() / PANEL;
            for (r, row) in self.rows.chunks_exact(self.inputs).enumerate() {
                let row = &row[block * PACKED..][..count];
                for (row, panel) in row.chunks(LANES).zip(panel.chunks_mut(LANES * PANEL)) {
                    let mut unpacked = [0.0; LANES];
                    if row.len() == LANES {
                        s.store(W::load(s, row), &mut unpacked);
                    } else {
                        unpacked.iter_mut().zip(row).for_each(|(x, w)| *x = w.to_f32());
                    }
                    for (column, x) in panel.chunks_exact_mut(PANEL).zip(unpacked) {
                        column[r] = x;
                    }
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
