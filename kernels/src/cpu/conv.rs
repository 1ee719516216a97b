//! CPU twin of [`crate::conv`].

use crate::{
    cpu::simd::{Kernel, LANES, Simd, dispatch},
    par,
};

/// Tokens of a piece of work.
const PIECE: usize = 64;

pub(crate) fn causal_conv(
    xs: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    history: &[f32],
    out: &mut [f32],
    channels: usize,
) {
    let taps = weight.len() / channels;
    // [K, C]: a tap of eight channels is then one load.
    let mut transposed = vec![0.0; weight.len()];
    for (c, w) in weight.chunks_exact(taps).enumerate() {
        for (j, &w) in w.iter().enumerate() {
            transposed[j * channels + c] = w;
        }
    }
    let weight = &transposed;
    let work = xs.len() * taps / LANES;
    par::for_each_chunk(out, PIECE * channels, work, |i, out| {
        dispatch(Conv { xs, weight, bias, history, out, channels, first: i * PIECE });
    });
}

struct Conv<'a> {
    xs: &'a [f32],
    /// [K, C]
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    history: &'a [f32],
    /// Tokens from `first`.
    out: &'a mut [f32],
    channels: usize,
    first: usize,
}

impl Kernel for Conv<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Conv { xs, weight, bias, history, out, channels, first } = self;
        for (t, out) in out.chunks_exact_mut(channels).enumerate() {
            match bias {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
            for (j, w) in weight.chunks_exact(channels).enumerate() {
                // Row t + j of (history, xs).
                let row = (first + t + j) * channels;
                let x = if row < history.len() {
                    &history[row..][..channels]
                } else {
                    &xs[row - history.len()..][..channels]
                };
                for ((x, w), out) in x.chunks(LANES).zip(w.chunks(LANES)).zip(out.chunks_mut(LANES)) {
                    s.store_some(s.fma(s.load_some(x), s.load_some(w), s.load_some(out)), out);
                }
            }
        }
    }
}
