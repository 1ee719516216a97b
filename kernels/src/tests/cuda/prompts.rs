//! Ops of many tokens: linear maps, attention, rows.

use half::bf16;

use super::*;
use crate::activation::{Activation, silu_reference};
use crate::cuda::{
    At, DeviceMatrix, ENTRY_WORDS, EmbedRows, Entry, GateFunction, GateRows, Gemm, Taken, Written, record,
};
use crate::{Dtype, Elements, Matrix};

fn matrix(rng: &mut Rng, rows: usize, cols: usize, dtype: Dtype) -> Matrix {
    Matrix::new(rows, cols, Elements::F32(rng.vec(rows * cols))).unwrap().to_dtype(dtype)
}

fn check_gemm<T: Float>(gpu: &Gpu, rng: &mut Rng, dtype: Dtype, [tokens, rows, cols]: [usize; 3]) {
    let what = format!("{dtype} × {} {tokens} × {rows} × {cols}", T::NAME);
    let host = matrix(rng, rows, cols, dtype);
    let weight = DeviceMatrix::upload(gpu, &host).unwrap();
    // A part of wider rows.
    let stride = cols.next_multiple_of(8) + 8;
    let (wide_x, seen) = rounded::<T>(gpu, &rng.vec(tokens * stride));
    let dense: Vec<f32> = seen.chunks_exact(stride).flat_map(|row| &row[8..8 + cols]).copied().collect();
    let (b, scales, before) = (rng.vec(rows), rng.vec(rows), rng.vec(tokens * rows));
    let (bias, row_scale, residual) = (put(gpu, &b), put(gpu, &scales), put(gpu, &before));
    let (wide, y) = (poisoned::<f32>(gpu, tokens * rows), poisoned::<T>(gpu, tokens * rows));
    let gemm = Gemm {
        bias: Some(&bias),
        row_scale: Some(&row_scale),
        output_scale: 0.5,
        x_stride: stride,
        wide: Some(&wide),
        y: Some(&y),
        residual: Some((&residual, &residual)),
        residual_scale: 0.3,
        ..Gemm::new(tokens, &weight, At(&wide_x, 8))
    };
    gemm.run(gpu).unwrap();
    let product = crate::linear::reference(&host, Some(&b), &dense);
    let expected: Vec<f64> = product.iter().zip(scales.iter().cycle()).map(|(y, &s)| 0.5 * y * f64::from(s)).collect();
    // Tensor cores cut sums off instead of rounding them, which adds up along K.
    let error = 5e-6 * (cols as f64 / 1024.0).max(1.0);
    assert_close(&get(gpu, &wide), &expected, error, &what);
    assert_close(&get(gpu, &y), &expected, T::ERROR, &what);
    let added: Vec<f64> = expected.iter().zip(&before).map(|(y, &x)| f64::from(x) + 0.3 * y).collect();
    assert_close(&get(gpu, &residual), &added, error, &what);
    let (from, to) = (put(gpu, &before), poisoned::<f32>(gpu, tokens * rows));
    Gemm { wide: None, y: None, residual: Some((&from, &to)), ..gemm }.run(gpu).unwrap();
    assert_close(&get(gpu, &to), &added, error, &what);
    let activated = Gemm { wide: None, residual: None, activation: Some(Activation::Silu), ..gemm };
    activated.run(gpu).unwrap();
    let expected: Vec<f64> = expected.into_iter().map(silu_reference).collect();
    assert_close(&get(gpu, &y), &expected, T::ERROR, &what);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_gemm_agrees_in_any_shape() {
    let gpu = gpu();
    let mut rng = Rng::new(41);
    for shape in [[1, 1, 1], [3, 5, 7], [63, 65, 33], [65, 64, 16], [130, 300, 72], [257, 100, 264]] {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            check_gemm::<f32>(&gpu, &mut rng, dtype, shape);
            check_gemm::<bf16>(&gpu, &mut rng, dtype, shape);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_gemm_on_tensor_cores_agrees() {
    let gpu = gpu();
    let mut rng = Rng::new(42);
    let odd = [[1, 8, 8], [127, 255, 64], [129, 257, 200], [300, 520, 1024], [128, 256, 192]];
    // Of one tile in each width and of several, with and without a rest, and more of them than the GPU holds at once.
    let in_eights =
        [[1, 8, 8], [255, 64, 72], [257, 72, 64], [300, 192, 5120], [513, 264, 160], [2, 256, 2560], [2600, 4360, 136]];
    for shape in odd.into_iter().chain(in_eights) {
        check_gemm::<bf16>(&gpu, &mut rng, Dtype::Bf16, shape);
        check_gemm::<f32>(&gpu, &mut rng, Dtype::Bf16, shape);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_rows_are_embedded_and_gated() {
    let gpu = gpu();
    let mut rng = Rng::new(44);
    let (table, positions) = (matrix(&mut rng, 9, 130, Dtype::Bf16), matrix(&mut rng, 8, 130, Dtype::Bf16));
    let [a, b] = [&table, &positions].map(|m| DeviceMatrix::upload(&gpu, m).unwrap());
    let (ids, x) = ([7u32, 0, 8], poisoned::<f32>(&gpu, 3 * 130));
    let tokens = gpu.upload(&ids).unwrap();
    EmbedRows { table: &a, positions: Some(&b), tokens: &tokens, count: 3, first: 5, scale: 2.0, x: &x }
        .run(&gpu)
        .unwrap();
    let (rows, places) = (table.to_vec_f32(), positions.to_vec_f32());
    let expected: Vec<f64> = ids
        .iter()
        .enumerate()
        .flat_map(|(t, &id)| (0..130).map(move |i| (id as usize * 130 + i, (5 + t) * 130 + i)))
        .map(|(at, place)| 2.0 * f64::from(rows[at]) + f64::from(places[place]))
        .collect();
    assert_close(&get(&gpu, &x), &expected, 1e-6, "embedding");

    // Starts, widths and strides that are multiples of eight, and others.
    for (width, (x_from, x_stride), (z_from, z_stride)) in [(40, (3, 130), (7, 50)), (40, (8, 136), (16, 64))] {
        let (xs, zs) = (rng.vec(3 * x_stride), rng.vec(3 * z_stride));
        let (x, z, y) = (put(&gpu, &xs), put(&gpu, &zs), poisoned::<f32>(&gpu, 3 * width));
        for function in [GateFunction::Activation(Activation::Silu), GateFunction::Sigmoid] {
            let gate = Some((At(&z, z_from), z_stride));
            GateRows { tokens: 3, width, x: At(&x, x_from), x_stride, gate, function, gate_scale: 0.7, y: &y }
                .run(&gpu)
                .unwrap();
            let f = |z: f64| match function {
                GateFunction::Sigmoid => 1.0 / (1.0 + (-z).exp()),
                GateFunction::Activation(a) => a.reference(z),
            };
            let at = |row: usize, i: usize, from: usize, stride: usize| row * stride + from + i;
            let expected: Vec<f64> = (0..3 * width)
                .map(|i| {
                    let (t, i) = (i / width, i % width);
                    let gate = f64::from(0.7f32 * zs[at(t, i, z_from, z_stride)]);
                    f64::from(xs[at(t, i, x_from, x_stride)]) * f(gate)
                })
                .collect();
            assert_close(&get(&gpu, &y), &expected, 3e-6, &format!("{function:?}"));
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_records_what_it_is_told() {
    let gpu = gpu();
    let mut rng = Rng::new(45);
    let tokens = 3;
    let (heads, groups, n, p) = (6, 2, 5, 4);
    let (key_rows, keys) = rounded::<bf16>(&gpu, &rng.vec(tokens * 20));
    let (value_rows, values) = rounded::<bf16>(&gpu, &rng.vec(tokens * 30));
    let steps: Vec<f32> = rng.vec(tokens * heads);
    let (delta, b) = (put(&gpu, &steps), rng.vec(heads));
    let bias = put(&gpu, &b);
    let to = poisoned::<f32>(&gpu, 3 * 7 + 3 * 6 + 3);
    let written = Written {
        heads,
        delta: Some(At(&delta, 0)),
        keys: At(&key_rows, 2),
        keys_stride: 20,
        groups,
        key_dim: n,
        values: At(&value_rows, 1),
        values_stride: 30,
        value_groups: heads,
        value_dim: p,
    };
    let entries = [
        Entry::new(Taken::Rows { from: At(&key_rows, 4), stride: 20, width: 7 }, tokens, At(&to, 0)),
        Entry::new(
            Taken::Steps { from: At(&delta, 0), stride: heads, bias: &bias, low: 0.1, high: 0.9 },
            tokens,
            At(&to, 21),
        ),
        Entry::new(Taken::Write(written), tokens, At(&to, 39)),
    ];
    let table = gpu.zeros::<u32>(entries.len() * ENTRY_WORDS).unwrap();
    gpu.write(&table, 0, Entry::words(&entries)).unwrap();
    record(&gpu, &table, entries.len(), tokens).unwrap();
    let mut expected: Vec<f64> = (0..21).map(|i| keys[i / 7 * 20 + 4 + i % 7].into()).collect();
    expected.extend((0..18).map(|i| (f64::from(steps[i]) + f64::from(b[i % 6])).exp().ln_1p().clamp(0.1, 0.9)));
    let norm = |xs: &[f32]| xs.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    expected.extend((0..tokens).map(|t| {
        let head = |h: usize| {
            let (k, v) = (t * 20 + 2 + h * groups / heads * n, t * 30 + 1 + h * p);
            f64::from(steps[t * heads + h]).powi(2) * norm(&keys[k..k + n]) * norm(&values[v..v + p])
        };
        (0..heads).map(head).sum::<f64>().sqrt()
    }));
    assert_close(&get(&gpu, &to), &expected, 3e-6, "record");
}
