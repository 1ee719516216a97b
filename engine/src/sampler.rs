//! Choosing the next token. The randomness is a function of (seed, position) alone, so a replayed, branched or resumed run draws
//! the same tokens.

use statescope_kernels::activation::exp_slice;
use statescope_kernels::reduce::{argmax, top_k};

use crate::protocol::TokenId;

/// Weights that are added up in f32.
const STRETCH: usize = 64;
/// Tokens among which those that reach top-p are looked for first, on a GPU too.
pub(crate) const LIKELY: usize = 64;

/// How the next token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most likely tokens.
    pub top_k: Option<usize>,
    /// Keep the smallest set whose probability reaches p (nucleus sampling, Holtzman et al. 2020).
    pub top_p: Option<f32>,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: None, top_p: None, seed: 0 }
    }
}

impl Sampling {
    /// One sentence about the first setting that cannot be used.
    pub fn check(&self) -> Result<(), String> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(format!("temperature is {}; give a number of 0 (greedy) or more", self.temperature));
        }
        if self.top_k == Some(0) {
            return Err("top-k is 0, which leaves no token; give 1 or more, or leave it out".into());
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => Err(format!("top-p is {p}; give a number above 0 and at most 1")),
            _ => Ok(()),
        }
    }

    /// Draws the token at `position` from `logits` `[V]`.
    ///
    /// Ties go to the smaller id. Non-finite logits never win; if none is finite the first id is returned.
    pub fn sample(&self, logits: &[f32], position: usize) -> TokenId {
        if self.is_greedy() {
            return argmax(logits).unwrap_or(0) as TokenId;
        }
        match self.top_k {
            Some(k) => self.draw_from(top_k(logits, k.min(logits.len())), position),
            None if self.nucleus().is_some() => self.draw_from_nucleus(logits, position),
            None => self.draw_from_all(logits, position),
        }
    }

    fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == Some(1)
    }

    /// How many of the most likely tokens decide; none where all of them do.
    pub fn decisive(&self) -> Option<usize> {
        if self.is_greedy() { Some(1) } else { self.top_k }
    }

    /// Temperature and random number in [0, 1) of a draw from all tokens at `position`; none where fewer decide.
    pub fn plain(&self, position: usize) -> Option<(f32, f64)> {
        let all = !self.is_greedy() && self.top_k.is_none() && self.nucleus().is_none();
        all.then(|| (self.temperature, uniform(self.seed, position)))
    }

    /// Temperature of a draw from the fewest tokens that reach top-p, however many that are; none where something else decides.
    pub fn nucleus(&self) -> Option<f32> {
        let truncates = !self.is_greedy() && self.top_k.is_none() && self.top_p.is_some_and(|p| p < 1.0);
        truncates.then_some(self.temperature)
    }

    /// The token that [`Sampling::sample`] draws from logits `[..limit]`, if the most likely ones tell: `ranked` is as [`top_k`] makes them of
    /// all logits.
    pub fn choose(&self, ranked: &[(TokenId, f32)], limit: usize, position: usize) -> Option<TokenId> {
        let k = self.decisive()?;
        let known = ranked.iter().copied().filter(|(id, _)| (*id as usize) < limit);
        let known: Vec<(TokenId, f32)> = known.take(k).collect();
        let &(first, logit) = known.first()?;
        if known.len() < k || !logit.is_finite() {
            return None;
        }
        Some(if self.is_greedy() { first } else { self.draw_from(known, position) })
    }

    /// The same where top-p alone decides: `total` is the sum of all weights e^{(logit − largest) / temperature} of logits `[..limit]`, in the
    /// order of [`stretches`]. None if those of `ranked` do not reach top-p.
    pub fn choose_within(
        &self,
        ranked: &[(TokenId, f32)],
        total: f64,
        limit: usize,
        position: usize,
    ) -> Option<TokenId> {
        let known: Vec<(TokenId, f32)> = ranked.iter().copied().filter(|(id, _)| (*id as usize) < limit).collect();
        let finite = self.nucleus().is_some() && known.first()?.1.is_finite();
        if finite { self.draw_within(known, total, false, position) } else { None }
    }

    /// The fewest tokens that reach top-p, which are looked for among a few first.
    fn draw_from_nucleus(&self, logits: &[f32], position: usize) -> TokenId {
        let Some((_, sums)) = stretches(logits, self.temperature) else { return 0 };
        let (total, mut k) = (sums.iter().sum(), LIKELY.min(logits.len()));
        loop {
            let all = k == logits.len();
            if let Some(token) = self.draw_within(top_k(logits, k), total, all, position) {
                return token;
            }
            if all {
                return 0;
            }
            k = (32 * k).min(logits.len());
        }
    }

    /// Of those of the most likely tokens that reach top-p of `total`; none if they do not, unless they are all there are.
    fn draw_within(
        &self,
        mut candidates: Vec<(TokenId, f32)>,
        total: f64,
        all: bool,
        position: usize,
    ) -> Option<TokenId> {
        candidates.retain(|(_, logit)| logit.is_finite());
        let weights = self.weights(&candidates);
        let kept = match nucleus(&weights, total * f64::from(self.top_p?)) {
            Some(kept) => kept,
            None if all => weights.len(),
            None => return None,
        };
        self.draw_among(&candidates[..kept], &weights, position)
    }

    /// Of the most likely tokens, the first before the others.
    fn draw_from(&self, mut candidates: Vec<(TokenId, f32)>, position: usize) -> TokenId {
        candidates.retain(|(_, logit)| logit.is_finite());
        let weights = self.weights(&candidates);
        // Summed in f64 so that a large vocabulary does not lose its tail.
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let kept = self.top_p.and_then(|p| nucleus(&weights, total * f64::from(p))).unwrap_or(weights.len());
        self.draw_among(&candidates[..kept], &weights, position).unwrap_or(0)
    }

    fn weights(&self, candidates: &[(TokenId, f32)]) -> Vec<f32> {
        let peak = candidates.iter().fold(f32::NEG_INFINITY, |peak, (_, logit)| peak.max(*logit));
        let mut weights: Vec<f32> = candidates.iter().map(|(_, l)| (l - peak) / self.temperature).collect();
        exp_slice(&mut weights);
        weights
    }

    /// None of none.
    fn draw_among(&self, candidates: &[(TokenId, f32)], weights: &[f32], position: usize) -> Option<TokenId> {
        let weights = &weights[..candidates.len()];
        let mass: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let mut remaining = uniform(self.seed, position) * mass;
        for (weight, (id, _)) in weights.iter().zip(candidates) {
            if remaining < f64::from(*weight) {
                return Some(*id);
            }
            remaining -= f64::from(*weight);
        }
        candidates.first().map(|(first, _)| *first)
    }

    /// Without a truncation nothing has to be sorted.
    fn draw_from_all(&self, logits: &[f32], position: usize) -> TokenId {
        let Some((weights, sums)) = stretches(logits, self.temperature) else { return 0 };
        let mut remaining = uniform(self.seed, position) * sums.iter().sum::<f64>();
        let mut at = 0;
        while at + 1 < sums.len() && remaining >= sums[at] {
            remaining -= sums[at];
            at += 1;
        }
        let mut last = 0;
        for (id, weight) in weights.iter().enumerate().skip(at * STRETCH).filter(|(_, weight)| **weight > 0.0) {
            last = id;
            if remaining < f64::from(*weight) {
                break;
            }
            remaining -= f64::from(*weight);
        }
        last as TokenId
    }
}

/// Weights e^{(logit − largest) / temperature}, 0 of what is not finite, and their sums in stretches of f32: fast, and summed in f64, one after
/// the other, a large vocabulary does not lose its tail. None if nothing is finite.
fn stretches(logits: &[f32], temperature: f32) -> Option<(Vec<f32>, Vec<f64>)> {
    let finite = |logit: f32| if logit.is_finite() { logit } else { f32::NEG_INFINITY };
    let peak = logits.iter().fold(f32::NEG_INFINITY, |peak, logit| peak.max(finite(*logit)));
    if peak == f32::NEG_INFINITY {
        return None;
    }
    let mut weights: Vec<f32> = logits.iter().map(|logit| (finite(*logit) - peak) / temperature).collect();
    exp_slice(&mut weights);
    let sums = weights.chunks(STRETCH).map(|part| f64::from(part.iter().sum::<f32>())).collect();
    Some((weights, sums))
}

/// How many of the descending `weights` it takes to reach `mass`, if they do.
fn nucleus(weights: &[f32], mass: f64) -> Option<usize> {
    let mut sum = 0.0;
    let last = weights.iter().position(|w| {
        sum += f64::from(*w);
        sum >= mass
    });
    last.map(|last| last + 1)
}

/// A number in [0, 1) from (seed, position), by SplitMix64 (Steele et al. 2014).
fn uniform(seed: u64, position: usize) -> f64 {
    let mut z = seed ^ (position as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for _ in 0..2 {
        z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
    }
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(sampling.sample(&[0.0, 3.0, 3.0, f32::NAN], 5), 1);
    }

    #[test]
    fn draws_follow_the_distribution_and_repeat() {
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let logits = [0.0f32, (3.0f32).ln(), f32::NEG_INFINITY];
        let draws: Vec<u32> = (0..20_000).map(|p| sampling.sample(&logits, p)).collect();
        let share = draws.iter().filter(|t| **t == 1).count() as f64 / draws.len() as f64;
        assert!((share - 0.75).abs() < 0.015, "{share}");
        assert!(draws.iter().all(|t| *t < 2));
        assert_eq!(draws, (0..20_000).map(|p| sampling.sample(&logits, p)).collect::<Vec<_>>());
    }

    #[test]
    fn truncation_keeps_the_likely() {
        let logits = [1.0f32, 0.9, -3.0, 0.8];
        for position in 0..500 {
            let top = Sampling { temperature: 2.0, top_k: Some(2), ..Sampling::default() }.sample(&logits, position);
            assert!(top < 2);
            let nucleus =
                Sampling { temperature: 1.0, top_p: Some(0.3), ..Sampling::default() }.sample(&logits, position);
            assert_eq!(nucleus, 0);
        }
    }

    #[test]
    fn a_choice_among_the_likely_is_that_among_all() {
        let logits: Vec<f32> = (0..500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 400.0).collect();
        let ranked = top_k(&logits, 24);
        let kinds = [(0.0, None, None), (0.7, Some(1), None), (0.9, Some(12), None), (1.3, Some(20), Some(0.8))];
        for (temperature, top_k, top_p) in kinds {
            let sampling = Sampling { temperature, top_k, top_p, seed: 7 };
            for position in 0..300 {
                // Padding rows are never chosen, and may be among the likely.
                for limit in [500, 480] {
                    let chosen = sampling.choose(&ranked, limit, position);
                    assert_eq!(chosen, Some(sampling.sample(&logits[..limit], position)), "{sampling:?}, {limit}");
                }
            }
        }
        let all = Sampling { temperature: 1.0, top_k: None, top_p: Some(0.5), seed: 0 };
        assert_eq!(all.choose(&ranked, 500, 0), None);
        assert_eq!(Sampling { top_k: Some(40), ..all }.choose(&ranked, 500, 0), None);
    }

    /// From the total of all and the most likely ones, where these reach top-p.
    #[test]
    fn a_nucleus_is_the_same_among_few_as_among_all() {
        let logits: Vec<f32> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 400.0).collect();
        let ranked = top_k(&logits, LIKELY);
        let mut reached = [0; 2];
        for (temperature, p) in [(0.3, 0.5), (0.8, 0.05), (0.8, 0.9), (2.0, 0.99), (0.05, 0.999)] {
            let sampling = Sampling { temperature, top_k: None, top_p: Some(p), seed: 7 };
            for limit in [5000, 4321] {
                let total = stretches(&logits[..limit], temperature).unwrap().1.iter().sum();
                // What was sampled before few were looked at: all in order.
                let mut all = top_k(&logits[..limit], limit);
                all.retain(|(_, logit)| logit.is_finite());
                let weights = sampling.weights(&all);
                let kept = nucleus(&weights, total * f64::from(p)).unwrap();
                for position in 0..100 {
                    let expected = sampling.draw_among(&all[..kept], &weights, position);
                    assert_eq!(Some(sampling.sample(&logits[..limit], position)), expected);
                    let chosen = sampling.choose_within(&ranked, total, limit, position);
                    assert!(chosen.is_none_or(|chosen| Some(chosen) == expected), "{sampling:?}");
                    reached[usize::from(chosen.is_some())] += 1;
                }
            }
        }
        assert!(reached.iter().all(|count| *count > 100), "{reached:?}");
        let whole = Sampling { temperature: 1.0, top_k: None, top_p: Some(1.0), seed: 0 };
        assert_eq!(whole.sample(&logits, 3), Sampling { top_p: None, ..whole }.sample(&logits, 3));
        assert_eq!(Sampling { top_p: Some(0.5), ..whole }.sample(&[f32::NAN; 100], 0), 0);
    }

    #[test]
    fn bad_settings_are_named() {
        assert!(Sampling { temperature: f32::NAN, ..Sampling::default() }.check().unwrap_err().contains("temperature"));
        assert!(Sampling { top_p: Some(0.0), ..Sampling::default() }.check().unwrap_err().contains("top-p"));
        assert!(Sampling { top_k: Some(0), ..Sampling::default() }.check().unwrap_err().contains("top-k"));
    }
}
