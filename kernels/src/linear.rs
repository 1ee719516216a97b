//! Linear map: y[t, o] = Σᵢ W[o, i] x[t, i] (+ b[o]).

use crate::{Matrix, cpu};

/// y = W x + b for each of T tokens.
///
/// W `weight` [out, in], b `bias` [out], x `xs` [T, in], y `ys` [T, out]; sums in f32 whatever the weights are stored in. One token is
/// a matrix-vector product straight from the stored weights; more tokens are a matrix product, in which each output is summed by
/// itself, so that y[t] has the same bits for every T ≥ 2.
pub fn linear(weight: &Matrix, bias: Option<&[f32]>, xs: &[f32], ys: &mut [f32]) {
    let (outputs, inputs) = (weight.rows(), weight.cols());
    if ys.is_empty() {
        return;
    }
    assert!(
        outputs > 0 && ys.len().is_multiple_of(outputs),
        "linear: y of {} elements is not [T, {outputs}]",
        ys.len()
    );
    let tokens = ys.len() / outputs;
    assert_eq!(xs.len(), tokens * inputs, "linear: x is not [T = {tokens}, in = {inputs}]");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), outputs, "linear: bias is not [out]");
    }
    if tokens == 1 {
        cpu::linear::gemv(weight, xs, ys);
    } else {
        cpu::linear::gemm(weight, xs, ys);
    }
    if let Some(bias) = bias {
        for y in ys.chunks_exact_mut(outputs) {
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
