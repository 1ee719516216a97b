//! Linear map: y[t, o] = Σᵢ W[o, i] x[t, i] (+ b[o]).

use crate::{Matrix, Room, cpu};

/// y = W x + b for each of T tokens.
///
/// W `weight` [out, in], b `bias` [out], x `xs` [T, in], y `ys` [T, out]; sums in f32 whatever the weights are stored in. One token is
/// a matrix-vector product straight from the stored weights; more tokens are a matrix product, in which each output is summed by
/// itself, so that y[t] has the same bits for every T ≥ 2.
pub fn linear(weight: &Matrix, bias: Option<&[f32]>, xs: &[f32], ys: &mut [f32]) {
    linear_parts(weight, bias, xs, &mut [ys]);
}

/// [`linear`], each part of y in a place of its own: its first columns [T, out₀], the next [T, out₁] and so on.
pub fn linear_parts(weight: &Matrix, bias: Option<&[f32]>, xs: &[f32], parts: &mut [&mut [f32]]) {
    let (outputs, inputs) = (weight.rows(), weight.cols());
    let len: usize = parts.iter().map(|part| part.len()).sum();
    if len == 0 {
        return;
    }
    assert!(outputs > 0 && len.is_multiple_of(outputs), "linear: y of {len} elements is not [T, {outputs}]");
    let tokens = len / outputs;
    assert_eq!(xs.len(), tokens * inputs, "linear: x is not [T = {tokens}, in = {inputs}]");
    assert!(parts.iter().all(|part| part.len().is_multiple_of(tokens)), "linear: a part of y is not [T = {tokens}, …]");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), outputs, "linear: bias is not [out]");
    }
    match parts {
        [y] if tokens == 1 => cpu::linear::gemv(weight, xs, y),
        _ if tokens == 1 => {
            // One piece of work instead of one a part.
            let mut y = Room::new(outputs);
            cpu::linear::gemv(weight, xs, &mut y);
            let mut rest = &y[..];
            for part in parts.iter_mut() {
                part.copy_from_slice(rest.split_off(..part.len()).expect("the parts are as long as y"));
            }
        }
        _ => cpu::linear::gemm(weight, xs, parts),
    }
    let mut rest = bias.unwrap_or_default();
    for part in parts.iter_mut().filter(|_| bias.is_some()) {
        let bias = rest.split_off(..part.len() / tokens).expect("the parts have as many columns as y");
        for y in part.chunks_exact_mut(bias.len().max(1)) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
}

/// [`linear`] in f64.
pub fn reference(weight: &Matrix, bias: Option<&[f32]>, xs: &[f32]) -> Vec<f64> {
    let rows = weight.to_vec_f32();
    let rows = rows.chunks_exact(weight.cols().max(1));
    xs.chunks_exact(weight.cols().max(1))
        .flat_map(|x| {
            rows.clone().enumerate().map(move |(o, w)| {
                let sum: f64 = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                sum + bias.map_or(0.0, |b| f64::from(b[o]))
            })
        })
        .collect()
}
