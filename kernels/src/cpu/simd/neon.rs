//! NEON: eight lanes as two vectors of four. The 32 registers are sixteen such pairs, as many as AVX2 has, so the same tiles fit.

use std::arch::aarch64::*;

use super::{Kernel, Simd, bf16, f16};

const LANES: usize = 8;

/// Proof of NEON: made by [`Neon::detect`] alone.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    #[inline(always)]
    pub(super) fn detect() -> Option<Neon> {
        // Part of every aarch64 that has std: the answer is a constant.
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

#[inline]
pub(super) fn run<K: Kernel>(set: Neon, kernel: K) -> K::Output {
    #[target_feature(enable = "neon")]
    fn enabled<K: Kernel>(set: Neon, kernel: K) -> K::Output {
        kernel.run(set)
    }
    // SAFETY: `set` exists, so the machine has the feature.
    unsafe { enabled(set, kernel) }
}

// SAFETY of every block without memory access below: `self` exists, so the machine has the instruction.
impl Simd for Neon {
    const LANES: usize = LANES;
    type V = [float32x4_t; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    fn splat_f16(self, x: f16) -> Self::V {
        // SAFETY: see above.
        unsafe { [vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x.to_bits()))); 2] }
    }
    #[inline(always)]
    fn load(self, xs: &[f32]) -> Self::V {
        let xs = &xs[..LANES];
        // SAFETY: eight f32 are readable at `xs`.
        unsafe { [vld1q_f32(xs.as_ptr()), vld1q_f32(xs.as_ptr().add(4))] }
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16]) -> Self::V {
        let xs = &xs[..LANES];
        // SAFETY: eight u16 are readable at `xs`: bf16 is transparent over u16, the upper half of an f32.
        unsafe {
            let halves = vld1q_u16(xs.as_ptr().cast());
            let (low, high) = (vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves));
            [vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)]
        }
    }
    #[inline(always)]
    fn load_f16(self, xs: &[f16]) -> Self::V {
        let xs = &xs[..LANES];
        // SAFETY: eight u16 are readable at `xs`: f16 is transparent over u16. Widening is part of NEON; only arithmetic in f16 is not.
        unsafe {
            let halves = vreinterpretq_f16_u16(vld1q_u16(xs.as_ptr().cast()));
            [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
        }
    }
    #[inline(always)]
    fn load_i8(self, xs: &[i8]) -> Self::V {
        let xs = &xs[..LANES];
        // SAFETY: eight bytes are readable at `xs`.
        unsafe {
            let wide = vmovl_s8(vld1_s8(xs.as_ptr()));
            [vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))]
        }
    }
    #[inline(always)]
    fn store(self, v: Self::V, xs: &mut [f32]) {
        let xs = &mut xs[..LANES];
        // SAFETY: eight f32 are writable at `xs`.
        unsafe {
            vst1q_f32(xs.as_mut_ptr(), v[0]);
            vst1q_f32(xs.as_mut_ptr().add(4), v[1]);
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    // The machine's own maximum and minimum are NaN where either is, so the lanes are chosen by comparing.
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vbslq_f32(vcgtq_f32(a[0], b[0]), a[0], b[0]), vbslq_f32(vcgtq_f32(a[1], b[1]), a[1], b[1])] }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vbslq_f32(vcltq_f32(a[0], b[0]), a[0], b[0]), vbslq_f32(vcltq_f32(a[1], b[1]), a[1], b[1])] }
    }
    #[inline(always)]
    fn any_greater(self, a: Self::V, b: Self::V) -> bool {
        // SAFETY: see above.
        unsafe { vmaxvq_u32(vorrq_u32(vcgtq_f32(a[0], b[0]), vcgtq_f32(a[1], b[1]))) != 0 }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vsqrtq_f32(a[0]), vsqrtq_f32(a[1])] }
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [vrndnq_f32(a[0]), vrndnq_f32(a[1])] }
    }
    #[inline(always)]
    fn exp2_whole(self, n: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let bias = vdupq_n_s32(127);
            let (low, high) = (vaddq_s32(vcvtq_s32_f32(n[0]), bias), vaddq_s32(vcvtq_s32_f32(n[1]), bias));
            [vreinterpretq_f32_s32(vshlq_n_s32::<23>(low)), vreinterpretq_f32_s32(vshlq_n_s32::<23>(high))]
        }
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = vaddq_f32(v[0], v[1]);
            vpadds_f32(vget_low_f32(vpaddq_f32(four, four)))
        }
    }
    #[inline(always)]
    fn sums(self, vs: [Self::V; 8]) -> [f32; 8] {
        let mut sums = [0.0; LANES];
        // SAFETY: see above. Lanes are added in pairs and pairs of pairs, as in `sum`.
        let total = unsafe {
            let mut fours = [vdupq_n_f32(0.0); 8];
            for (four, v) in fours.iter_mut().zip(vs) {
                *four = vaddq_f32(v[0], v[1]);
            }
            let [a, b, c, d, e, f, g, h] = fours;
            [vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)), vpaddq_f32(vpaddq_f32(e, f), vpaddq_f32(g, h))]
        };
        self.store(total, &mut sums);
        sums
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        let mut rows = [self.splat(0.0); LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = self.load(&from[i * from_stride..]);
        }
        let [a, b, c, d, e, f, g, h] = rows;
        for half in 0..2 {
            let top = transposed(self, [a[half], b[half], c[half], d[half]]);
            let low = transposed(self, [e[half], f[half], g[half], h[half]]);
            for i in 0..4 {
                self.store([top[i], low[i]], &mut to[(4 * half + i) * to_stride..]);
            }
        }
    }
}

/// The rows of a 4 × 4 square as its columns.
#[inline(always)]
fn transposed(_: Neon, rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let [a, b, c, d] = rows;
    // SAFETY: a `Neon` exists, so the machine has the instructions. Rows two apart, then the results: lanes 0 and 1, then 2 and 3.
    unsafe {
        let (ac, bd) = (vzip1q_f32(a, c), vzip1q_f32(b, d));
        let (next_ac, next_bd) = (vzip2q_f32(a, c), vzip2q_f32(b, d));
        [vzip1q_f32(ac, bd), vzip2q_f32(ac, bd), vzip1q_f32(next_ac, next_bd), vzip2q_f32(next_ac, next_bd)]
    }
}
