//! CPU twin of [`crate::conv`].

use std::ops::Range;

use crate::{
    cpu::simd::{Kernel, MOST_LANES, Simd, dispatch},
    par,
};

/// Tokens of a piece of work, for which the taps are turned.
const PIECE: usize = 32;

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
}

impl Conv<'_> {
    /// `out` [T, channels of `own`].
    pub(crate) fn run(self, own: Range<usize>, out: &mut [f32]) {
        let (width, work) = (own.len(), out.len() * self.weight.len() / self.channels);
        par::for_each_chunk(out, PIECE * width, work, |i, out| {
            dispatch(Piece { conv: self, own: own.clone(), first: i * PIECE, out });
        });
    }
}

struct Piece<'a> {
    conv: Conv<'a>,
    /// Channels.
    own: Range<usize>,
    /// Token.
    first: usize,
    /// [tokens, own channels]
    out: &'a mut [f32],
}

impl Kernel for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Piece { conv: Conv { xs, weight, bias, history, channels }, own, first, out } = self;
        let taps = weight.len() / channels;
        // A vector of channels and up to as many of their taps at a time: [K, C] is what the products need.
        for c in own.clone().step_by(S::LANES) {
            let width = S::LANES.min(own.end - c);
            let bias = bias.map_or(s.splat(0.0), |bias| s.load_some(&bias[c..c + width]));
            for from in (0..taps).step_by(S::LANES) {
                let count = S::LANES.min(taps - from);
                let (rows, mut square) = (&weight[c * taps + from..], [0.0; MOST_LANES * MOST_LANES]);
                if width == S::LANES && rows.len() >= (width - 1) * taps + width {
                    // What follows the taps of a channel is turned with them and not used.
                    s.transpose(rows, taps, &mut square, S::LANES);
                } else {
                    for (r, j) in (0..width).flat_map(|r| (0..count).map(move |j| (r, j))) {
                        square[j * S::LANES + r] = rows[r * taps + j];
                    }
                }
                for (t, out) in out.chunks_exact_mut(own.len()).enumerate() {
                    let out = &mut out[c - own.start..][..width];
                    let mut sum = match from {
                        0 => bias,
                        _ => s.load_some(out),
                    };
                    for (j, w) in square.chunks_exact(S::LANES).enumerate().take(count) {
                        // Row t + j of (history, xs).
                        let at = (first + t + from + j) * channels + c;
                        let x = match at.checked_sub(history.len()) {
                            Some(at) => &xs[at..],
                            None => &history[at..],
                        };
                        // Likewise the channels that follow.
                        sum = s.fma(s.load_some(x), s.load(w), sum);
                    }
                    s.store_some(sum, out);
                }
            }
        }
    }
}
