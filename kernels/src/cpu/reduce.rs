//! CPU twin of [`crate::reduce`].

use crate::cpu::simd::{Kernel, Simd, dispatch};

struct SumOfSquares<'a>(&'a [f32]);

impl Kernel for SumOfSquares<'_> {
    type Output = f64;
    /// Plain Rust in f64, which the lanes do not offer; the compiler makes vectors of it for the set that is enabled.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        // Eight sums side by side: one alone would wait four cycles for every element.
        let mut sums = [0.0f64; 8];
        let (blocks, rest) = self.0.as_chunks::<8>();
        for block in blocks {
            for (sum, &x) in sums.iter_mut().zip(block) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}

pub(crate) fn l2_norm(xs: &[f32]) -> f32 {
    dispatch(SumOfSquares(xs)).sqrt() as f32
}
