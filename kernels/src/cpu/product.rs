//! The matrix product that the larger ops are made of: out += A B, or Aᵀ B, in register tiles.
//!
//! Every output is one chain of multiply-adds in the order of the summed index, so that its bits depend neither on the tiling nor on
//! how many rows are computed together.

use crate::cpu::simd::Simd;

/// Rows of a register tile: two vectors of sums each, two of B and a broadcast of A fill the registers: 32 with sixteen lanes, else 16.
pub(crate) const fn rows_of_tile(lanes: usize) -> usize {
    if lanes > 8 { 8 } else { 6 }
}
/// Columns of a register tile: two vectors.
pub(crate) const fn panel<S: Simd>() -> usize {
    2 * S::LANES
}

/// A matrix whose row r is `data[r·stride ..]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> View<'a> {
    /// The same without its first `rows` rows and `columns` columns.
    #[inline(always)]
    pub(crate) fn from(self, rows: usize, columns: usize) -> View<'a> {
        View { data: &self.data[rows * self.stride + columns..], ..self }
    }
}

/// out[r, c] += Σ_k A[r, k] B[k, c], or A[k, r] where A is `TRANSPOSED`; `out` has rows of `out_stride`.
#[inline(always)]
pub(crate) fn add_product<S: Simd, const TRANSPOSED: bool>(
    s: S,
    a: View,
    b: View,
    (rows, columns, depth): (usize, usize, usize),
    out: &mut [f32],
    out_stride: usize,
) {
    for column in (0..columns).step_by(panel::<S>()) {
        let width = panel::<S>().min(columns - column);
        let (b, out) = (b.from(0, column), &mut out[column..]);
        // A loop of its own for whole vectors: one that asks each time spills the sums.
        if width == panel::<S>() {
            tiles::<S, TRANSPOSED, true>(s, a, b, (rows, width, depth), out, out_stride);
        } else {
            tiles::<S, TRANSPOSED, false>(s, a, b, (rows, width, depth), out, out_stride);
        }
    }
}

/// Up to two vectors of columns; `WHOLE`: two.
#[inline(always)]
fn tiles<S: Simd, const TRANSPOSED: bool, const WHOLE: bool>(
    s: S,
    a: View,
    b: View,
    (rows, width, depth): (usize, usize, usize),
    out: &mut [f32],
    out_stride: usize,
) {
    for row in (0..rows).step_by(rows_of_tile(S::LANES)) {
        let a = if TRANSPOSED { a.from(0, row) } else { a.from(row, 0) };
        let out = &mut out[row * out_stride..];
        match rows - row {
            1 => tile::<S, 1, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
            2 => tile::<S, 2, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
            3 => tile::<S, 3, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
            4 => tile::<S, 4, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
            5 => tile::<S, 5, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
            7 if S::LANES > 8 => tile::<S, 7, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
            6.. if S::LANES == 8 => tile::<S, 6, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
            6 => tile::<S, 6, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
            _ => tile::<S, 8, TRANSPOSED, WHOLE>(s, a, b, (width, depth), out, out_stride),
        }
    }
}

/// M rows × up to two vectors of columns.
// `k` and `m` index several arrays at once; zipped iterators would hide the product.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn tile<S: Simd, const M: usize, const TRANSPOSED: bool, const WHOLE: bool>(
    s: S,
    a: View,
    b: View,
    (width, depth): (usize, usize),
    out: &mut [f32],
    out_stride: usize,
) {
    let mut sums = [[s.splat(0.0); 2]; M];
    for (m, sums) in sums.iter_mut().enumerate() {
        let out = &out[m * out_stride..][..width];
        *sums = [s.load_some(out), s.load_some(&out[width.min(S::LANES)..])];
    }
    // Slices of known length spare the inner loop most checks.
    let mut a_rows: [&[f32]; M] = [&[]; M];
    if !TRANSPOSED {
        for (m, row) in a_rows.iter_mut().enumerate() {
            *row = &a.data[m * a.stride..][..depth];
        }
    }
    for k in 0..depth {
        let b = &b.data[k * b.stride..];
        let b = if WHOLE {
            [s.load(b), s.load(&b[S::LANES..])]
        } else {
            [s.load_some(&b[..width]), s.load_some(&b[width.min(S::LANES)..width])]
        };
        let column: &[f32] = if TRANSPOSED { &a.data[k * a.stride..][..M] } else { &[] };
        for m in 0..M {
            let a = s.splat(if TRANSPOSED { column[m] } else { a_rows[m][k] });
            sums[m][0] = s.fma(a, b[0], sums[m][0]);
            sums[m][1] = s.fma(a, b[1], sums[m][1]);
        }
    }
    for (m, sums) in sums.into_iter().enumerate() {
        let out = &mut out[m * out_stride..][..width];
        s.store_some(sums[0], out);
        s.store_some(sums[1], &mut out[width.min(S::LANES)..]);
    }
}

/// out[c, r] = a[r, c] for `rows` × `columns` of A; `out` has rows of `out_stride`.
#[inline(always)]
pub(crate) fn transpose<S: Simd>(s: S, a: View, (rows, columns): (usize, usize), out: &mut [f32], out_stride: usize) {
    let lanes = S::LANES;
    let (whole_rows, whole_columns) = (rows - rows % lanes, columns - columns % lanes);
    for row in (0..whole_rows).step_by(lanes) {
        for column in (0..whole_columns).step_by(lanes) {
            s.transpose(a.from(row, column).data, a.stride, &mut out[column * out_stride + row..], out_stride);
        }
    }
    for r in 0..rows {
        let from = if r < whole_rows { whole_columns } else { 0 };
        for c in from..columns {
            out[c * out_stride + r] = a.data[r * a.stride + c];
        }
    }
}
