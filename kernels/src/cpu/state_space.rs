//! CPU twin of [`crate::state_space`]: a channel goes through all tokens while its N numbers lie in L1.

use crate::{
    StateSpace,
    cpu::{
        simd::{Kernel, Simd, dispatch},
        vector::dot,
    },
    par,
};

pub(crate) fn run(op: &StateSpace, u: &[f32], state: &mut [f32], y: Option<&mut [f32]>) {
    let (channels, rows) = (op.channels, u.len() / op.channels);
    if rows == 0 {
        return;
    }
    let width = state.len() / channels;
    // A channel after the other, for those who write side by side.
    let mut reads = vec![0.0; if y.is_some() { u.len() } else { channels }];
    let (length, work) = (reads.len() / channels, 4 * rows * state.len());
    let parts = state.chunks_exact_mut(width).zip(reads.chunks_exact_mut(length)).enumerate();
    par::for_each(parts, work, |(channel, (state, reads))| {
        let reads = (length == rows && y.is_some()).then_some(reads);
        dispatch(Channel { op, u, channel, state, reads });
    });
    if let Some(y) = y {
        for (channel, reads) in reads.chunks_exact(rows).enumerate() {
            y[channel..].iter_mut().step_by(channels).zip(reads).for_each(|(y, read)| *y = *read);
        }
    }
}

struct Channel<'a> {
    op: &'a StateSpace<'a>,
    /// [T, C]
    u: &'a [f32],
    channel: usize,
    /// [N]
    state: &'a mut [f32],
    /// [T]
    reads: Option<&'a mut [f32]>,
}

impl Kernel for Channel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Channel { op, u, channel, state, mut reads } = self;
        let width = state.len();
        let at = channel * width..(channel + 1) * width;
        let (decay, input) = (&op.decay[at.clone()], &op.input[at.clone()]);
        let correction = (!op.look.is_empty()).then(|| (&op.look[at.clone()], &op.take[at.clone()]));
        let (turn, sway) = decay.split_at(width / 2);
        let (input_re, input_im) = input.split_at(width / 2);
        for (t, u) in u[channel..].iter().step_by(op.channels).enumerate() {
            let found = match correction {
                Some((look, _)) => dot(s, look, state),
                None => 0.0,
            };
            let (u_all, found) = (s.splat(*u), s.splat(-found));
            let (re, im) = state.split_at_mut(width / 2);
            for n in (0..width / 2).step_by(S::LANES) {
                let n = n..(n + S::LANES).min(width / 2);
                let (a, b) = (s.load_some(&turn[n.clone()]), s.load_some(&sway[n.clone()]));
                let (x, z) = (s.load_some(&re[n.clone()]), s.load_some(&im[n.clone()]));
                let mut next = s.fma(a, x, s.mul(u_all, s.load_some(&input_re[n.clone()])));
                next = s.fma(s.sub(s.splat(0.0), b), z, next);
                let mut side = s.fma(a, z, s.mul(u_all, s.load_some(&input_im[n.clone()])));
                side = s.fma(b, x, side);
                if let Some((_, take)) = correction {
                    let (take_re, take_im) = take.split_at(width / 2);
                    next = s.fma(found, s.load_some(&take_re[n.clone()]), next);
                    side = s.fma(found, s.load_some(&take_im[n.clone()]), side);
                }
                s.store_some(next, &mut re[n.clone()]);
                s.store_some(side, &mut im[n]);
            }
            if let Some(reads) = &mut reads {
                reads[t] = dot(s, &op.output[at.clone()], state) + op.skip[channel] * u;
            }
        }
    }
}
