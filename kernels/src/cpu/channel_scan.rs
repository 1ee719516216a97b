//! CPU twin of [`crate::channel_scan`].

use crate::{
    ChannelScan,
    cpu::{
        simd::{Kernel, Simd, dispatch},
        vector::exp,
    },
};

pub(crate) fn run(scan: &ChannelScan, state: &mut [f32], y: Option<&mut [f32]>) {
    dispatch(Scan { scan, state, y });
}

struct Scan<'a> {
    scan: &'a ChannelScan<'a>,
    /// [C]
    state: &'a mut [f32],
    /// [T, C]
    y: Option<&'a mut [f32]>,
}

impl Kernel for Scan<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Scan { scan, state, mut y } = self;
        let channels = scan.channels;
        for start in (0..scan.x.len()).step_by(channels) {
            for (i, h) in state.chunks_mut(S::LANES).enumerate() {
                let at = start + i * S::LANES..start + i * S::LANES + h.len();
                let (before, x) = (s.load_some(h), s.load_some(&scan.x[at.clone()]));
                let decay = exp(s, s.load_some(&scan.log_decay[at.clone()]));
                let next = s.fma(decay, before, s.mul(s.load_some(&scan.input[at.clone()]), x));
                s.store_some(next, h);
                let Some(y) = &mut y else { continue };
                let read = match scan.bonus {
                    None => next,
                    Some(bonus) => s.fma(s.load_some(&bonus[at.clone()]), s.sub(x, before), before),
                };
                s.store_some(read, &mut y[at]);
            }
        }
    }
}
