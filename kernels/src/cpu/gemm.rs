//! The product of many tokens with a matrix of weights.
//!
//! Both are packed into strips as register tiles take them, the weights a group at a time and as f32, so that the innermost loop reads
//! two streams of whole cache lines and nothing else.

use std::{cell::Cell, ops::Range};

use bytemuck::Zeroable;

use super::linear::{Line, Weight};
use crate::{
    cpu::simd::{Wide, WideKernel, dispatch_wide},
    par,
};

/// Tokens of a piece of work: a few register tiles, few enough that threads share a chunk evenly.
const PIECE: usize = 32;
/// Weights taken at a time (512 KiB of f32): they stay in L2 while all tokens of a piece pass.
const GROUP: usize = 1 << 17;
/// Lines of inputs taken at a time: what a tile of tokens has of them stays in L1.
const DEPTH: usize = 64;
/// Rows of weights of a register tile.
const ROWS_OF_TILE: usize = 3;

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
pub(super) fn gemm<W: Weight>(weight: &[W], inputs: usize, xs: &[f32], ys: &mut [f32]) {
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
