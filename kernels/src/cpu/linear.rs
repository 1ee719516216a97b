//! CPU twin of [`crate::linear`].

use half::{bf16, f16};

use crate::{
    Elements, Matrix,
    cpu::simd::{Kernel, LANES, Simd, dispatch},
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
    match weight.elements() {
        Elements::F32(w) => gemv_of(w, x, y),
        Elements::Bf16(w) => gemv_of(w, x, y),
        Elements::F16(w) => gemv_of(w, x, y),
    }
}

fn gemv_of<W: Weight>(weight: &[W], x: &[f32], y: &mut [f32]) {
    let work = weight.len();
    par::for_each_chunk(y, GEMV_ROWS, work, |i, y| {
        let first = i * GEMV_ROWS * x.len();
        dispatch(Gemv {
            rows: &weight[first..first + y.len() * x.len()],
            x,
            y,
        });
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

/// Outputs of a packed panel: two vectors.
const PANEL: usize = 2 * LANES;
/// Tokens of a register tile: 6 × 2 sums, 2 weights and 1 input fill the sixteen registers.
const TILE: usize = 6;
/// Tokens of a piece of work: enough tiles to reuse a panel while it is in L1, few enough to share 64 tokens between two threads.
const PIECE: usize = 4 * TILE;
/// Weights packed at a time (4 MiB of f32): the scratch stays small under a large output head.
const GROUP: usize = 1 << 20;

/// y [T, out] = x [T, in] Wᵀ.
pub(crate) fn gemm(weight: &Matrix, xs: &[f32], ys: &mut [f32]) {
    match weight.elements() {
        Elements::F32(w) => gemm_of(w, weight.cols(), xs, ys),
        Elements::Bf16(w) => gemm_of(w, weight.cols(), xs, ys),
        Elements::F16(w) => gemm_of(w, weight.cols(), xs, ys),
    }
}

fn gemm_of<W: Weight>(weight: &[W], inputs: usize, xs: &[f32], ys: &mut [f32]) {
    if inputs == 0 {
        return ys.fill(0.0);
    }
    let (outputs, tokens) = (weight.len() / inputs, xs.len() / inputs);
    let group = (GROUP / (inputs * PANEL)).max(1) * PANEL;
    let mut packed = vec![0.0; group.min(outputs.next_multiple_of(PANEL)) * inputs];
    for first in (0..outputs).step_by(group) {
        let count = group.min(outputs - first);
        let packed = &mut packed[..count.next_multiple_of(PANEL) * inputs];
        let rows = &weight[first * inputs..(first + count) * inputs];
        // Four elements packed cost about one vector multiply-add.
        par::for_each_chunk(packed, PANEL * inputs, 2 * rows.len(), |p, panel| {
            let first = p * PANEL * inputs;
            pack(
                &rows[first..rows.len().min(first + PANEL * inputs)],
                inputs,
                panel,
            );
        });
        let packed = &*packed;
        par::for_each_chunk(ys, PIECE * outputs, tokens * rows.len() / LANES, |i, ys| {
            let first_token = i * PIECE;
            let xs = &xs[first_token * inputs..][..ys.len() / outputs * inputs];
            dispatch(Gemm {
                packed,
                xs,
                ys,
                inputs,
                outputs,
                first,
                count,
            });
        });
    }
}

/// Turns up to 16 rows [rows, in] into a panel [in, 16], zeros for the missing rows.
fn pack<W: Weight>(rows: &[W], inputs: usize, panel: &mut [f32]) {
    for (r, row) in rows.chunks_exact(inputs).enumerate() {
        for (column, w) in panel.chunks_exact_mut(PANEL).zip(row) {
            column[r] = w.to_f32();
        }
    }
    for column in panel.chunks_exact_mut(PANEL) {
        column[rows.len() / inputs..].fill(0.0);
    }
}

struct Gemm<'a> {
    packed: &'a [f32],
    /// [tokens, in]
    xs: &'a [f32],
    /// [tokens, out], of which the columns from `first`, `count` of them, are written.
    ys: &'a mut [f32],
    inputs: usize,
    outputs: usize,
    first: usize,
    count: usize,
}

/// M tokens × one panel.
#[inline(always)]
fn tile<S: Simd, const M: usize>(
    s: S,
    panel: &[f32],
    xs: &[f32],
    ys: &mut [f32],
    inputs: usize,
    outputs: usize,
    column: usize,
    width: usize,
) {
    let rows: [&[f32]; M] = std::array::from_fn(|m| &xs[m * inputs..][..inputs]);
    let mut sums = [[s.splat(0.0); 2]; M];
    for (i, w) in panel.chunks_exact(PANEL).take(inputs).enumerate() {
        let w = [s.load(w), s.load(&w[LANES..])];
        for m in 0..M {
            let x = s.splat(rows[m][i]);
            sums[m][0] = s.fma(x, w[0], sums[m][0]);
            sums[m][1] = s.fma(x, w[1], sums[m][1]);
        }
    }
    for (m, sums) in sums.into_iter().enumerate() {
        let y = &mut ys[m * outputs + column..][..width];
        s.store_some(sums[0], &mut y[..width.min(LANES)]);
        if width > LANES {
            s.store_some(sums[1], &mut y[LANES..]);
        }
    }
}

impl Kernel for Gemm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Gemm {
            packed,
            xs,
            ys,
            inputs,
            outputs,
            first,
            count,
        } = self;
        for (p, panel) in packed.chunks_exact(PANEL * inputs).enumerate() {
            let (column, width) = (first + p * PANEL, PANEL.min(count - p * PANEL));
            for (xs, ys) in xs.chunks(TILE * inputs).zip(ys.chunks_mut(TILE * outputs)) {
                match xs.len() / inputs {
                    1 => tile::<S, 1>(s, panel, xs, ys, inputs, outputs, column, width),
                    2 => tile::<S, 2>(s, panel, xs, ys, inputs, outputs, column, width),
                    3 => tile::<S, 3>(s, panel, xs, ys, inputs, outputs, column, width),
                    4 => tile::<S, 4>(s, panel, xs, ys, inputs, outputs, column, width),
                    5 => tile::<S, 5>(s, panel, xs, ys, inputs, outputs, column, width),
                    _ => tile::<S, 6>(s, panel, xs, ys, inputs, outputs, column, width),
                }
            }
        }
    }
}
