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
    // Eight pairs side by side; a comparison with NaN is false and leaves them alone.
    let (mut low, mut high) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    let (blocks, rest) = xs.as_chunks::<8>();
    let mut take = |lane: usize, x: f32| {
        low[lane] = if x < low[lane] { x } else { low[lane] };
        high[lane] = if x > high[lane] { x } else { high[lane] };
    };
    for block in blocks {
        for (lane, &x) in block.iter().enumerate() {
            take(lane, x);
        }
    }
    rest.iter().for_each(|&x| take(0, x));
    let min = low.into_iter().fold(f32::INFINITY, f32::min);
    let max = high.into_iter().fold(f32::NEG_INFINITY, f32::max);
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
    if k <= SHORT_LIST { short_list(xs, k) } else { long_list(known(0, xs).collect(), k) }
}

/// Up to so many a sorted list with insertion beats a selection over all.
const SHORT_LIST: usize = 64;

/// What is not NaN, with its index, the first at `first`; −0 and 0 are equals.
fn known(first: usize, xs: &[f32]) -> impl Iterator<Item = (u32, f32)> {
    let indexed = xs.iter().zip(first as u32..);
    indexed.filter(|(x, _)| !x.is_nan()).map(|(&x, i)| (i, x + 0.0))
}

fn short_list(xs: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
    for (block, first) in xs.chunks(16).zip((0..).step_by(16)) {
        // Hardly a block has one that is large enough; all of it is compared at once.
        if let Some((_, least)) = best.last().filter(|_| best.len() == k)
            && !block.iter().fold(false, |any, x| any | (x > least))
        {
            continue;
        }
        for (i, x) in known(first, block) {
            // An equal one comes later in index order, so it does not displace.
            if best.len() == k && best.last().is_none_or(|last| x <= last.1) {
                continue;
            }
            best.insert(best.partition_point(|b| b.1 >= x), (i, x));
            best.truncate(k);
        }
    }
    best
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
