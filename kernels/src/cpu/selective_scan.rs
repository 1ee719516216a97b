//! CPU twin of [`crate::selective_scan`].

use std::f32::consts::LOG2_E;

use crate::{
    Room, SelectiveScan,
    cpu::{
        product::{View, transpose},
        simd::{Kernel, Simd, UNIT, dispatch},
        vector::exp2,
    },
    par,
};

/// Channels of a piece of work: states of a piece stay in L1.
const PIECE: usize = 64;

/// Fewer tokens than this read states and A from memory more than they compute.
const FEW: usize = 4;

/// Tokens whose outputs are copied into place together.
const COPIED: usize = 16;

/// A unit of a state in multiply-adds: an exponential, above all.
const STEP: usize = 64;

pub(crate) fn forward(scan: &SelectiveScan, state: &mut [f32], y: Option<&mut [f32]>, state_norm: Option<&mut [f32]>) {
    let (channels, tokens) = (scan.channels(), scan.x.len() / scan.channels());
    let n = scan.state_dim();
    let work = tokens * channels * n.div_ceil(UNIT) * STEP;
    // Pieces own columns of y, which are no slices of it: each works on a strip [T, its channels], copied into place at the end.
    let strip = |wanted: bool| Room::new(if wanted { tokens * channels } else { 0 });
    let (mut y_strips, mut norm_strips) = (strip(y.is_some()), strip(state_norm.is_some()));
    let size = (PIECE * tokens).max(1);
    // What is read for one token is read once: long streams of memory, not pages here and there.
    let together = if tokens < FEW { channels.div_ceil(PIECE).div_ceil(par::threads()) } else { 1 };
    let mut y_of = y_strips.chunks_mut(size * together);
    let mut norm_of = norm_strips.chunks_mut(size * together);
    let items: Vec<_> = state
        .chunks_mut(PIECE * n.max(1) * together)
        .enumerate()
        .map(|(i, state)| (i, state, y_of.next(), norm_of.next()))
        .collect();
    par::for_each(items.into_iter(), work, |(i, state, y, norm)| {
        let (mut y_of, mut norm_of) = (y.map(|y| y.chunks_mut(size)), norm.map(|norm| norm.chunks_mut(size)));
        for (j, state) in state.chunks_mut(PIECE * n.max(1)).enumerate() {
            let [y, norm] = [&mut y_of, &mut norm_of].map(|of| of.as_mut().and_then(Iterator::next));
            dispatch(Scan { scan, first: (i * together + j) * PIECE, state, y, norm });
        }
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
        // Vectors of channels, so that nothing is summed over lanes: A and the states are turned before the first token, the states back
        // after the last.
        let Scan { scan, first, state, y, norm } = self;
        let n = scan.state_dim();
        let width = state.len() / n;
        // [N, channels]
        let row = width.next_multiple_of(S::LANES);
        for at in (0..size_of_val(state)).step_by(64) {
            // The next piece comes from memory meanwhile.
            s.prefetch(state, size_of_val(state) + at);
            s.prefetch(&scan.a[first * n..], size_of_val(state) + at);
        }
        // What lies beyond the last channel is computed with them.
        let (mut a, mut h) = (Room::zeros(n * row), Room::zeros(n * row));
        transpose(s, View { data: &scan.a[first * n..], stride: n }, (width, n), &mut a, row);
        transpose(s, View { data: state, stride: n }, (width, n), &mut h, row);
        let turned = Turned { a: &a, h: &mut h, row };
        match norm {
            Some(norm) => walk::<S, true>(s, scan, first, width, turned, y, norm),
            None => walk::<S, false>(s, scan, first, width, turned, y, &mut []),
        }
        transpose(s, View { data: &h, stride: row }, (n, width), state, n);
    }
}

/// A and states of a piece, [N, row].
struct Turned<'a> {
    a: &'a [f32],
    h: &'a mut [f32],
    row: usize,
}

/// All tokens of `width` channels from `first` on; `NORM`: whose states' norms are wanted, too.
#[inline(always)]
fn walk<S: Simd, const NORM: bool>(
    s: S,
    scan: &SelectiveScan,
    first: usize,
    width: usize,
    Turned { a, h, row }: Turned,
    mut y: Option<&mut [f32]>,
    norm: &mut [f32],
) {
    let (channels, n) = (scan.channels(), scan.state_dim());
    for t in 0..scan.x.len() / channels {
        let (b, c) = (&scan.b[t * n..][..n], &scan.c[t * n..][..n]);
        for i in (0..width).step_by(S::LANES) {
            let own = i..width.min(i + S::LANES);
            let of_piece = t * channels + first;
            let delta = s.load_some(&scan.delta[of_piece..][own.clone()]);
            let x = s.load_some(&scan.x[of_piece..][own.clone()]);
            let (step, write) = (s.mul(delta, s.splat(LOG2_E)), s.mul(delta, x));
            let (mut sum, mut square) = (s.mul(x, s.load_some(&scan.d[first..][own.clone()])), s.splat(0.0));
            let of_channels = a.chunks_exact(row).zip(h.chunks_exact_mut(row));
            for ((a, h), (b, c)) in of_channels.zip(b.iter().zip(c)) {
                let decay = exp2(s, s.mul(step, s.load(&a[i..])));
                let next = s.fma(decay, s.load(&h[i..]), s.mul(write, s.splat(*b)));
                s.store(next, &mut h[i..]);
                sum = s.fma(s.splat(*c), next, sum);
                if NORM {
                    square = s.fma(next, next, square);
                }
            }
            if let Some(y) = &mut y {
                s.store_some(sum, &mut y[t * width..][own.clone()]);
            }
            if NORM {
                s.store_some(s.sqrt(square), &mut norm[t * width..][own]);
            }
        }
    }
}
