//! CPU twin of [`crate::selective_scan`].

use std::{f32::consts::LOG2_E, ops::Range};

use crate::{
    Room, SelectiveScan,
    cpu::{
        activation::{Map, Silu},
        product::{View, transpose},
        simd::{Kernel, Simd, UNIT, dispatch},
        vector::exp2,
    },
    par::{self, Columns},
};

/// Channels of a piece of work: states of a piece stay in L1.
const PIECE: usize = 64;

/// Fewer tokens than this read states and A from memory more than they compute.
const FEW: usize = 4;

/// A unit of a state in multiply-adds: an exponential, above all.
const STEP: usize = 64;

/// What is made besides the state.
#[derive(Default)]
pub(crate) struct Wanted<'a> {
    /// [T, E]
    pub(crate) y: Option<&'a mut [f32]>,
    /// [T, E]
    pub(crate) state_norm: Option<&'a mut [f32]>,
    /// [T, E]: its SiLU multiplies y.
    pub(crate) gate: Option<&'a [f32]>,
}

pub(crate) fn forward(scan: &SelectiveScan, state: &mut [f32], Wanted { y, state_norm, gate }: Wanted) {
    let (channels, tokens) = (scan.channels(), scan.x.len() / scan.channels());
    let n = scan.state_dim();
    let work = tokens * channels * n.div_ceil(UNIT) * STEP;
    // What is read for one token is read once: long streams of memory, not pages here and there.
    let pieces = if tokens < FEW { channels.div_ceil(PIECE).div_ceil(par::threads()) } else { 1 };
    let own = pieces * PIECE;
    let [mut y_of, mut norm_of] =
        [y, state_norm].map(|out| out.map(|out| par::columns(out, channels, own).into_iter()));
    let items: Vec<_> = state
        .chunks_mut((own * n).max(1))
        .enumerate()
        .map(|(i, state)| {
            let [y, norm] = [&mut y_of, &mut norm_of].map(|of| of.as_mut().and_then(Iterator::next));
            Scan { scan, first: i * own, state, y, norm, gate }
        })
        .collect();
    par::for_each(items.into_iter(), work, dispatch);
}

/// Some pieces, one after the other.
struct Scan<'a> {
    scan: &'a SelectiveScan<'a>,
    /// Their first channel.
    first: usize,
    /// [channels, N]
    state: &'a mut [f32],
    /// [T, channels]
    y: Option<Columns<'a>>,
    norm: Option<Columns<'a>>,
    /// [T, all channels]
    gate: Option<&'a [f32]>,
}

impl Kernel for Scan<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Vectors of channels, so that nothing is summed over lanes: A and the states are turned before the first token, the states back
        // after the last.
        let Scan { scan, first, state, mut y, mut norm, gate } = self;
        let n = scan.state_dim();
        for (i, state) in state.chunks_mut(PIECE * n).enumerate() {
            let (at, width) = (first + i * PIECE, state.len() / n);
            // [N, channels]
            let row = width.next_multiple_of(S::LANES);
            for ahead in (size_of_val(state)..2 * size_of_val(state)).step_by(64) {
                // The next piece comes from memory meanwhile.
                s.prefetch(state, ahead);
                s.prefetch(&scan.a[at * n..], ahead);
            }
            // What lies beyond the last channel is computed with them.
            let (mut a, mut h) = (Room::zeros(n * row), Room::zeros(n * row));
            transpose(s, View { data: &scan.a[at * n..], stride: n }, (width, n), &mut a, row);
            transpose(s, View { data: state, stride: n }, (width, n), &mut h, row);
            let piece = Piece { channels: at..at + width, of_columns: i * PIECE, a: &a, h: &mut h, row, gate };
            match &mut norm {
                Some(norm) => walk::<S, true>(s, scan, piece, y.as_mut(), Some(norm)),
                None => walk::<S, false>(s, scan, piece, y.as_mut(), None),
            }
            transpose(s, View { data: &h, stride: row }, (n, width), state, n);
        }
    }
}

struct Piece<'a> {
    channels: Range<usize>,
    /// Where they are among the columns of y.
    of_columns: usize,
    /// [N, `row`]
    a: &'a [f32],
    h: &'a mut [f32],
    row: usize,
    /// [T, all channels]
    gate: Option<&'a [f32]>,
}

/// All tokens of a piece; `NORM`: whose states' norms are wanted, too.
#[inline(always)]
fn walk<S: Simd, const NORM: bool>(
    s: S,
    scan: &SelectiveScan,
    Piece { channels, of_columns, a, h, row, gate }: Piece,
    mut y: Option<&mut Columns>,
    mut norm: Option<&mut Columns>,
) {
    let (stride, n, width) = (scan.channels(), scan.state_dim(), channels.len());
    let d = &scan.d[channels.clone()];
    for t in 0..scan.x.len() / stride {
        let (b, c) = (&scan.b[t * n..][..n], &scan.c[t * n..][..n]);
        let (delta, x) = (&scan.delta[t * stride..][channels.clone()], &scan.x[t * stride..][channels.clone()]);
        for i in (0..width).step_by(S::LANES) {
            let own = i..width.min(i + S::LANES);
            let (delta, x) = (s.load_some(&delta[own.clone()]), s.load_some(&x[own.clone()]));
            let (step, write) = (s.mul(delta, s.splat(LOG2_E)), s.mul(delta, x));
            let (mut sum, mut square) = (s.mul(x, s.load_some(&d[own.clone()])), s.splat(0.0));
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
            if let Some(gate) = gate {
                let gate = s.load_some(&gate[t * stride..][channels.clone()][own.clone()]);
                sum = s.mul(Silu::map(s, gate), sum);
            }
            let own = of_columns + own.start..of_columns + own.end;
            if let Some(y) = &mut y {
                s.store_some(sum, &mut y.row(t)[own.clone()]);
            }
            if let Some(norm) = &mut norm {
                s.store_some(s.sqrt(square), &mut norm.row(t)[own]);
            }
        }
    }
}
