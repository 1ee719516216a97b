//! Vectors as wide as the machine has them, for the products that most of a model's time goes into: sixteen lanes with AVX-512, else the
//! eight of [`Simd`].
//!
//! A [`WideKernel`] is to [`Wide`] what a [`Kernel`](super::Kernel) is to [`Simd`], under the same rules. How sums are split over lanes
//! differs between the two widths, and so do their last bits; on one machine they are always the same.

use half::{bf16, f16};

use super::{LANES, Portable, Simd};

/// An instruction set; values of the type are proof that the machine has it.
pub(crate) trait Wide: Copy {
    const LANES: usize;
    /// `LANES` f32.
    type W: Copy;

    fn zero(self) -> Self::W;
    fn splat(self, x: f32) -> Self::W;
    fn splat_f16(self, x: f16) -> Self::W;
    /// The first `LANES` elements; panics when there are fewer.
    fn load(self, xs: &[f32]) -> Self::W;
    fn load_bf16(self, xs: &[bf16]) -> Self::W;
    fn load_f16(self, xs: &[f16]) -> Self::W;
    fn load_i8(self, xs: &[i8]) -> Self::W;
    /// Writes the first `LANES` elements; panics when there are fewer.
    fn store(self, v: Self::W, xs: &mut [f32]);
    fn add(self, a: Self::W, b: Self::W) -> Self::W;
    fn mul(self, a: Self::W, b: Self::W) -> Self::W;
    /// a·b + c.
    fn fma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    /// Sum of the lanes, in an order of its own.
    fn sum(self, v: Self::W) -> f32;
    /// Writes the rows of a square of `LANES` × `LANES` as columns; the rows of `from` and `to` stand their strides apart.
    fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize);
    /// Asks for the cache line `ahead` bytes after the first element, be it in `xs` or not.
    fn prefetch<T>(self, xs: &[T], ahead: usize);
}

impl<S: Simd> Wide for S {
    const LANES: usize = LANES;
    type W = S::V;

    #[inline(always)]
    fn zero(self) -> S::V {
        Simd::splat(self, 0.0)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> S::V {
        Simd::splat(self, x)
    }
    #[inline(always)]
    fn splat_f16(self, x: f16) -> S::V {
        Simd::splat_f16(self, x)
    }
    #[inline(always)]
    fn load(self, xs: &[f32]) -> S::V {
        Simd::load(self, xs)
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16]) -> S::V {
        Simd::load_bf16(self, xs)
    }
    #[inline(always)]
    fn load_f16(self, xs: &[f16]) -> S::V {
        Simd::load_f16(self, xs)
    }
    #[inline(always)]
    fn load_i8(self, xs: &[i8]) -> S::V {
        Simd::load_i8(self, xs)
    }
    #[inline(always)]
    fn store(self, v: S::V, xs: &mut [f32]) {
        Simd::store(self, v, xs);
    }
    #[inline(always)]
    fn add(self, a: S::V, b: S::V) -> S::V {
        Simd::add(self, a, b)
    }
    #[inline(always)]
    fn mul(self, a: S::V, b: S::V) -> S::V {
        Simd::mul(self, a, b)
    }
    #[inline(always)]
    fn fma(self, a: S::V, b: S::V, c: S::V) -> S::V {
        Simd::fma(self, a, b, c)
    }
    #[inline(always)]
    fn sum(self, v: S::V) -> f32 {
        Simd::sum(self, v)
    }
    #[inline(always)]
    fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        let mut rows = [Simd::splat(self, 0.0); LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = Simd::load(self, &from[i * from_stride..]);
        }
        for (i, column) in Simd::transpose(self, rows).into_iter().enumerate() {
            Simd::store(self, column, &mut to[i * to_stride..]);
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, xs: &[T], ahead: usize) {
        prefetch(xs, ahead);
    }
}

#[inline(always)]
fn prefetch<T>(xs: &[T], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction, and it never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(xs.as_ptr().cast::<i8>().wrapping_add(ahead)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (xs, ahead);
}

/// An operation with its arguments, to be run on the widest vectors.
pub(crate) trait WideKernel {
    type Output;
    /// Must be `#[inline(always)]`.
    fn run<S: Wide>(self, s: S) -> Self::Output;
}

/// Runs `kernel` on AVX-512 where the machine has it, else as [`dispatch`](super::dispatch) does.
#[inline]
pub(crate) fn dispatch_wide<K: WideKernel>(kernel: K) -> K::Output {
    #[cfg(test)]
    match super::FORCED.get() {
        Some(super::Forced::Portable) => return kernel.run(Portable),
        #[cfg(target_arch = "x86_64")]
        Some(super::Forced::Avx2) => {
            if let Some(set) = super::avx2::Avx2::detect() {
                return avx512::run_avx2(set, kernel);
            }
        }
        _ => {}
    }
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(set) = avx512::Avx512::detect() {
            return avx512::run(set, kernel);
        }
        if let Some(set) = super::avx2::Avx2::detect() {
            return avx512::run_avx2(set, kernel);
        }
    }
    kernel.run(Portable)
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::super::avx2::Avx2;
    use super::{Wide, WideKernel, bf16, f16};

    /// Proof of AVX-512F and VL, and of AVX2, FMA and F16C: made by [`Avx512::detect`] alone.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    impl Avx512 {
        #[inline(always)]
        pub(super) fn detect() -> Option<Avx512> {
            let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
            (has && Avx2::detect().is_some()).then_some(Avx512(()))
        }
    }

    #[inline]
    pub(super) fn run<K: WideKernel>(set: Avx512, kernel: K) -> K::Output {
        // Without VL the compiler keeps what is summed over its lanes at the end in the lower half of the registers.
        #[target_feature(enable = "avx512f,avx512vl,avx2,fma,f16c")]
        fn enabled<K: WideKernel>(set: Avx512, kernel: K) -> K::Output {
            kernel.run(set)
        }
        // SAFETY: `set` exists, so the machine has the features.
        unsafe { enabled(set, kernel) }
    }

    #[inline]
    pub(super) fn run_avx2<K: WideKernel>(set: Avx2, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enabled<K: WideKernel>(set: Avx2, kernel: K) -> K::Output {
            kernel.run(set)
        }
        // SAFETY: `set` exists, so the machine has the features.
        unsafe { enabled(set, kernel) }
    }

    // SAFETY of every block without memory access below: `self` exists, so the machine has the instruction.
    impl Wide for Avx512 {
        const LANES: usize = 16;
        type W = __m512;

        #[inline(always)]
        fn zero(self) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_setzero_ps() }
        }
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
            let mut a = [self.zero(); 16];
            for i in 0..16 {
                a[i] = self.load(&from[i * from_stride..]);
            }
            let mut b = [self.zero(); 16];
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
        fn prefetch<T>(self, xs: &[T], ahead: usize) {
            super::prefetch(xs, ahead);
        }
    }
}
