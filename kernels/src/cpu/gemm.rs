//! The product of many tokens with a matrix of weights.
//!
//! A register tile holds the sums of some tokens (broadcast one by one) and of two vectors of outputs, so that nothing has to be summed
//! over lanes and sums lie as y wants them. Weights become f32 and are turned, two vectors of outputs at a time, in the cache of the core
//! that multiplies with them; tokens are read where they are, and asked for a tile ahead.

use std::{cell::Cell, ops::Range};

use bytemuck::Zeroable;

use super::{
    linear::{Line, Weight},
    product::rows_of_tile,
};
use crate::{
    cpu::simd::{Kernel, MOST_LANES, Simd, dispatch, lanes},
    par::{self, Columns},
};

/// Inputs taken at a time (a multiple of a line): what two vectors of outputs have of them stays in L1. Sums of that many go into a sum of
/// sums, which rounds less than one long chain.
const DEPTH: usize = 256;
/// Most pairs of vectors of outputs that a thread takes at a time.
const GROUP: usize = 4;

thread_local! {
    /// Room for the weights and sums of two vectors of outputs, kept from product to product: fresh memory costs more than filling it.
    static OF_OUTPUTS: Cell<[Vec<Line>; 2]> = const { Cell::new([const { Vec::new() }; 2]) };
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
    let (rows, panel) = (rows_of_tile(lanes()), 2 * lanes());
    let tiles = tokens.div_ceil(rows);
    let group = group(outputs.div_ceil(panel)) * panel;

    let mut pieces = Vec::new();
    let mut first = 0;
    for part in parts {
        let width = part.len() / tokens;
        let of_part = par::columns(part, width, group).into_iter().enumerate();
        pieces.extend(of_part.map(|(i, ys)| (first + i * group, ys)));
        first += width;
    }
    par::for_each(pieces.into_iter(), tokens * outputs * inputs / 8, |(first, ys)| {
        let weights = &weight[first * items..(first + ys.width()) * items];
        let mut room = OF_OUTPUTS.take();
        let [turned, sums] = &mut room;
        let (turned, sums) = (floats(turned, panel * DEPTH), floats(sums, tiles * rows * panel));
        dispatch(Multiply { weights, items, inputs, xs, tokens, ys, group, turned, sums });
        OF_OUTPUTS.set(room);
    });
}

/// Of how many of so many pairs of vectors a group is: as many as let all threads end at once. (Every output has the same bits in any
/// group, so this may depend on the number of threads.)
fn group(panels: usize) -> usize {
    let threads = par::threads();
    let last_ends = |group: &usize| panels.div_ceil(*group).div_ceil(threads) * group;
    (GROUP.div_ceil(2)..=GROUP).rev().min_by_key(last_ends).unwrap_or(GROUP)
}

/// A group of outputs of all tokens.
struct Multiply<'a, W> {
    /// [outputs, items].
    weights: &'a [W],
    /// Of an output.
    items: usize,
    inputs: usize,
    /// [tokens, inputs].
    xs: &'a [f32],
    tokens: usize,
    /// [tokens, outputs].
    ys: Columns<'a>,
    /// Most outputs of a group.
    group: usize,
    /// Room for two vectors of outputs: `DEPTH` weights of each, and sums until all inputs are in them [tiles, tokens of a tile, vectors].
    turned: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<W: Weight> Kernel for Multiply<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Multiply { weights, items, inputs, xs, tokens, mut ys, group, turned, sums } = self;
        let (panel, of_tile) = (2 * S::LANES, rows_of_tile(S::LANES));
        let outputs = weights.len() / items;
        for first_output in (0..outputs).step_by(panel) {
            let columns = first_output..outputs.min(first_output + panel);
            let one = columns.len() <= S::LANES;
            for first in (0..inputs).step_by(DEPTH) {
                let here = first..inputs.min(first + DEPTH);
                turn(s, &weights[columns.start * items..columns.end * items], items, inputs, here.clone(), turned);
                let turned = &turned[..here.len() * if one { S::LANES } else { panel }];
                let mut next = Next::after(&here, &columns, weights, items, inputs, group);
                let of_tiles = xs.chunks(of_tile * inputs).zip(sums.chunks_exact_mut(of_tile * panel));
                let ahead = next.lines().div_ceil(of_tiles.len());
                for (i, (xs, sums)) in of_tiles.enumerate() {
                    next.ask(s, ahead);
                    let tokens = i * of_tile..tokens.min((i + 1) * of_tile);
                    let to = (here.end == inputs).then_some(To { ys: &mut ys, tokens, columns: columns.clone() });
                    let part =
                        Part { xs, stride: inputs, here: here.clone(), weights: turned, sums, more: first > 0, to };
                    // Each tile is a function of its own, so that its sums have all registers.
                    match (S::LANES > 8, one) {
                        (true, false) => dispatch(Of::<8, 2>(part)),
                        (true, true) => dispatch(Of::<8, 1>(part)),
                        (false, false) => dispatch(Of::<6, 2>(part)),
                        (false, true) => dispatch(Of::<6, 1>(part)),
                    }
                }
            }
        }
    }
}

/// The inputs `range` of up to two vectors of outputs as f32 [inputs, one or two vectors], with zeros for outputs that are not there.
#[inline(always)]
fn turn<S: Simd, W: Weight>(s: S, weights: &[W], items: usize, inputs: usize, range: Range<usize>, to: &mut [f32]) {
    let width = (weights.len() / items).next_multiple_of(S::LANES);
    let mut square = [Line::zeroed(); MOST_LANES];
    for output in (0..width).step_by(S::LANES) {
        for line in range.start / Line::FLOATS..range.end.div_ceil(Line::FLOATS) {
            for (i, square) in square.iter_mut().enumerate().take(S::LANES) {
                match weights.get((output + i) * items..(output + i + 1) * items) {
                    Some(row) => W::line(s, row, inputs, line, square),
                    None => *square = Line::zeroed(),
                }
            }
            let to = &mut to[(line * Line::FLOATS - range.start) * width + output..];
            for lane in (0..Line::FLOATS).step_by(S::LANES) {
                let square: &[f32] = bytemuck::cast_slice(&square);
                s.transpose(&square[lane..], Line::FLOATS, &mut to[lane * width..], width);
            }
        }
    }
}

/// The weights that come next, asked for from memory a few lines with each tile: all at once they would fill what a core has to wait
/// for lines with, and it would wait.
struct Next<'a, W> {
    weights: &'a [W],
    /// Bytes from the begin of the weights to what is asked for, and from one output to the next.
    start: usize,
    stride: usize,
    outputs: usize,
    lines_of_output: usize,
    /// How many of an output's lines are asked for.
    line: usize,
}

impl<'a, W: Weight> Next<'a, W> {
    /// After the inputs `here` of the outputs `columns` come more of their inputs, or the next outputs, or those of the group that this
    /// thread takes after the others have taken theirs.
    fn after(
        here: &Range<usize>,
        columns: &Range<usize>,
        weights: &'a [W],
        items: usize,
        inputs: usize,
        group: usize,
    ) -> Self {
        let (output, first) = match (here.end < inputs, columns.end * items < weights.len()) {
            (true, _) => (columns.start, here.end),
            (false, true) => (columns.end, 0),
            (false, false) => (group * par::threads(), 0),
        };
        let count = (inputs.min(first + DEPTH) - first).div_ceil(W::WEIGHTS);
        Next {
            weights,
            start: (output * items + first / W::WEIGHTS) * size_of::<W>(),
            stride: items * size_of::<W>(),
            outputs: columns.len(),
            lines_of_output: (count * size_of::<W>()).div_ceil(size_of::<Line>()),
            line: 0,
        }
    }

    fn lines(&self) -> usize {
        self.outputs * self.lines_of_output
    }

    /// Up to `count` more lines.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S, count: usize) {
        for _ in 0..count {
            if self.outputs == 0 {
                return;
            }
            s.prefetch(self.weights, self.start + self.line * size_of::<Line>());
            self.line += 1;
            if self.line == self.lines_of_output {
                (self.line, self.outputs, self.start) = (0, self.outputs - 1, self.start + self.stride);
            }
        }
    }
}

/// Up to R tokens [R, inputs] times V vectors of outputs [inputs here, V·lanes].
struct Part<'a, 'b> {
    xs: &'a [f32],
    /// From one token to the next.
    stride: usize,
    here: Range<usize>,
    weights: &'a [f32],
    /// [R, V·lanes].
    sums: &'a mut [f32],
    /// Whether they are added to.
    more: bool,
    /// Where they go when nothing more is added.
    to: Option<To<'a, 'b>>,
}

struct To<'a, 'b> {
    ys: &'a mut Columns<'b>,
    tokens: Range<usize>,
    columns: Range<usize>,
}

struct Of<'a, 'b, const R: usize, const V: usize>(Part<'a, 'b>);

impl<const R: usize, const V: usize> Kernel for Of<'_, '_, R, V> {
    type Output = ();
    // `r` and `v` index several arrays at once; zipped iterators would hide the product.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { xs, stride, here, weights, sums, more, to } = self.0;
        // Tokens that are not there are the last once more, and nobody wants their sums.
        let last = xs.len() / stride - 1;
        let count = here.len();
        let mut rows: [&[f32]; R] = [&[]; R];
        for r in 0..R {
            rows[r] = &xs[r.min(last) * stride + here.start..][..count];
        }
        let mut tile = [[s.splat(0.0); V]; R];
        for (i, weights) in weights.chunks_exact(V * S::LANES).enumerate().take(count) {
            let mut vectors = [s.splat(0.0); V];
            for v in 0..V {
                vectors[v] = s.load(&weights[v * S::LANES..]);
            }
            // Of the next tile's tokens, each line twice.
            s.prefetch(xs, ((i % R + R) * stride + here.start + i) * size_of::<f32>());
            for r in 0..R {
                let x = s.splat(rows[r][i]);
                for v in 0..V {
                    tile[r][v] = s.fma(x, vectors[v], tile[r][v]);
                }
            }
        }
        let sums = &mut sums[..R * V * S::LANES];
        if more {
            for r in 0..R {
                for v in 0..V {
                    tile[r][v] = s.add(s.load(&sums[(r * V + v) * S::LANES..]), tile[r][v]);
                }
            }
        }
        let Some(To { ys, tokens, columns }) = to else {
            for r in 0..R {
                for v in 0..V {
                    s.store(tile[r][v], &mut sums[(r * V + v) * S::LANES..]);
                }
            }
            return;
        };
        for r in 0..R.min(tokens.len()) {
            let to = &mut ys.row(tokens.start + r)[columns.clone()];
            for v in 0..V {
                s.store_some(tile[r][v], &mut to[v * S::LANES..columns.len().min((v + 1) * S::LANES)]);
            }
        }
    }
}
