//! CPU twin of [`crate::linear`].

use std::{cell::Cell, ops::Range};

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use crate::{
    Matrix, Q8Block, Values,
    cpu::simd::{Wide, WideKernel, dispatch_wide},
    par,
};

/// What a row of weights is stored in.
trait Weight: Copy + Sync {
    /// Weights of an item: 1, or a block.
    const WEIGHTS: usize;

    /// R rows times x at once: their sums are independent, which hides the latency of the multiply-adds, and x is loaded once for all.
    fn dot_rows<S: Wide, const R: usize>(s: S, rows: [&[Self]; R], x: &[f32]) -> [f32; R];

    /// Line `i` of a row as f32: its inputs from 16 i on, zeros beyond the last.
    fn line<S: Wide>(s: S, row: &[Self], inputs: usize, i: usize, out: &mut Line);
}

/// A weight that is stored as a number of its own.
trait Number: Copy + Sync {
    fn load<S: Wide>(s: S, xs: &[Self]) -> S::W;
    fn to_f32(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn load<S: Wide>(s: S, xs: &[f32]) -> S::W {
        s.load(xs)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn load<S: Wide>(s: S, xs: &[bf16]) -> S::W {
        s.load_bf16(xs)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Number for f16 {
    #[inline(always)]
    fn load<S: Wide>(s: S, xs: &[f16]) -> S::W {
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
    fn dot_rows<S: Wide, const R: usize>(s: S, rows: [&[N]; R], x: &[f32]) -> [f32; R] {
        let (n, body) = (x.len(), x.len() - x.len() % (2 * S::LANES));
        let rows = rows.map(|r| &r[..n]);
        let mut sums = [[s.zero(); 2]; R];
        let mut i = 0;
        while i < body {
            let x = [s.load(&x[i..]), s.load(&x[i + S::LANES..])];
            for r in 0..R {
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
    fn line<S: Wide>(s: S, row: &[N], inputs: usize, i: usize, Line(out): &mut Line) {
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

/// sum + scale · Σ quants · x.
#[inline(always)]
fn add_block<S: Wide>(s: S, block: &Q8Block, x: &[f32; Q8Block::WEIGHTS], sum: S::W) -> S::W {
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
    fn dot_rows<S: Wide, const R: usize>(s: S, rows: [&[Q8Block]; R], x: &[f32]) -> [f32; R] {
        let mut sums = [s.zero(); R];
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

    /// The last block ends in zeros of its own.
    #[inline(always)]
    fn line<S: Wide>(s: S, row: &[Q8Block], _: usize, i: usize, Line(out): &mut Line) {
        let (block, half) = (&row[i / 2], i % 2 * Line::FLOATS);
        let scale = s.splat_f16(block.scale);
        for lane in (0..Line::FLOATS).step_by(S::LANES) {
            s.store(s.mul(scale, s.load_i8(&block.quants[half + lane..])), &mut out[lane..]);
        }
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
        dispatch_wide(Gemv { rows: &weight[first..first + y.len() * items], x, y });
    });
}

struct Gemv<'a, W> {
    rows: &'a [W],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<W: Weight> WideKernel for Gemv<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
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

/// Tokens of a piece of work: a few register tiles, few enough that threads share the 128 of a chunk evenly.
const PIECE: usize = 32;
/// Weights taken at a time (512 KiB of f32): they stay in L2 while all tokens of a piece pass.
const GROUP: usize = 1 << 17;
/// Lines of inputs taken at a time: what a tile of tokens has of them stays in L1.
const DEPTH: usize = 64;
/// Rows of weights of a register tile.
const ROWS_OF_TILE: usize = 3;

/// A cache line: vectors that lie across two of them take twice as long to load.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; Line::FLOATS]);

impl Line {
    const FLOATS: usize = 16;
}

/// Rows of `inputs` numbers, in strips of `width` rows (the last may have fewer): line after line, each of all rows of a strip, as a
/// register tile takes them.
#[derive(Clone, Copy)]
struct Packed<'a> {
    lines: &'a [Line],
    rows: usize,
    width: usize,
    /// Of a row.
    length: usize,
}

impl<'a> Packed<'a> {
    /// Lines `depth` of the strip from row `first` on, whose width is at most `width`.
    #[inline(always)]
    fn strip(self, first: usize, depth: Range<usize>) -> &'a [Line] {
        let width = self.width.min(self.rows - first);
        &self.lines[first * self.length..][depth.start * width..depth.end * width]
    }
}

thread_local! {
    /// Room for tokens and for a group of weights, kept from product to product: fresh memory costs more than filling it.
    static ROOM: Cell<[Vec<Line>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

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
    if inputs == 0 {
        return ys.fill(0.0);
    }
    let items = inputs.div_ceil(W::WEIGHTS);
    let (outputs, tokens) = (weight.len() / items, xs.len() / inputs);
    let group = (GROUP / inputs).max(1).next_multiple_of(ROWS_OF_TILE);
    let mut room = ROOM.take();
    let [of_tokens, of_weights] = &mut room;
    // A piece holds whole strips of tokens.
    let xs = pack(xs, inputs, inputs, dispatch_wide(TokensOfTile), of_tokens);
    for first in (0..outputs).step_by(group) {
        let rows = &weight[first * items..outputs.min(first + group) * items];
        let rows = pack(rows, items, inputs, ROWS_OF_TILE, of_weights);
        par::for_each_chunk(ys, PIECE * outputs, tokens * rows.rows * inputs / 8, |i, ys| {
            let count = ys.len() / outputs;
            let xs = Packed { lines: &xs.lines[i * PIECE * xs.length..][..count * xs.length], rows: count, ..xs };
            multiply(rows, xs, ys, outputs, first);
        });
    }
    ROOM.set(room);
}

/// Tokens of a register tile: rows × tokens sums, the rows and one token fill the registers, 32 with sixteen lanes, else 16.
struct TokensOfTile;

impl WideKernel for TokensOfTile {
    type Output = usize;
    #[inline(always)]
    fn run<S: Wide>(self, _: S) -> usize {
        if S::LANES > 8 { 8 } else { 4 }
    }
}

/// Packs rows of `items`, each `inputs` numbers, into `room`.
fn pack<'a, W: Weight>(rows: &[W], items: usize, inputs: usize, width: usize, room: &'a mut Vec<Line>) -> Packed<'a> {
    let (count, length) = (rows.len() / items, inputs.div_ceil(Line::FLOATS));
    if room.len() < count * length {
        room.resize(count * length, Line::zeroed());
    }
    let lines = &mut room[..count * length];
    par::for_each_chunk(lines, width * length, count * inputs, |i, lines| {
        let rows = &rows[i * width * items..][..lines.len() / length * items];
        dispatch_wide(Pack { rows, items, inputs, lines });
    });
    Packed { lines, rows: count, width, length }
}

/// Packs one strip.
struct Pack<'a, W> {
    rows: &'a [W],
    /// Of a row.
    items: usize,
    inputs: usize,
    lines: &'a mut [Line],
}

impl<W: Weight> WideKernel for Pack<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let width = self.rows.len() / self.items;
        for (r, row) in self.rows.chunks_exact(self.items).enumerate() {
            for (i, line) in self.lines.iter_mut().skip(r).step_by(width).enumerate() {
                W::line(s, row, self.inputs, i, line);
            }
        }
    }
}

/// Writes the product of packed rows and tokens to `ys` [tokens, outputs], to columns from `first`, one a row.
fn multiply(rows: Packed<'_>, xs: Packed<'_>, ys: &mut [f32], outputs: usize, first: usize) {
    for y in ys.chunks_exact_mut(outputs) {
        y[first..first + rows.rows].fill(0.0);
    }
    for line in (0..xs.length).step_by(DEPTH) {
        let depth = line..xs.length.min(line + DEPTH);
        for token in (0..xs.rows).step_by(xs.width) {
            let x = xs.strip(token, depth.clone());
            let strip = Strip { rows, x, depth: depth.clone(), ys: &mut ys[token * outputs..], outputs, column: first };
            // Each width is a function of its own, so that its sums have all registers.
            match xs.width.min(xs.rows - token) {
                1 => dispatch_wide(Of::<1>(strip)),
                2 => dispatch_wide(Of::<2>(strip)),
                3 => dispatch_wide(Of::<3>(strip)),
                4 => dispatch_wide(Of::<4>(strip)),
                5 => dispatch_wide(Of::<5>(strip)),
                6 => dispatch_wide(Of::<6>(strip)),
                7 => dispatch_wide(Of::<7>(strip)),
                _ => dispatch_wide(Of::<8>(strip)),
            }
        }
    }
}

/// All rows of weights times a strip of tokens, over a part of the inputs.
struct Strip<'a> {
    rows: Packed<'a>,
    x: &'a [Line],
    depth: Range<usize>,
    /// [tokens, outputs], to whose columns from `column` the products are added.
    ys: &'a mut [f32],
    outputs: usize,
    column: usize,
}

/// A strip of T tokens.
struct Of<'a, const T: usize>(Strip<'a>);

impl<const T: usize> WideKernel for Of<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let Strip { rows, x, depth, ys, outputs, column } = self.0;
        let whole = rows.rows / ROWS_OF_TILE * ROWS_OF_TILE;
        for row in (0..whole).step_by(ROWS_OF_TILE) {
            let sums = tile::<S, ROWS_OF_TILE, T>(s, rows.strip(row, depth.clone()), x);
            add(s, sums, &mut ys[column + row..], outputs);
        }
        let w = || rows.strip(whole, depth.clone());
        match rows.rows - whole {
            1 => add(s, tile::<S, 1, T>(s, w(), x), &mut ys[column + whole..], outputs),
            2 => add(s, tile::<S, 2, T>(s, w(), x), &mut ys[column + whole..], outputs),
            _ => {}
        }
    }
}

/// ys [tokens, outputs] += the sums of the lanes.
#[inline(always)]
fn add<S: Wide, const R: usize, const T: usize>(s: S, sums: [[S::W; T]; R], ys: &mut [f32], outputs: usize) {
    for t in 0..T {
        let y = &mut ys[t * outputs..][..R];
        for r in 0..R {
            y[r] += s.sum(sums[r][t]);
        }
    }
}

/// R rows of weights times T tokens. Every product has the sums of its own lanes, in the order of the inputs: its bits depend on nothing
/// that is computed beside it.
// `r` and `t` index several arrays at once; zipped iterators would hide the product.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn tile<S: Wide, const R: usize, const T: usize>(s: S, rows: &[Line], tokens: &[Line]) -> [[S::W; T]; R] {
    let mut sums = [[s.zero(); T]; R];
    for (rows, tokens) in rows.as_chunks::<R>().0.iter().zip(tokens.as_chunks::<T>().0) {
        for lane in (0..Line::FLOATS).step_by(S::LANES) {
            let mut w = [s.zero(); R];
            for r in 0..R {
                w[r] = s.load(&rows[r].0[lane..]);
            }
            for t in 0..T {
                let x = s.load(&tokens[t].0[lane..]);
                for r in 0..R {
                    sums[r][t] = s.fma(w[r], x, sums[r][t]);
                }
            }
        }
    }
    sums
}
