//! Reductions of a slice to what a screen shows.

use crate::cpu;

/// ‖x‖₂; neither 1e30 nor 1e-30 spoils it.
pub fn l2_norm(xs: &[f32]) -> f32 {
    match xs {
        [x] => x.abs(),
        xs => cpu::reduce::l2_norm(xs),
    }
}

/// max |x|, NaN ignored; 0 for nothing.
pub fn abs_max(xs: &[f32]) -> f32 {
    xs.iter().fold(0.0, |max, x| x.abs().max(max))
}

/// The mean, summed in f64; NaN for nothing.
pub fn mean(xs: &[f32]) -> f32 {
    (xs.iter().map(|&x| f64::from(x)).sum::<f64>() / xs.len() as f64) as f32
}

/// Least and largest, NaN ignored; none where nothing is left.
pub fn min_max(xs: &[f32]) -> Option<(f32, f32)> {
    let (min, max) = cpu::reduce::extremes(xs);
    (min <= max).then_some((min, max))
}

/// Index of the largest (the first of equals), NaN ignored; none where nothing is left.
pub fn argmax(xs: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, x) in xs.iter().enumerate() {
        if !x.is_nan() && best.is_none_or(|b| *x > xs[b]) {
            best = Some(i);
        }
    }
    best
}

/// The k largest with their indices, largest first, equals by index; NaN ignored.
pub fn top_k(xs: &[f32], k: usize) -> Vec<(u32, f32)> {
    if k <= SHORT_LIST { cpu::reduce::short_list(xs, k) } else { long_list(known(xs).collect(), k) }
}

/// Up to so many a sorted list with insertion beats a selection over all.
pub(crate) const SHORT_LIST: usize = 64;

/// What is not NaN, with its index; −0 and 0 are equals.
fn known(xs: &[f32]) -> impl Iterator<Item = (u32, f32)> {
    let indexed = xs.iter().zip(0..);
    indexed.filter(|(x, _)| !x.is_nan()).map(|(&x, i)| (i, x + 0.0))
}

fn long_list(mut all: Vec<(u32, f32)>, k: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k < all.len() {
        all.select_nth_unstable_by(k - 1, order);
        all.truncate(k);
    }
    all.sort_unstable_by(order);
    all
}

/// What a softmax over logits comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxSummary {
    /// ln Σ eˣ, shifted by the largest; −∞ for nothing.
    pub log_sum_exp: f32,
    /// Entropy in bits: log₂ Z − Σ e^{l−m}(l−m) / (Z ln 2); 0 for nothing.
    pub entropy_bits: f32,
}

/// Normaliser and entropy of softmax(logits) in one pass.
pub fn summarise_softmax(logits: &[f32]) -> SoftmaxSummary {
    let Some((_, max)) = min_max(logits) else {
        return SoftmaxSummary { log_sum_exp: f32::NEG_INFINITY, entropy_bits: 0.0 };
    };
    let (z, inner) = match max.is_finite() {
        true => cpu::reduce::softmax_moments(logits, max),
        // Equal infinities share all there is.
        false => (logits.iter().filter(|&&l| l == max).count() as f64, 0.0),
    };
    let log_sum_exp = if max.is_infinite() { max } else { (f64::from(max) + z.ln()) as f32 };
    SoftmaxSummary { log_sum_exp, entropy_bits: ((z.ln() - inner / z) / std::f64::consts::LN_2).max(0.0) as f32 }
}

/// ln Σ eˣ of [`summarise_softmax`].
pub fn log_sum_exp(xs: &[f32]) -> f32 {
    summarise_softmax(xs).log_sum_exp
}

/// Entropy in bits of softmax(logits), of [`summarise_softmax`].
pub fn entropy_bits(logits: &[f32]) -> f32 {
    summarise_softmax(logits).entropy_bits
}
