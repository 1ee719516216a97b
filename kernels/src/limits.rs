//! What the machine can do at best, measured: what the speed of an op is compared with.

use std::time::{Duration, Instant};

use half::f16;

use crate::{
    cpu::simd::{Kernel, Simd, dispatch, lanes},
    par,
};

/// Larger than the caches of today's machines.
const MEMORY: usize = 256 << 20;

/// Bytes a second that all threads together read from memory.
pub fn read_bandwidth() -> f64 {
    let mut data = vec![1.0f32; MEMORY / size_of::<f32>()];
    let read = || par::for_each_chunk(&mut data, 1 << 18, usize::MAX, |_, piece| dispatch(Sum(piece)));
    MEMORY as f64 / least_time(read)
}

/// f32 multiply-adds a second of all threads together, with everything in registers.
pub fn multiply_adds() -> f64 {
    const REPEATS: usize = 1 << 20;
    let mut sums = vec![0.0f32; par::threads() * 8];
    let pieces = sums.len();
    let chains = || {
        par::for_each_chunk(&mut sums, 1, usize::MAX, |_, sum| sum[0] = dispatch(Chains(REPEATS)));
    };
    let seconds = least_time(chains);
    (pieces * REPEATS * CHAINS * lanes()) as f64 / seconds
}

fn least_time(mut call: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(500) {
        let now = Instant::now();
        call();
        best = best.min(now.elapsed().as_secs_f64());
    }
    best
}

/// Reads all, and writes the sum into the first element, so that it is needed.
struct Sum<'a>(&'a mut [f32]);

impl Kernel for Sum<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [s.splat(0.0); 8];
        for block in self.0.chunks_exact(8 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, s.load(&block[i * S::LANES..]));
            }
        }
        self.0[0] = s.sum(sums.into_iter().fold(s.splat(0.0), |total, sum| s.add(total, sum))).min(1.0);
    }
}

/// Independent chains of multiply-adds that hide their latency.
const CHAINS: usize = 12;

struct Chains(usize);

impl Kernel for Chains {
    type Output = f32;
    // `i` counts chains.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); CHAINS];
        let (factor, term) =
            (s.splat_f16(f16::from_f32(0.999)), s.splat_f16(f16::from_f32(std::hint::black_box(0.001))));
        for _ in 0..self.0 {
            for i in 0..CHAINS {
                sums[i] = s.fma(sums[i], factor, term);
            }
        }
        let mut total = s.splat(0.0);
        for i in 0..CHAINS {
            total = s.add(total, sums[i]);
        }
        s.sum(total)
    }
}
