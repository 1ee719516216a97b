//! The product of many tokens with a matrix of weights.
//!
//! A register tile holds the sums of some rows of weights (broadcast one by one) and of two vectors of tokens, so that nothing has to be
//! summed over lanes. Tokens are turned once, so that those of a vector lie side by side; weights become f32 a group of rows at a time,
//! in the cache of the core that multiplies with them.

use std::{cell::Cell, ops::Range};

use bytemuck::Zeroable;

use super::{
    linear::{Line, Weight},
    product::{View, rows_of_tile, transpose},
};
use crate::{
    cpu::simd::{Kernel, MOST_LANES, Simd, dispatch, lanes},
    par::{self, Columns},
};

/// Inputs taken at a time (a multiple of a line): what two vectors of tokens have of them stays in L1. Sums of that many go into a sum of
/// sums, which rounds less than one long chain.
const DEPTH: usize = 256;
/// Most rows of weights of a group, a multiple of the rows of every register tile: their part of the inputs takes 52 KB of L2.
const GROUP: usize = 48;
/// Floats from one row of a group to the next: not a power of two, or all rows would fall into the same sets of the cache.
const STRIDE: usize = DEPTH + Line::FLOATS;

thread_local! {
    /// Room for tokens, and for the weights and sums of a group, kept from product to product: fresh memory costs more than filling it.
    static ROOM: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static OF_GROUP: Cell<[Vec<Line>; 2]> = const { Cell::new([const { Vec::new() }; 2]) };
}

/// The first `len` floats of `room`, made larger if need be; what they hold is undefined.
fn floats(room: &mut Vec<Line>, len: usize) -> &mut [f32] {
    let lines = len.div_ceil(Line::FLOATS);
    if room.len() < lines {
        room.resize(lines, Line::zeroed());
    }
    &mut bytemuck::cast_slice_mut(room)[..len]
}

/// y [T, out] = x [T, in] Wᵀ; its columns are in `parts` [T, …].
pub(super) fn gemm<W: Weight>(weight: &[W], inputs: usize, xs: &[f32], parts: &mut [&mut [f32]]) {
    if inputs == 0 {
        return parts.iter_mut().for_each(|part| part.fill(0.0));
    }
    let items = inputs.div_ceil(W::WEIGHTS);
    let (outputs, tokens) = (weight.len() / items, xs.len() / inputs);
    let lanes = lanes();
    let of_tile = rows_of_tile(lanes);
    let (panel, padded) = (2 * lanes, tokens.next_multiple_of(lanes));
    let group = group(outputs.div_ceil(of_tile), GROUP / of_tile) * of_tile;

    let mut room = ROOM.take();
    let turned = floats(&mut room, padded * inputs);
    par::for_each_chunk(turned, panel * inputs, tokens * inputs, |i, to| {
        let from = &xs[i * panel * inputs..];
        dispatch(Turn { from: &from[..from.len().min(panel * inputs)], inputs, to });
    });
    let turned = &*turned;

    let mut pieces = Vec::new();
    let mut first = 0;
    for part in parts {
        let width = part.len() / tokens;
        let of_part = par::columns(part, width, group).into_iter().enumerate();
        pieces.extend(of_part.map(|(i, ys)| (first + i * group, ys)));
        first += width;
    }
    par::for_each(pieces.into_iter(), tokens * outputs * inputs / 8, |(first, ys)| {
        let rows = &weight[first * items..(first + ys.width()) * items];
        let mut room = OF_GROUP.take();
        let [of_group, sums] = &mut room;
        let sums = floats(sums, group.next_multiple_of(lanes) * padded);
        dispatch(Multiply {
            rows,
            items,
            inputs,
            turned,
            tokens,
            ys,
            group,
            of_group: floats(of_group, GROUP * STRIDE),
            sums,
        });
        OF_GROUP.set(room);
    });
    ROOM.set(room);
}

/// Of how many of so many `tiles` a group is, at most `most`: as many as let all threads end at once. (Every row has the same bits in any
/// group, so this may depend on the number of threads.)
fn group(tiles: usize, most: usize) -> usize {
    let threads = par::threads();
    let last_ends = |group: &usize| tiles.div_ceil(*group).div_ceil(threads) * group;
    (most.div_ceil(2)..=most).rev().min_by_key(last_ends).unwrap_or(most)
}

/// Turns up to two vectors of tokens [tokens, inputs] to [inputs, lanes or twice as many], with zeros for tokens that are not there.
struct Turn<'a> {
    from: &'a [f32],
    inputs: usize,
    to: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (width, inputs) = (self.to.len() / self.inputs, self.inputs);
        let tokens = self.from.len() / inputs;
        if tokens < width {
            for to in self.to.chunks_exact_mut(width) {
                to[tokens..].fill(0.0);
            }
        }
        transpose(s, View { data: self.from, stride: inputs }, (tokens, inputs), self.to, width);
    }
}

/// A group of rows of weights times all tokens.
struct Multiply<'a, W> {
    rows: &'a [W],
    /// Of a row.
    items: usize,
    inputs: usize,
    turned: &'a [f32],
    tokens: usize,
    /// [tokens, rows].
    ys: Columns<'a>,
    /// Rows of weights with those that are not there.
    group: usize,
    /// Room for the group's weights and, by panel of tokens, for its sums [group, tokens of the panel].
    of_group: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<W: Weight> Kernel for Multiply<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Multiply { rows, items, inputs, turned, tokens, mut ys, group, of_group, sums } = self;
        let (panel, of_tile) = (2 * S::LANES, rows_of_tile(S::LANES));
        let count = rows.len() / items;
        let of_panel = count.div_ceil(of_tile);
        // Rows that fill up the last tile count nothing.
        of_group[count * STRIDE..of_panel * of_tile * STRIDE].fill(0.0);
        for first in (0..inputs).step_by(DEPTH) {
            let inputs_here = first..inputs.min(first + DEPTH);
            for (row, to) in rows.chunks_exact(items).zip(of_group.chunks_exact_mut(STRIDE)) {
                widen(s, row, inputs, inputs_here.clone(), to);
            }
            let next = Next::after(&inputs_here, rows, items, inputs, group);
            let tiles = turned.len().div_ceil(panel * inputs) * of_panel;
            let panels = sums.chunks_mut(panel * group.next_multiple_of(S::LANES)).zip(turned.chunks(panel * inputs));
            for (i, (sums, turned)) in panels.enumerate() {
                let width = turned.len() / inputs;
                let xs = &turned[inputs_here.start * width..inputs_here.end * width];
                let of_tiles = of_group.chunks(of_tile * STRIDE).zip(sums.chunks_mut(of_tile * width));
                for (j, (weights, sums)) in of_tiles.enumerate().take(of_panel) {
                    next.ask(s, i * of_panel + j, tiles);
                    let part = Part { weights, xs, sums, more: first > 0 };
                    // Each tile is a function of its own, so that its sums have all registers.
                    match (S::LANES > 8, width == panel) {
                        (true, true) => dispatch(Of::<8, 2>(part)),
                        (true, false) => dispatch(Of::<8, 1>(part)),
                        (false, true) => dispatch(Of::<6, 2>(part)),
                        (false, false) => dispatch(Of::<6, 1>(part)),
                    }
                }
                if inputs_here.end == inputs {
                    turn_back(s, sums, width, i * panel..tokens.min((i + 1) * panel), &mut ys);
                }
            }
        }
    }
}

/// Turns a panel's sums [rows, `width`] to those of its `tokens` in `ys`, by squares, the last of which may reach beyond the rows.
#[inline(always)]
fn turn_back<S: Simd>(s: S, sums: &[f32], width: usize, tokens: Range<usize>, ys: &mut Columns) {
    let mut square = [0.0; MOST_LANES * MOST_LANES];
    let rows = ys.width();
    for column in (0..tokens.len()).step_by(S::LANES) {
        for row in (0..rows).step_by(S::LANES) {
            s.transpose(&sums[row * width + column..], width, &mut square, S::LANES);
            let of_tokens = tokens.clone().skip(column).zip(square.chunks_exact(S::LANES));
            for (token, of_token) in of_tokens {
                let to = &mut ys.row(token)[row..rows.min(row + S::LANES)];
                s.store_some(s.load(of_token), to);
            }
        }
    }
}

/// The weights that come next, asked for from memory a few lines with each tile: all at once they would fill what a core has to wait
/// for lines with, and it would wait.
struct Next<'a, W> {
    rows: &'a [W],
    items: usize,
    /// Bytes from a row's begin to what is asked for of it, which may lie in another row.
    start: usize,
    lines_of_row: usize,
}

impl<'a, W: Weight> Next<'a, W> {
    /// After the inputs `here` come more of the rows, or those of the group that this thread takes after the others have taken theirs.
    fn after(here: &Range<usize>, rows: &'a [W], items: usize, inputs: usize, group: usize) -> Self {
        let (first, start) = match here.end < inputs {
            true => (here.end, here.end / W::WEIGHTS),
            false => (0, group * par::threads() * items),
        };
        let count = (inputs.min(first + DEPTH) - first).div_ceil(W::WEIGHTS);
        let line = size_of::<Line>();
        Next { rows, items, start: start * size_of::<W>(), lines_of_row: (count * size_of::<W>()).div_ceil(line) }
    }

    /// The share of tile number `tile` of `tiles`.
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, tile: usize, tiles: usize) {
        let lines = self.rows.len() / self.items * self.lines_of_row;
        for line in tile * lines / tiles..(tile + 1) * lines / tiles {
            let (row, line) = (line / self.lines_of_row, line % self.lines_of_row);
            s.prefetch(&self.rows[row * self.items..], self.start + line * size_of::<Line>());
        }
    }
}

/// The inputs `range` of a row as f32.
#[inline(always)]
fn widen<S: Simd, W: Weight>(s: S, row: &[W], inputs: usize, range: Range<usize>, to: &mut [f32]) {
    let lines: &mut [Line] = bytemuck::cast_slice_mut(to);
    for (i, line) in (range.start / Line::FLOATS..range.end.div_ceil(Line::FLOATS)).zip(lines) {
        W::line(s, row, inputs, i, line);
    }
}

/// R rows of weights [R, `STRIDE`] times V vectors of tokens [inputs, V·lanes].
struct Part<'a> {
    weights: &'a [f32],
    xs: &'a [f32],
    /// [R, V·lanes].
    sums: &'a mut [f32],
    /// Whether they are added to.
    more: bool,
}

struct Of<'a, const R: usize, const V: usize>(Part<'a>);

impl<const R: usize, const V: usize> Kernel for Of<'_, R, V> {
    type Output = ();
    // `r` and `v` index several arrays at once; zipped iterators would hide the product.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { weights, xs, sums, more } = self.0;
        let (weights, _) = weights.as_chunks::<STRIDE>();
        let weights: &[[f32; STRIDE]; R] = weights.first_chunk().expect("a tile has R rows");
        let mut tile = [[s.splat(0.0); V]; R];
        for (i, x) in xs.chunks_exact(V * S::LANES).enumerate() {
            let mut vectors = [s.splat(0.0); V];
            for v in 0..V {
                vectors[v] = s.load(&x[v * S::LANES..]);
            }
            for r in 0..R {
                let weight = s.splat(weights[r][i]);
                for v in 0..V {
                    tile[r][v] = s.fma(weight, vectors[v], tile[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                let to = &mut sums[(r * V + v) * S::LANES..][..S::LANES];
                let sum = if more { s.add(s.load(to), tile[r][v]) } else { tile[r][v] };
                s.store(sum, to);
            }
        }
    }
}
