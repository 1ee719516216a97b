//! The vector pieces that the CPU twins share: sums, dot, axpy, exponential and what is made of it.

use crate::cpu::simd::Simd;

/// Σ a·b over slices of one length, four independent sums so that the multiply-adds overlap.
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let mut sums = [s.splat(0.0); 4];
    let (mut a4, mut b4) = (a.chunks_exact(4 * S::LANES), b.chunks_exact(4 * S::LANES));
    for (a, b) in (&mut a4).zip(&mut b4) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = s.fma(s.load(&a[i * S::LANES..]), s.load(&b[i * S::LANES..]), *sum);
        }
    }
    for (a, b) in a4.remainder().chunks(S::LANES).zip(b4.remainder().chunks(S::LANES)) {
        sums[0] = s.fma(s.load_some(a), s.load_some(b), sums[0]);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// Σ x, eight sums side by side.
#[inline(always)]
pub(crate) fn sum<S: Simd>(s: S, xs: &[f32]) -> f32 {
    s.sum(xs.chunks(S::LANES).fold(s.splat(0.0), |sum, x| s.add(sum, s.load_some(x))))
}

/// y += α·x.
#[inline(always)]
pub(crate) fn axpy<S: Simd>(s: S, alpha: f32, xs: &[f32], ys: &mut [f32]) {
    let alpha = s.splat(alpha);
    for (x, y) in xs.chunks(S::LANES).zip(ys.chunks_mut(S::LANES)) {
        s.store_some(s.fma(alpha, s.load_some(x), s.load_some(y)), y);
    }
}

/// eˣ to 2 ulp: x = n·ln 2 + r, |r| ≤ ln 2 / 2, a polynomial in r, times 2ⁿ. Results below the normal range underflow gradually, below
/// −104 to exactly 0, and results above the range become infinite. NaN stays NaN.
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
    s.scale_exp2(p, n)
}

/// 2ʸ for decays, to 2·10⁻⁷ of its value: y between −126, below which it stays what it is there (10⁻³⁸, when a state is forgotten), and
/// 127, above which it is at least what it is there. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, y: S::V) -> S::V {
    let y = s.max(s.splat(-126.0), y);
    if S::SCALES {
        let (p, n) = exp2_parts(s, y);
        s.scale_exp2(p, n)
    } else {
        let (p, n) = exp2_parts(s, s.min(s.splat(127.0), y));
        s.mul(p, s.exp2_whole(n))
    }
}

/// 2ʸ for y ≤ 0, to 2·10⁻⁷ of its value, and below the normal range gradually to exactly 0, at −∞ too. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2_to_zero<S: Simd>(s: S, y: S::V) -> S::V {
    let (p, n) = exp2_parts(s, s.max(s.splat(-160.0), y));
    s.scale_exp2(p, n)
}

/// 2ʸ = p·2ⁿ: y = n + f, n whole, |f| ≤ ½, and p a polynomial in f (Remez).
// One coefficient is close to ln 2 and is not meant to be it.
#[allow(clippy::approx_constant)]
#[inline(always)]
fn exp2_parts<S: Simd>(s: S, y: S::V) -> (S::V, S::V) {
    let n = s.round(y);
    let f = s.sub(y, n);
    let mut p = s.splat(1.326_472_7e-3);
    for c in [9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0] {
        p = s.fma(p, f, s.splat(c));
    }
    (p, n)
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

/// gelu(x) = x Φ(x) = max(x, 0) − |x| Q(|x|), Q = 1 − Φ the upper tail of the normal distribution: nothing cancels at
/// either end.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    // |x|, at most 15, where Q is 0 in f32; the order of the arguments keeps NaN.
    let a = s.min(s.splat(15.0), s.max(s.sub(zero, x), x));
    s.sub(s.max(zero, x), s.mul(a, normal_tail(s, a)))
}

/// Q(a) = ½ erfc(a / √2) = e^{−a²/2} f(u) / (a + 3), u = (a − 3) / (a + 3), for a in [0, 15]; f is a polynomial of
/// degree 8, right to 6·10⁻⁸ of its value (Remez).
#[inline(always)]
fn normal_tail<S: Simd>(s: S, a: S::V) -> S::V {
    let shift = s.splat(3.0);
    let reciprocal = s.div(s.splat(1.0), s.add(a, shift));
    let u = s.mul(s.sub(a, shift), reciprocal);
    let mut f = s.splat(-2.593_069e-4);
    for c in [
        -8.925_280_5e-4,
        1.073_236_4e-3,
        6.916_167e-3,
        -1.048_014_4e-2,
        -4.725_446e-2,
        2.300_194_4e-1,
        -5.093_325e-1,
        7.290_837e-1,
    ] {
        f = s.fma(f, u, s.splat(c));
    }
    // The rounding of a² would be an error of e^{a²/2}. With twelve bits h² is exact; the rest of a²/2 is at most 0.03.
    let h = s.mul(s.round(s.mul(a, s.splat(256.0))), s.splat(1.0 / 256.0));
    let rest = s.mul(s.mul(s.sub(a, h), s.add(a, h)), s.splat(-0.5));
    let mut correction = s.splat(1.0 / 6.0);
    for c in [0.5, 1.0, 1.0] {
        correction = s.fma(correction, rest, s.splat(c));
    }
    let bell = s.mul(exp(s, s.mul(s.mul(h, h), s.splat(-0.5))), correction);
    s.mul(bell, s.mul(f, reciprocal))
}

/// x σ(2 √(2/π) (x + 0.044715 x³)), which is ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))).
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let slope = s.fma(s.mul(x, x), s.splat(0.071_354_814), s.splat(1.595_769));
    s.mul(x, sigmoid(s, s.mul(x, slope)))
}
