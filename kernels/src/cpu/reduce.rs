//! CPU twin of [`crate::reduce`].

use crate::cpu::{
    simd::{Kernel, MOST_LANES, Simd, dispatch},
    vector::exp,
};

/// Elements whose sums stay in f32.
const BLOCK: usize = 256;

/// Σ x², f32 within a block and f64 between them.
struct SumOfSquares<'a>(&'a [f32]);

impl Kernel for SumOfSquares<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut total = 0.0;
        for block in self.0.chunks(BLOCK) {
            let mut sums = [s.splat(0.0); 4];
            let mut fours = block.chunks_exact(4 * S::LANES);
            for xs in &mut fours {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let x = s.load(&xs[i * S::LANES..]);
                    *sum = s.fma(x, x, *sum);
                }
            }
            for xs in fours.remainder().chunks(S::LANES) {
                let x = s.load_some(xs);
                sums[0] = s.fma(x, x, sums[0]);
            }
            total += f64::from(s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))));
        }
        total
    }
}

pub(crate) fn l2_norm(xs: &[f32]) -> f32 {
    let squares = dispatch(SumOfSquares(xs));
    // Squares that leave the range of f32, or lose digits near its lower end, are summed in f64.
    if (1e-24..1e36).contains(&squares) || xs.iter().all(|&x| x == 0.0) {
        return squares.sqrt() as f32;
    }
    xs.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32
}

/// Σ e^{x−m} and Σ e^{x−m} (x − m) for x ≤ m, f32 within a block and f64 between them.
struct Moments<'a> {
    logits: &'a [f32],
    max: f32,
}

impl Kernel for Moments<'_> {
    type Output = (f64, f64);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f64, f64) {
        let (max, nothing, lowest) = (s.splat(self.max), s.splat(0.0), s.splat(-110.0));
        let (mut total, mut inner) = (0.0, 0.0);
        for block in self.logits.chunks(BLOCK) {
            let (mut totals, mut inners) = (nothing, nothing);
            let mut whole = block.chunks_exact(S::LANES);
            for xs in &mut whole {
                // −∞ times the 0 that it weighs would be NaN; e^{−110} is 0 in f32.
                let shifted = s.max(s.sub(s.load(xs), max), lowest);
                let weight = exp(s, shifted);
                totals = s.add(totals, weight);
                inners = s.fma(weight, shifted, inners);
            }
            total += f64::from(s.sum(totals));
            inner += f64::from(s.sum(inners));
            for x in whole.remainder() {
                let shifted = f64::from(x - self.max).max(-110.0);
                total += shifted.exp();
                inner += shifted.exp() * shifted;
            }
        }
        (total, inner)
    }
}

/// Normaliser and first moment of a softmax, both shifted by `max`, the largest of `logits`, which must be finite.
pub(crate) fn softmax_moments(logits: &[f32], max: f32) -> (f64, f64) {
    dispatch(Moments { logits, max })
}

/// Least and largest, NaN ignored; (∞, −∞) where nothing is left.
struct Extremes<'a>(&'a [f32]);

impl Kernel for Extremes<'_> {
    type Output = (f32, f32);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let (mut low, mut high) = ([s.splat(f32::INFINITY); 2], [s.splat(f32::NEG_INFINITY); 2]);
        let mut whole = self.0.chunks_exact(S::LANES);
        for (i, xs) in (&mut whole).enumerate() {
            // Of a comparison with NaN the second is taken.
            let x = s.load(xs);
            (low[i % 2], high[i % 2]) = (s.min(x, low[i % 2]), s.max(x, high[i % 2]));
        }
        let mut lanes = [[f32::NAN; MOST_LANES]; 2];
        s.store(s.min(low[0], low[1]), &mut lanes[0]);
        s.store(s.max(high[0], high[1]), &mut lanes[1]);
        let ([low, high], rest) = (lanes, whole.remainder());
        let low = low.iter().chain(rest).fold(f32::INFINITY, |min, &x| x.min(min));
        let high = high.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| x.max(max));
        (low, high)
    }
}

pub(crate) fn extremes(xs: &[f32]) -> (f32, f32) {
    dispatch(Extremes(xs))
}

/// The k largest, largest first, equals by index, NaN ignored, as a sorted list with insertion.
struct ShortList<'a> {
    xs: &'a [f32],
    k: usize,
}

/// Places whose largest are found side by side: at least as many as a short list is long.
const PLACES: usize = crate::reduce::SHORT_LIST;

impl ShortList<'_> {
    /// A number below all of the k largest: k of the largest of every 64th number are above it. −∞ where there are too few.
    #[inline(always)]
    fn floor<S: Simd>(&self, s: S) -> f32 {
        let mut most = [s.splat(f32::NEG_INFINITY); PLACES / 8];
        let most = &mut most[..PLACES / S::LANES];
        for xs in self.xs.chunks_exact(PLACES) {
            for (i, most) in most.iter_mut().enumerate() {
                // Of a comparison with NaN the second is taken.
                *most = s.max(s.load(&xs[i * S::LANES..]), *most);
            }
        }
        let mut places = [0.0; PLACES];
        for (most, places) in most.iter().zip(places.chunks_exact_mut(S::LANES)) {
            s.store(*most, places);
        }
        let (_, kth, _) = places.select_nth_unstable_by(self.k - 1, |a, b| b.total_cmp(a));
        kth.next_down()
    }
}

impl Kernel for ShortList<'_> {
    type Output = Vec<(u32, f32)>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        if self.k == 0 {
            return Vec::new();
        }
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(self.k + 1);
        // What is not greater is not among them.
        let mut floor = self.floor(s);
        for (block, first) in self.xs.chunks(2 * S::LANES).zip((0..).step_by(2 * S::LANES)) {
            // Hardly a block has one that is large enough; all of it is compared at once.
            if let (true, Some((a, b))) = (floor > f32::NEG_INFINITY, block.split_at_checked(S::LANES))
                && b.len() == S::LANES
                && !s.any_greater(s.load(a), s.splat(floor))
                && !s.any_greater(s.load(b), s.splat(floor))
            {
                continue;
            }
            for (x, i) in block.iter().zip(first..) {
                // −0 and 0 are equals, and an equal one comes later in index order, so it does not displace.
                let x = x + 0.0;
                if x.is_nan() || (x <= floor && (best.len() == self.k || floor > f32::NEG_INFINITY)) {
                    continue;
                }
                best.insert(best.partition_point(|b| b.1 >= x), (i, x));
                best.truncate(self.k);
                if best.len() == self.k {
                    floor = best.last().map_or(floor, |last| last.1);
                }
            }
        }
        best
    }
}

/// [`crate::reduce::top_k`] for a few.
pub(crate) fn short_list(xs: &[f32], k: usize) -> Vec<(u32, f32)> {
    dispatch(ShortList { xs, k })
}
