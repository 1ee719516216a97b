//! Vectors of f32, with the instruction set chosen at run time.
//!
//! A CPU twin is a [`Kernel`]: a struct of its arguments whose `run` is written once over any [`Simd`]. [`dispatch`] picks the widest
//! set the machine has: sixteen lanes with AVX-512, eight with AVX2, FMA and F16C, eight with NEON (always there on aarch64), else eight in
//! plain Rust. How sums are split over lanes differs between the sets, and plain Rust does not fuse multiply and add, so last bits differ
//! between them; on one machine they are always the same.
//! Everything below `run` has to be `#[inline(always)]`, so that it is compiled inside the one function that enables the set. A closure
//! that computes vectors cannot be: it may become a function of its own, in which each instruction is a call. Write a function instead.

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use portable::Portable;

/// Lanes in the widest vector.
pub(crate) const MOST_LANES: usize = 16;

/// Elements that count as one unit of work where ops say how much there is to share (see [`crate::par`]).
pub(crate) const UNIT: usize = 8;

/// An instruction set. Values of the type are proof that the machine has it.
pub(crate) trait Simd: Copy {
    /// Lanes in a vector: 8 or 16.
    const LANES: usize;
    /// `LANES` f32.
    type V: Copy;
    /// Whether [`Simd::scale_exp2`] is one instruction, for any whole n.
    const SCALES: bool = false;

    fn splat(self, x: f32) -> Self::V;
    fn splat_f16(self, x: f16) -> Self::V;
    /// The first `LANES` elements; panics when there are fewer.
    fn load(self, xs: &[f32]) -> Self::V;
    fn load_bf16(self, xs: &[bf16]) -> Self::V;
    fn load_f16(self, xs: &[f16]) -> Self::V;
    fn load_i8(self, xs: &[i8]) -> Self::V;
    /// Writes the first `LANES` elements; panics when there are fewer.
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
    fn sqrt(self, a: Self::V) -> Self::V;
    /// To the nearest whole number, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// 2ⁿ for whole numbers n in [−126, 127].
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// a·2ⁿ for whole numbers n in [−252, 254]: below the normal range it underflows gradually, above it becomes infinite.
    #[inline(always)]
    fn scale_exp2(self, a: Self::V, n: Self::V) -> Self::V {
        let half = self.round(self.mul(n, self.splat(0.5)));
        self.mul(self.mul(a, self.exp2_whole(half)), self.exp2_whole(self.sub(n, half)))
    }
    /// Sum of the lanes, in an order of its own.
    fn sum(self, v: Self::V) -> f32;
    /// The sum of the lanes of each.
    fn sums(self, vs: [Self::V; 8]) -> [f32; 8];
    /// Writes the rows of a square of `LANES` × `LANES` as columns; the rows of `from` and `to` stand their strides apart.
    fn transpose(self, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize);

    /// Up to `LANES` elements, the missing lanes 0.
    #[inline(always)]
    fn load_some(self, xs: &[f32]) -> Self::V {
        if xs.len() >= Self::LANES {
            return self.load(xs);
        }
        let mut lanes = [0.0; MOST_LANES];
        lanes[..xs.len()].copy_from_slice(xs);
        self.load(&lanes)
    }

    /// Writes min(`LANES`, length) elements.
    #[inline(always)]
    fn store_some(self, v: Self::V, xs: &mut [f32]) {
        if xs.len() >= Self::LANES {
            return self.store(v, xs);
        }
        let mut lanes = [0.0; MOST_LANES];
        self.store(v, &mut lanes);
        let n = xs.len();
        xs.copy_from_slice(&lanes[..n]);
    }

    /// Asks for the cache line `ahead` bytes after the first element, be it in `xs` or not.
    #[inline(always)]
    fn prefetch<T>(self, xs: &[T], ahead: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: every x86-64 has the instruction, and it never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(xs.as_ptr().cast::<i8>().wrapping_add(ahead)) }
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 has the instruction; it never faults, whatever the address, and changes nothing.
        unsafe {
            std::arch::asm!(
                "prfm pldl1keep, [{}]",
                in(reg) xs.as_ptr().addr().wrapping_add(ahead),
                options(nomem, nostack, preserves_flags)
            );
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = (xs, ahead);
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
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

#[cfg(test)]
impl Forced {
    /// The widest set, then what may be there in its place.
    pub(crate) const EACH: &[Option<Forced>] = &[
        None,
        #[cfg(target_arch = "x86_64")]
        Some(Forced::Avx2),
        Some(Forced::Portable),
    ];
}

#[cfg(test)]
thread_local! {
    pub(crate) static FORCED: std::cell::Cell<Option<Forced>> = const { std::cell::Cell::new(None) };
}

/// Runs `kernel` on the widest set that the machine has.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(test)]
    match FORCED.get() {
        Some(Forced::Portable) => return kernel.run(Portable),
        #[cfg(target_arch = "x86_64")]
        Some(Forced::Avx2) => {
            if let Some(set) = avx2::Avx2::detect() {
                return avx2::run(set, kernel);
            }
        }
        None => {}
    }
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(set) = avx512::Avx512::detect() {
            return avx512::run(set, kernel);
        }
        if let Some(set) = avx2::Avx2::detect() {
            return avx2::run(set, kernel);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(set) = neon::Neon::detect() {
        return neon::run(set, kernel);
    }
    kernel.run(Portable)
}

/// Lanes of the vectors that [`dispatch`] chooses.
#[inline]
pub(crate) fn lanes() -> usize {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> usize {
            S::LANES
        }
    }
    dispatch(Lanes)
}
