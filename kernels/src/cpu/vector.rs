//! The vector pieces that the CPU twins share: dot, axpy, exponential.

use crate::cpu::simd::{LANES, Simd};

/// Σ a·b over slices of one length, four independent sums so that the multiply-adds overlap.
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let mut sums = [s.splat(0.0); 4];
    let (mut a4, mut b4) = (a.chunks_exact(4 * LANES), b.chunks_exact(4 * LANES));
    for (a, b) in (&mut a4).zip(&mut b4) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = s.fma(s.load(&a[i * LANES..]), s.load(&b[i * LANES..]), *sum);
        }
    }
    for (a, b) in a4.remainder().chunks(LANES).zip(b4.remainder().chunks(LANES)) {
        sums[0] = s.fma(s.load_some(a), s.load_some(b), sums[0]);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// y += α·x.
#[inline(always)]
pub(crate) fn axpy<S: Simd>(s: S, alpha: f32, xs: &[f32], ys: &mut [f32]) {
    let alpha = s.splat(alpha);
    for (x, y) in xs.chunks(LANES).zip(ys.chunks_mut(LANES)) {
        s.store_some(s.fma(alpha, s.load_some(x), s.load_some(y)), y);
    }
}

/// eˣ to 2 ulp: x = n·ln 2 + r, |r| ≤ ln 2 / 2, a polynomial in r, then 2ⁿ in two factors, so that results below the normal range
/// underflow gradually, below −104 to exactly 0, and results above the range become infinite. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // NaN passes min and max, which return their second argument then.
    let x = s.max(s.splat(-110.0), s.min(s.splat(90.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with trailing zeros: n·LN2_HIGH is exact.
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, s.exp2_whole(half)), s.exp2_whole(s.sub(n, half)))
}

/// σ(x) = 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// ln(1 + eˣ) = max(x, 0) + ln(1 + u), u = e^{−|x|} ∈ (0, 1]; ln(1 + u) = 2 artanh(u / (2 + u)), whose argument is at most 1/3: eight
/// terms of the series leave 2·10⁻⁹.
#[inline(always)]
pub(crate) fn softplus<S: Simd>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    // The order of the arguments keeps NaN.
    let magnitude = s.max(s.sub(zero, x), x);
    let u = exp(s, s.sub(zero, magnitude));
    let q = s.div(u, s.add(s.splat(2.0), u));
    let z = s.mul(q, q);
    let mut p = s.splat(1.0 / 15.0);
    for c in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0] {
        p = s.fma(p, z, s.splat(c));
    }
    s.fma(s.add(q, q), p, s.max(zero, x))
}
