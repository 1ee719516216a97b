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
    // [K, C]: a tap of eight channels is then one load, which pays with more tokens than one.
    let turned = xs.len() > channels;
    let mut transposed = vec![0.0; if turned { weight.len() } else { 0 }];
    if turned {
        for (c, w) in weight.chunks_exact(taps).enumerate() {
            for (j, &w) in w.iter().enumerate() {
                transposed[j * channels + c] = w;
            }
        }
    }
    let weight = if turned { &transposed } else { weight };
    let work = xs.len() * taps;
    par::for_each_chunk(out, PIECE * channels, work, |i, out| {
        dispatch(Conv { xs, weight, bias, history, out, channels, taps, turned, first: i * PIECE });
    });
}

struct Conv<'a> {
    xs: &'a [f32],
    /// [K, C] where it is turned, else [C, K].
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    history: &'a [f32],
    /// Tokens from `first`.
    out: &'a mut [f32],
    channels: usize,
    taps: usize,
    turned: bool,
    first: usize,
}

impl Kernel for Conv<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Conv { xs, weight, bias, history, out, channels, taps, turned, first } = self;
        for (t, out) in out.chunks_exact_mut(channels).enumerate() {
            match bias {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
            for j in 0..taps {
                // Row t + j of (history, xs).
                let row = (first + t + j) * channels;
                let x = if row < history.len() {
                    &history[row..][..channels]
                } else {
                    &xs[row - history.len()..][..channels]
                };
                for (i, (x, out)) in x.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate() {
                    let c = i * LANES;
                    let w = if turned {
                        s.load_some(&weight[j * channels + c..][..x.len()])
                    } else {
                        let mut lanes = [0.0; LANES];
                        let own = weight[c * taps + j..].iter().step_by(taps);
                        lanes[..x.len()].iter_mut().zip(own).for_each(|(lane, w)| *lane = *w);
                        s.load(&lanes)
                    };
                    s.store_some(s.fma(s.load_some(x), w, s.load_some(out)), out);
                }
            }
        }
    }
}
