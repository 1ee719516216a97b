//! CPU twin of [`crate::selective_scan`].

use std::f32::consts::LOG2_E;

use crate::{
    SelectiveScan,
    cpu::{
        simd::{Kernel, LANES, Simd, dispatch},
        vector::exp2,
    },
    par,
};

/// Channels of a piece of work: states of a piece stay in L1.
const PIECE: usize = 64;

/// Tokens whose outputs are copied into place together.
const COPIED: usize = 16;

/// Eight elements of a state in units of multiply-adds: an exponential, above all.
const EIGHT: usize = 64;

pub(crate) fn forward(scan: &SelectiveScan, state: &mut [f32], y: Option<&mut [f32]>, state_norm: Option<&mut [f32]>) {
    let (channels, tokens) = (scan.channels(), scan.x.len() / scan.channels());
    let n = scan.state_dim();
    let work = tokens * channels * n.div_ceil(LANES) * EIGHT;
    // Pieces own columns of y, which are no slices of it: each works on a strip [T, its channels], copied into place at the end.
    let strip = |wanted: bool| vec![0.0; if wanted { tokens * channels } else { 0 }];
    let (mut y_strips, mut norm_strips) = (strip(y.is_some()), strip(state_norm.is_some()));
    let size = (PIECE * tokens).max(1);
    let mut y_of = y_strips.chunks_mut(size);
    let mut norm_of = norm_strips.chunks_mut(size);
    let items: Vec<_> = state
        .chunks_mut(PIECE * n.max(1))
        .enumerate()
        .map(|(i, state)| (i, state, y_of.next(), norm_of.next()))
        .collect();
    par::for_each(items.into_iter(), work, |(i, state, y, norm)| {
        dispatch(Scan { scan, first: i * PIECE, state, y, norm });
    });
    for (out, strips) in [(y, y_strips), (state_norm, norm_strips)] {
        let Some(out) = out else { continue };
        let work = out.len();
        par::for_each_chunk(out, COPIED * channels, work, |first, rows| {
            for (i, strip) in strips.chunks(size).enumerate() {
                let width = strip.len() / tokens;
                let parts = strip.chunks_exact(width).skip(first * COPIED);
                for (row, part) in rows.chunks_exact_mut(channels).zip(parts) {
                    row[i * PIECE..][..width].copy_from_slice(part);
                }
            }
        });
    }
}

struct Scan<'a> {
    scan: &'a SelectiveScan<'a>,
    /// First channel of the piece.
    first: usize,
    /// [channels of the piece, N]
    state: &'a mut [f32],
    /// [T, channels of the piece]
    y: Option<&'a mut [f32]>,
    norm: Option<&'a mut [f32]>,
}

impl Kernel for Scan<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Scan { scan, first, state, mut y, mut norm } = self;
        let (channels, n) = (scan.channels(), scan.state_dim());
        let width = state.len() / n;
        let a = &scan.a[first * n..][..width * n];
        for t in 0..scan.x.len() / channels {
            let (b, c) = (&scan.b[t * n..][..n], &scan.c[t * n..][..n]);
            let delta = &scan.delta[t * channels + first..][..width];
            let x = &scan.x[t * channels + first..][..width];
            for (i, (h, a)) in state.chunks_exact_mut(n).zip(a.chunks_exact(n)).enumerate() {
                let (step, write) = (s.splat(delta[i] * LOG2_E), s.splat(delta[i] * x[i]));
                let (mut sum, mut square) = (s.splat(0.0), s.splat(0.0));
                let mut k = 0;
                while k + LANES <= n {
                    let decay = exp2(s, s.mul(step, s.load(&a[k..])));
                    let next = s.fma(decay, s.load(&h[k..]), s.mul(write, s.load(&b[k..])));
                    s.store(next, &mut h[k..]);
                    sum = s.fma(s.load(&c[k..]), next, sum);
                    square = s.fma(next, next, square);
                    k += LANES;
                }
                if k < n {
                    let decay = exp2(s, s.mul(step, s.load_some(&a[k..])));
                    let next = s.fma(decay, s.load_some(&h[k..]), s.mul(write, s.load_some(&b[k..])));
                    s.store_some(next, &mut h[k..]);
                    sum = s.fma(s.load_some(&c[k..]), next, sum);
                    square = s.fma(next, next, square);
                }
                if let Some(y) = &mut y {
                    y[t * width + i] = s.sum(sum) + scan.d[first + i] * x[i];
                }
                if let Some(norm) = &mut norm {
                    norm[t * width + i] = s.sum(square).sqrt();
                }
            }
        }
    }
}
