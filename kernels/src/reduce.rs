//! Reductions of a slice to what a screen shows.

/// ‖x‖₂, summed in f64: neither 1e30 nor 1e-30 spoils it.
pub fn l2_norm(xs: &[f32]) -> f32 {
    xs.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32
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
    let (min, max) = xs.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| (x.min(min), x.max(max)));
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
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    // −0 and 0 are equals.
    let mut all: Vec<(u32, f32)> =
        xs.iter().enumerate().filter(|(_, x)| !x.is_nan()).map(|(i, &x)| (i as u32, x + 0.0)).collect();
    if k == 0 || all.is_empty() {
        return Vec::new();
    }
    if k < all.len() {
        all.select_nth_unstable_by(k - 1, order);
        all.truncate(k);
    }
    all.sort_unstable_by(order);
    all
}

/// ln Σ eˣ, shifted by the largest; −∞ for nothing.
pub fn log_sum_exp(xs: &[f32]) -> f32 {
    let Some((_, max)) = min_max(xs) else {
        return f32::NEG_INFINITY;
    };
    if max.is_infinite() {
        return max;
    }
    let sum: f64 = xs.iter().map(|x| f64::from((x - max).exp())).sum();
    (f64::from(max) + sum.ln()) as f32
}

/// Entropy in bits of softmax(logits): log₂ Z − Σ e^{l−m}(l−m) / (Z ln 2); 0 for nothing.
pub fn entropy_bits(logits: &[f32]) -> f32 {
    let Some((_, max)) = min_max(logits) else {
        return 0.0;
    };
    let (mut z, mut inner) = (0.0f64, 0.0f64);
    for l in logits {
        // Equal infinities differ by NaN; they are the largest.
        let shifted = if *l == max { 0.0 } else { l - max };
        let e = f64::from(shifted.exp());
        if e > 0.0 {
            z += e;
            inner += e * f64::from(shifted);
        }
    }
    ((z.ln() - inner / z) / std::f64::consts::LN_2).max(0.0) as f32
}

/// Counts in `bins` equal bins over `range` (low, high), its upper end included; what lies outside, and NaN, is not counted.
pub fn histogram(values: &[f32], bins: usize, range: (f32, f32)) -> Vec<u32> {
    let mut counts = vec![0; bins];
    let (low, high) = (f64::from(range.0), f64::from(range.1));
    if bins == 0 || low.partial_cmp(&high).is_none_or(|o| o.is_gt()) {
        return counts;
    }
    let per_unit = if high > low { bins as f64 / (high - low) } else { 0.0 };
    for &v in values {
        let v = f64::from(v);
        if (low..=high).contains(&v) {
            counts[(((v - low) * per_unit) as usize).min(bins - 1)] += 1;
        }
    }
    counts
}
