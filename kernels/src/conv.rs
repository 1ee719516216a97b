//! Depthwise causal short convolution: out_t[c] = b[c] + Σ_j W[c, j] x_{t−K+1+j}[c].

use crate::cpu;

/// Convolves T tokens, carrying the last K−1 inputs.
///
/// `xs`, `out` [T, C]; `weight` [C, K], W[c, K−1] meeting the current token; `bias` [C]; `history` [K−1, C], oldest first, holds the inputs
/// (before any activation) that precede `xs` and is moved on. No activation is applied.
pub fn causal_conv(xs: &[f32], weight: &[f32], bias: Option<&[f32]>, history: &mut [f32], out: &mut [f32]) {
    causal_conv_parts(xs, weight, bias, history, &mut [out]);
}

/// [`causal_conv`], each part of its channels in a place of its own: the first [T, C₀], the next [T, C₁] and so on.
pub fn causal_conv_parts(
    xs: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    history: &mut [f32],
    parts: &mut [&mut [f32]],
) {
    convolve(xs, weight, bias, history, parts, false);
}

/// [`causal_conv_parts`] and then [`crate::silu_slice`] of all that comes out, with the same bits, while it is in the cache.
pub fn causal_conv_silu(
    xs: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    history: &mut [f32],
    parts: &mut [&mut [f32]],
) {
    convolve(xs, weight, bias, history, parts, true);
}

fn convolve(
    xs: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    history: &mut [f32],
    parts: &mut [&mut [f32]],
    silu: bool,
) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    assert_eq!(xs.len(), len, "causal_conv: x and out differ in length");
    if xs.is_empty() {
        return;
    }
    // Lengths of W = C·K and history = C·(K−1) give C.
    let channels = weight.len().saturating_sub(history.len());
    assert!(
        channels > 0 && weight.len().is_multiple_of(channels),
        "causal_conv: W and history are not [C, K] and [K-1, C]"
    );
    assert!(xs.len().is_multiple_of(channels), "causal_conv: x of {} elements is not [T, {channels}]", xs.len());
    if let Some(bias) = bias {
        assert_eq!(bias.len(), channels, "causal_conv: bias is not [C]");
    }
    let tokens = xs.len() / channels;
    assert!(parts.iter().all(|part| part.len().is_multiple_of(tokens)), "causal_conv: a part is not [T = {tokens}, …]");
    let conv = cpu::conv::Conv { xs, weight, bias, history, channels, silu };
    let mut first = 0;
    for part in parts {
        let width = part.len() / tokens;
        conv.run(first..first + width, part);
        first += width;
    }
    // What is kept is the tail of (history, xs).
    let taken = xs.len().min(history.len());
    history.copy_within(taken.., 0);
    let kept = history.len() - taken;
    history[kept..].copy_from_slice(&xs[xs.len() - taken..]);
}

/// [`causal_conv`] in f64, history not moved.
pub fn reference(xs: &[f32], weight: &[f32], bias: Option<&[f32]>, history: &[f32]) -> Vec<f64> {
    let channels = weight.len() - history.len();
    let taps = weight.len() / channels;
    let padded: Vec<f32> = history.iter().chain(xs).copied().collect();
    (0..xs.len())
        .map(|i| {
            let (t, c) = (i / channels, i % channels);
            let sum: f64 =
                (0..taps).map(|j| f64::from(weight[c * taps + j]) * f64::from(padded[(t + j) * channels + c])).sum();
            sum + bias.map_or(0.0, |b| f64::from(b[c]))
        })
        .collect()
}
