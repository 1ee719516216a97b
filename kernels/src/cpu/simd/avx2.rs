//! AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::{Kernel, Simd, bf16, f16};

pub(super) const LANES: usize = 8;

/// Proof of AVX2, FMA and F16C: made by [`Avx2::detect`] alone.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    #[inline(always)]
    pub(super) fn detect() -> Option<Avx2> {
        // std keeps the answer in an atomic: this is one load and a test.
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }
}

#[inline]
pub(super) fn run<K: Kernel>(set: Avx2, kernel: K) -> K::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn enabled<K: Kernel>(set: Avx2, kernel: K) -> K::Output {
        kernel.run(set)
    }
    // SAFETY: `set` exists, so the machine has the three features.
    unsafe { enabled(set, kernel) }
}

// SAFETY of every block without memory access below: `self` exists, so the machine has the instruction.
impl Simd for Avx2 {
    const LANES: usize = LANES;
    type V = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, xs: &[f32]) -> __m256 {
        let xs = &xs[..LANES];
        // SAFETY: eight f32 are readable at `xs`; the load needs no alignment.
        unsafe { _mm256_loadu_ps(xs.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16]) -> __m256 {
        let xs = &xs[..LANES];
        // SAFETY: sixteen bytes are readable at `xs`, unaligned; bf16 is transparent over u16, the upper half of an f32.
        unsafe {
            let halves = _mm_loadu_si128(xs.as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    fn load_f16(self, xs: &[f16]) -> __m256 {
        let xs = &xs[..LANES];
        // SAFETY: sixteen bytes are readable at `xs`, unaligned; f16 is transparent over u16.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(xs.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_i8(self, xs: &[i8]) -> __m256 {
        let xs = &xs[..LANES];
        // SAFETY: eight bytes are readable at `xs`, unaligned.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(xs.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn splat_f16(self, x: f16) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(x.to_bits() as i16)) }
    }
    #[inline(always)]
    fn store(self, v: __m256, xs: &mut [f32]) {
        let xs = &mut xs[..LANES];
        // SAFETY: eight f32 are writable at `xs`; the store needs no alignment.
        unsafe { _mm256_storeu_ps(xs.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn any_greater(self, a: __m256, b: __m256) -> bool {
        // SAFETY: see above.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) != 0 }
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn exp2_whole(self, n: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn sums(self, vs: [__m256; 8]) -> [f32; 8] {
        let [a, b, c, d, e, f, g, h] = transposed(self, vs);
        let total = self.add(self.add(self.add(a, e), self.add(c, g)), self.add(self.add(b, f), self.add(d, h)));
        let mut sums = [0.0; 8];
        self.store(total, &mut sums);
        sums
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        let mut rows = [self.splat(0.0); LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = self.load(&from[i * from_stride..]);
        }
        for (i, column) in transposed(self, rows).into_iter().enumerate() {
            self.store(column, &mut to[i * to_stride..]);
        }
    }
}

/// The rows of an 8 × 8 square as its columns.
#[inline(always)]
pub(super) fn transposed(_: Avx2, rows: [__m256; LANES]) -> [__m256; LANES] {
    let [a, b, c, d, e, f, g, h] = rows;
    // SAFETY: an `Avx2` exists, so the machine has the instructions. Pairs of rows, then pairs of pairs, within the halves of the vectors; then the halves change places.
    unsafe {
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (ef, gh) = (_mm256_unpacklo_ps(e, f), _mm256_unpacklo_ps(g, h));
        let (top0, top1) = (_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
        let (low0, low1) = (_mm256_shuffle_ps::<0x44>(ef, gh), _mm256_shuffle_ps::<0xee>(ef, gh));
        let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        let (ef, gh) = (_mm256_unpackhi_ps(e, f), _mm256_unpackhi_ps(g, h));
        let (top2, top3) = (_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
        let (low2, low3) = (_mm256_shuffle_ps::<0x44>(ef, gh), _mm256_shuffle_ps::<0xee>(ef, gh));
        [
            _mm256_permute2f128_ps::<0x20>(top0, low0),
            _mm256_permute2f128_ps::<0x20>(top1, low1),
            _mm256_permute2f128_ps::<0x20>(top2, low2),
            _mm256_permute2f128_ps::<0x20>(top3, low3),
            _mm256_permute2f128_ps::<0x31>(top0, low0),
            _mm256_permute2f128_ps::<0x31>(top1, low1),
            _mm256_permute2f128_ps::<0x31>(top2, low2),
            _mm256_permute2f128_ps::<0x31>(top3, low3),
        ]
    }
}
