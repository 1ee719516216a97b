//! Depthwise causal convolution with a filter as long as the text: y_t[c] = Σ_l K[l, c] x_{t−l}[c]. S4's kernel and Hyena's filter (Poli et
//! al. 2023, arXiv 2302.10866).

use crate::cpu;

/// The newest T tokens of `xs` [S, C], S ≥ T, with all of them in sight; `taps` [L, C], the first for the token itself; `out` [T, C].
/// Every token is a sum of its own from the newest input to the oldest: the bits do not depend on how the text is cut.
pub fn long_conv(xs: &[f32], taps: &[f32], channels: usize, out: &mut [f32]) {
    assert!(channels > 0 && xs.len().is_multiple_of(channels), "long_conv: x is not [S, {channels}]");
    assert!(taps.len().is_multiple_of(channels), "long_conv: K is not [L, {channels}]");
    assert!(out.len().is_multiple_of(channels) && out.len() <= xs.len(), "long_conv: out is not the end of x");
    cpu::long_conv::run(xs, taps, channels, out);
}

/// [`long_conv`] in f64.
pub fn reference(xs: &[f32], taps: &[f32], channels: usize, rows: usize) -> Vec<f64> {
    let first = xs.len() / channels - rows;
    let at = |t: usize, c: usize| {
        let past = taps.chunks_exact(channels).take(t + 1).enumerate();
        past.map(|(age, taps)| f64::from(taps[c]) * f64::from(xs[(t - age) * channels + c])).sum()
    };
    (0..rows * channels).map(|i| at(first + i / channels, i % channels)).collect()
}
