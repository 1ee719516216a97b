//! CPU twin of [`fn@crate::long_conv`].

use crate::{
    cpu::simd::{Kernel, Simd, dispatch},
    par,
};

/// Tokens of a piece of work.
const PIECE: usize = 8;

pub(crate) fn run(xs: &[f32], taps: &[f32], channels: usize, out: &mut [f32]) {
    let first = (xs.len() - out.len()) / channels;
    let reach = (taps.len() / channels).min(xs.len() / channels);
    let work = out.len() * reach;
    par::for_each_chunk(out, PIECE * channels, work, |i, out| {
        dispatch(Conv { xs, taps, channels, first: first + i * PIECE, out });
    });
}

struct Conv<'a> {
    /// [S, C]
    xs: &'a [f32],
    /// [L, C]
    taps: &'a [f32],
    channels: usize,
    /// Where in `xs` the first token of `out` stands.
    first: usize,
    out: &'a mut [f32],
}

impl Kernel for Conv<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Conv { xs, taps, channels, first, out } = self;
        for (t, out) in out.chunks_exact_mut(channels).enumerate() {
            for c in (0..channels).step_by(S::LANES) {
                let width = S::LANES.min(channels - c);
                let mut sum = s.splat(0.0);
                for age in 0..(taps.len() / channels).min(first + t + 1) {
                    let (tap, x) = (age * channels + c, (first + t - age) * channels + c);
                    sum = s.fma(s.load_some(&taps[tap..tap + width]), s.load_some(&xs[x..x + width]), sum);
                }
                s.store_some(sum, &mut out[c..c + width]);
            }
        }
    }
}
