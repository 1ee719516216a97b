//! AVX-512: twice the lanes of AVX2.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::{Kernel, Simd, bf16, f16};

/// Proof of AVX-512F and VL, and of AVX2, FMA and F16C: made by [`Avx512::detect`] alone.
#[derive(Clone, Copy)]
pub(super) struct Avx512(Avx2);

impl Avx512 {
    #[inline(always)]
    pub(super) fn detect() -> Option<Avx512> {
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
        Avx2::detect().filter(|_| has).map(Avx512)
    }
}

#[inline]
pub(super) fn run<K: Kernel>(set: Avx512, kernel: K) -> K::Output {
    // Without VL the compiler keeps what is summed over its lanes at the end in the lower half of the registers.
    #[target_feature(enable = "avx512f,avx512vl,avx2,fma,f16c")]
    fn enabled<K: Kernel>(set: Avx512, kernel: K) -> K::Output {
        kernel.run(set)
    }
    // SAFETY: `set` exists, so the machine has the features.
    unsafe { enabled(set, kernel) }
}

// SAFETY of every block without memory access below: `self` exists, so the machine has the instruction.
impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;
    const SCALES: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn splat_f16(self, x: f16) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(x.to_bits() as i16)) }
    }
    #[inline(always)]
    fn load(self, xs: &[f32]) -> __m512 {
        let xs = &xs[..Self::LANES];
        // SAFETY: sixteen f32 are readable at `xs`; the load needs no alignment.
        unsafe { _mm512_loadu_ps(xs.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16]) -> __m512 {
        let xs = &xs[..Self::LANES];
        // SAFETY: 32 bytes are readable at `xs`, unaligned; bf16 is transparent over u16, the upper half of an f32.
        unsafe {
            let halves = _mm256_loadu_si256(xs.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    fn load_f16(self, xs: &[f16]) -> __m512 {
        let xs = &xs[..Self::LANES];
        // SAFETY: 32 bytes are readable at `xs`, unaligned; f16 is transparent over u16.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(xs.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_i8(self, xs: &[i8]) -> __m512 {
        let xs = &xs[..Self::LANES];
        // SAFETY: sixteen bytes are readable at `xs`, unaligned.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(xs.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store(self, v: __m512, xs: &mut [f32]) {
        let xs = &mut xs[..Self::LANES];
        // SAFETY: sixteen f32 are writable at `xs`; the store needs no alignment.
        unsafe { _mm512_storeu_ps(xs.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        let mut a = [self.splat(0.0); 16];
        for i in 0..16 {
            a[i] = self.load(&from[i * from_stride..]);
        }
        let mut b = [self.splat(0.0); 16];
        // SAFETY: see above.
        unsafe {
            // Within each quarter of a vector: squares of four rows.
            for i in (0..16).step_by(4) {
                let (low, high) = (_mm512_unpacklo_ps(a[i], a[i + 1]), _mm512_unpackhi_ps(a[i], a[i + 1]));
                let (next_low, next_high) =
                    (_mm512_unpacklo_ps(a[i + 2], a[i + 3]), _mm512_unpackhi_ps(a[i + 2], a[i + 3]));
                let (l, nl) = (_mm512_castps_pd(low), _mm512_castps_pd(next_low));
                let (h, nh) = (_mm512_castps_pd(high), _mm512_castps_pd(next_high));
                b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(l, nl));
                b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(l, nl));
                b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(h, nh));
                b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(h, nh));
            }
            // Then the quarters: column 4q + j is quarter q of row j of each square.
            for j in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(b[j], b[j + 4]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(b[j], b[j + 4]);
                let next_even = _mm512_shuffle_f32x4::<0x88>(b[j + 8], b[j + 12]);
                let next_odd = _mm512_shuffle_f32x4::<0xdd>(b[j + 8], b[j + 12]);
                a[j] = _mm512_shuffle_f32x4::<0x88>(even, next_even);
                a[j + 4] = _mm512_shuffle_f32x4::<0x88>(odd, next_odd);
                a[j + 8] = _mm512_shuffle_f32x4::<0xdd>(even, next_even);
                a[j + 12] = _mm512_shuffle_f32x4::<0xdd>(odd, next_odd);
            }
        }
        for i in 0..16 {
            self.store(a[i], &mut to[i * to_stride..]);
        }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn any_greater(self, a: __m512, b: __m512) -> bool {
        // SAFETY: see above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0 }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: see above. No digits after the point are kept.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn exp2_whole(self, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }
    #[inline(always)]
    fn scale_exp2(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    fn sums(self, vs: [__m512; 8]) -> [f32; 8] {
        let mut halves = [self.0.splat(0.0); 8];
        for (half, v) in halves.iter_mut().zip(vs) {
            // SAFETY: see above.
            let (low, high) =
                unsafe { (_mm512_castps512_ps256(v), _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0xee>(v, v))) };
            *half = self.0.add(low, high);
        }
        self.0.sums(halves)
    }
    #[inline(always)]
    fn load_some(self, xs: &[f32]) -> __m512 {
        if xs.len() >= Self::LANES {
            return self.load(xs);
        }
        // SAFETY: what the mask names is readable at `xs`; the rest is not touched.
        unsafe { _mm512_maskz_loadu_ps((1 << xs.len()) - 1, xs.as_ptr()) }
    }
    #[inline(always)]
    fn store_some(self, v: __m512, xs: &mut [f32]) {
        if xs.len() >= Self::LANES {
            return self.store(v, xs);
        }
        // SAFETY: what the mask names is writable at `xs`; the rest is not touched.
        unsafe { _mm512_mask_storeu_ps(xs.as_mut_ptr(), (1 << xs.len()) - 1, v) }
    }
}
