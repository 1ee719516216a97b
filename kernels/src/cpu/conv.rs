//! CPU twin of [`crate::conv`].

use crate::{
    cpu::simd::{Kernel, MOST_LANES, Simd, dispatch},
    par,
};

/// Tokens of a piece of work.
const PIECE: usize = 8;

pub(crate) fn causal_conv(
    xs: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    history: &[f32],
    out: &mut [f32],
    channels: usize,
) {
    let taps = weight.len() / channels;
    par::for_each_chunk(out, PIECE * channels, xs.len() * taps, |i, out| {
        dispatch(Conv { xs, weight, bias, history, out, channels, taps, first: i * PIECE });
    });
}

struct Conv<'a> {
    xs: &'a [f32],
    /// [C, K]
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    history: &'a [f32],
    /// Tokens from `first`.
    out: &'a mut [f32],
    channels: usize,
    taps: usize,
    first: usize,
}

impl Kernel for Conv<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Conv { xs, weight, bias, history, out, channels, taps, first } = self;
        // A vector of channels and up to as many of their taps at a time: [K, C] is what the products need.
        for c in (0..channels).step_by(S::LANES) {
            let width = S::LANES.min(channels - c);
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
                for (t, out) in out.chunks_exact_mut(channels).enumerate() {
                    let out = &mut out[c..];
                    let mut sum = match from {
                        0 => bias,
                        _ => s.load_some(&out[..width]),
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
                    s.store_some(sum, &mut out[..width]);
                }
            }
        }
    }
}
