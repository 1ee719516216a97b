//! CPU twin of [`crate::conv`].

use std::ops::Range;

use crate::{
    Room,
    cpu::{
        activation::{InPlace, Silu, WORK},
        simd::{Kernel, MOST_LANES, Simd, dispatch},
    },
    par,
};

/// Tokens of a piece of work.
const PIECE: usize = 32;
/// Taps added together.
const TAPS: usize = 4;

#[derive(Clone, Copy)]
pub(crate) struct Conv<'a> {
    /// [T, C]
    pub(crate) xs: &'a [f32],
    /// [C, K]
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    /// [K−1, C]
    pub(crate) history: &'a [f32],
    pub(crate) channels: usize,
    /// Whether it is applied to what comes out.
    pub(crate) silu: bool,
}

impl<'a> Conv<'a> {
    /// `out` [T, channels of `own`].
    pub(crate) fn run(self, own: Range<usize>, out: &mut [f32]) {
        let (width, taps) = (own.len(), self.weight.len() / self.channels);
        // [K, own channels]: vectors run along the channels.
        let mut turned = Room::new(taps * width);
        dispatch(Turn { rows: &self.weight[own.start * taps..], taps, to: &mut turned });
        let turned = &turned;
        par::for_each_chunk(out, PIECE * width, out.len() * (taps + if self.silu { WORK } else { 0 }), |i, out| {
            dispatch(Piece { conv: self, own: own.clone(), turned, first: i * PIECE, out });
        });
    }

    /// Row `row` of (history, xs).
    #[inline(always)]
    fn input(self, row: usize) -> &'a [f32] {
        match (row * self.channels).checked_sub(self.history.len()) {
            Some(at) => &self.xs[at..],
            None => &self.history[row * self.channels..],
        }
    }
}

/// [channels, K] to [K, channels], by squares.
struct Turn<'a> {
    rows: &'a [f32],
    taps: usize,
    to: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Turn { rows, taps, to } = self;
        let width = to.len() / taps;
        let mut square = [0.0; MOST_LANES * MOST_LANES];
        for c in (0..width).step_by(S::LANES) {
            let end = width.min(c + S::LANES);
            for from in (0..taps).step_by(S::LANES) {
                let rows = &rows[c * taps + from..];
                if rows.len() >= (S::LANES - 1) * taps + S::LANES {
                    // What follows the taps and the channels is turned with them and not used.
                    s.transpose(rows, taps, &mut square, S::LANES);
                } else {
                    for (i, w) in rows.iter().enumerate().take(S::LANES * taps).filter(|(i, _)| i % taps < S::LANES) {
                        square[i % taps * S::LANES + i / taps] = *w;
                    }
                }
                for (j, of_tap) in square.chunks_exact(S::LANES).enumerate().take(taps - from) {
                    s.store_some(s.load(of_tap), &mut to[(from + j) * width + c..][..end - c]);
                }
            }
        }
    }
}

struct Piece<'a> {
    conv: Conv<'a>,
    /// Channels.
    own: Range<usize>,
    turned: &'a [f32],
    /// Token.
    first: usize,
    /// [tokens, own channels]
    out: &'a mut [f32],
}

impl Kernel for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Piece { conv, own, turned, first, out } = self;
        for (t, out) in out.chunks_exact_mut(own.len()).enumerate() {
            match conv.bias {
                Some(bias) => out.copy_from_slice(&bias[own.clone()]),
                None => out.fill(0.0),
            }
            for (i, taps) in turned.chunks(TAPS * own.len()).enumerate() {
                let row = first + t + i * TAPS;
                match taps.len() / own.len() {
                    1 => add::<S, 1>(s, conv, own.clone(), taps, row, out),
                    2 => add::<S, 2>(s, conv, own.clone(), taps, row, out),
                    3 => add::<S, 3>(s, conv, own.clone(), taps, row, out),
                    _ => add::<S, TAPS>(s, conv, own.clone(), taps, row, out),
                }
            }
            if conv.silu {
                InPlace(out, Silu).run(s);
            }
        }
    }
}

/// `out` [channels of `own`] += the K `taps` [K, own channels] times the inputs from `row` on.
#[inline(always)]
fn add<S: Simd, const K: usize>(s: S, conv: Conv, own: Range<usize>, taps: &[f32], row: usize, out: &mut [f32]) {
    let width = own.len();
    // Slices of known length spare the loop its checks.
    let (mut inputs, mut weights): ([&[f32]; K], [&[f32]; K]) = ([&[]; K], [&[]; K]);
    for j in 0..K {
        inputs[j] = &conv.input(row + j)[own.clone()];
        weights[j] = &taps[j * width..][..width];
    }
    for c in (0..width).step_by(S::LANES) {
        let end = width.min(c + S::LANES);
        let mut sum = s.load_some(&out[c..end]);
        for j in 0..K {
            sum = s.fma(s.load_some(&inputs[j][c..end]), s.load_some(&weights[j][c..end]), sum);
        }
        s.store_some(sum, &mut out[c..end]);
    }
}
