//! Plain Rust.

use super::{Simd, bf16, f16};

const LANES: usize = 8;

/// Plain Rust: an array of eight, multiply and add rounded apart (a fused one in software would be far slower).
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    const LANES: usize = LANES;
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, xs: &[f32]) -> Self::V {
        lanes(|i| xs[i])
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16]) -> Self::V {
        lanes(|i| xs[i].to_f32())
    }
    #[inline(always)]
    fn load_f16(self, xs: &[f16]) -> Self::V {
        lanes(|i| xs[i].to_f32())
    }
    #[inline(always)]
    fn load_i8(self, xs: &[i8]) -> Self::V {
        lanes(|i| f32::from(xs[i]))
    }
    #[inline(always)]
    fn splat_f16(self, x: f16) -> Self::V {
        [x.to_f32(); LANES]
    }
    #[inline(always)]
    fn store(self, v: Self::V, xs: &mut [f32]) {
        xs[..LANES].copy_from_slice(&v);
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn any_greater(self, a: Self::V, b: Self::V) -> bool {
        (0..LANES).fold(false, |any, i| any | (a[i] > b[i]))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        lanes(|i| a[i].sqrt())
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        lanes(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    fn exp2_whole(self, n: Self::V) -> Self::V {
        lanes(|i| f32::from_bits(((n[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    fn sums(self, vs: [Self::V; 8]) -> [f32; 8] {
        vs.map(|v| self.sum(v))
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        for i in 0..LANES {
            for j in 0..LANES {
                to[j * to_stride + i] = from[i * from_stride + j];
            }
        }
    }
}
