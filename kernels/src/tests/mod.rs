//! Every op against its f64 twin, at lengths around the sizes of vectors, tiles and chunks.

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod delta_rule;
mod goldens;
mod linear;
mod linear_attention;
mod mixing;
mod pointwise;
mod recurrences;
mod simd;
mod state_space;
mod threads;

use crate::cpu::simd::{FORCED, Forced};

/// Token counts around vectors, tiles and chunks.
pub(crate) const LENGTHS: [usize; 8] = [1, 2, 3, 63, 64, 65, 100, 257];

/// Reproducible numbers in [−1, 1) (SplitMix64).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }

    /// Values whose logarithm is uniform between those of `low` and `high`.
    pub(crate) fn log_uniform(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| low * (high / low).powf(0.5 + 0.5 * self.unit())).collect()
    }
}

pub(crate) fn nan(n: usize) -> Vec<f32> {
    vec![f32::NAN; n]
}

pub(crate) fn widened(xs: &[f32]) -> Vec<f64> {
    xs.iter().map(|&x| x.into()).collect()
}

pub(crate) fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

/// max |a − b| ≤ tolerance · max |b|.
#[track_caller]
pub(crate) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_close_to(actual, expected, tolerance, 1e-30, what);
}

/// [`assert_close`], the largest |b| counting as `size` at least: that of the summands, where they may cancel.
#[track_caller]
pub(crate) fn assert_close_to(actual: &[f32], expected: &[f64], tolerance: f64, size: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths");
    let scale = expected.iter().fold(size, |m, x| m.max(x.abs()));
    for (i, (&a, &b)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(a) - b).abs() / scale;
        assert!(error <= tolerance, "{what}: [{i}] is {a}, expected {b}, error {error:.2e} of the largest");
    }
}

/// Runs a test on the best instruction set and on each that may be there in its place.
pub(crate) fn on_each_set(test: impl Fn()) {
    for &forced in Forced::EACH {
        FORCED.set(forced);
        test();
    }
    FORCED.set(None);
}
