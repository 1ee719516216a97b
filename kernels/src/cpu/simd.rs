//! Eight f32 lanes, with the instruction set chosen at run time.
//!
//! A CPU twin is a [`Kernel`]: a struct of its arguments whose `run` is written once over any [`Simd`]. [`dispatch`] picks the widest
//! set the machine has. Both sets keep eight lanes and the same order of sums; they differ only in that AVX2 fuses multiply and add.
//! Everything below `run` has to be `#[inline(always)]`, so that it is compiled inside the one function that enables AVX2. A closure that
//! computes vectors cannot be: it may become a function of its own, in which each instruction is a call. Write a function instead.

use half::{bf16, f16};

mod wide;

pub(crate) use wide::{Wide, WideKernel, dispatch_wide};

/// Lanes in a vector.
pub(crate) const LANES: usize = 8;

/// An eight-lane instruction set. Values of the type are proof that the machine has it.
pub(crate) trait Simd: Copy {
    /// Eight f32.
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    /// The first eight elements; panics when there are fewer.
    fn load(self, xs: &[f32]) -> Self::V;
    fn load_bf16(self, xs: &[bf16]) -> Self::V;
    fn load_f16(self, xs: &[f16]) -> Self::V;
    fn load_i8(self, xs: &[i8]) -> Self::V;
    fn splat_f16(self, x: f16) -> Self::V;
    /// The rows of an 8 × 8 square as its columns.
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES];
    /// Writes the first eight elements; panics when there are fewer.
    fn store(self, v: Self::V, xs: &mut [f32]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a·b + c.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Where either is NaN: `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Where either is NaN: `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Whether a lane of `a` is greater than that of `b`; NaN is not.
    fn any_greater(self, a: Self::V, b: Self::V) -> bool;
    /// The lanes.
    #[inline(always)]
    fn lanes(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        lanes
    }
    /// To the nearest whole number, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// 2ⁿ for whole numbers n in [−126, 127].
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// Sum of the lanes: ((0+4)+(2+6)) + ((1+5)+(3+7)).
    fn sum(self, v: Self::V) -> f32;

    /// Up to eight elements, the missing lanes 0.
    #[inline(always)]
    fn load_some(self, xs: &[f32]) -> Self::V {
        if xs.len() >= LANES {
            return self.load(xs);
        }
        let mut lanes = [0.0; LANES];
        lanes[..xs.len()].copy_from_slice(xs);
        self.load(&lanes)
    }

    /// Writes min(8, length) elements.
    #[inline(always)]
    fn store_some(self, v: Self::V, xs: &mut [f32]) {
        if xs.len() >= LANES {
            return self.store(v, xs);
        }
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        let n = xs.len();
        xs.copy_from_slice(&lanes[..n]);
    }
}

/// An operation with its arguments, to be run on the best instruction set.
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// What a test makes this thread use: as on a machine that has no more.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forced {
    Avx2,
    Portable,
}

#[cfg(test)]
thread_local! {
    pub(crate) static FORCED: std::cell::Cell<Option<Forced>> = const { std::cell::Cell::new(None) };
}

/// Runs `kernel` on AVX2 + FMA + F16C where the machine has them, else on plain Rust.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(test)]
    if FORCED.get() == Some(Forced::Portable) {
        return kernel.run(Portable);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(set) = avx2::Avx2::detect() {
        return avx2::run(set, kernel);
    }
    kernel.run(Portable)
}

/// Plain Rust: an array of eight, multiply and add rounded apart (a fused one in software would be far slower).
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Portable {
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
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES] {
        std::array::from_fn(|i| lanes(|j| rows[j][i]))
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
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Kernel, LANES, Simd, bf16, f16};

    /// Proof of AVX2, FMA and F16C: made by [`Avx2::detect`] alone.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        #[inline(always)]
        pub(crate) fn detect() -> Option<Avx2> {
            // std keeps the answer in an atomic: this is one load and a test.
            let has =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            has.then_some(Avx2(()))
        }
    }

    #[inline]
    pub(crate) fn run<K: Kernel>(set: Avx2, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enabled<K: Kernel>(set: Avx2, kernel: K) -> K::Output {
            kernel.run(set)
        }
        // SAFETY: `set` exists, so the machine has the three features.
        unsafe { enabled(set, kernel) }
    }

    // SAFETY of every block without memory access below: `self` exists, so the machine has the instruction.
    impl Simd for Avx2 {
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
        fn transpose(self, rows: [__m256; LANES]) -> [__m256; LANES] {
            let [a, b, c, d, e, f, g, h] = rows;
            // SAFETY: see above. Pairs of rows, then pairs of pairs, within the halves of the vectors; then the halves change places.
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
    }
}
