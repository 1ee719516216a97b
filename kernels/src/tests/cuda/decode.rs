//! Ops of one token.

use half::{bf16, f16};

use super::super::recurrences::{ScanData, SsdData};
use super::*;
use crate::activation::{Activation, silu_reference};
use crate::cuda::{
    At, AttentionStep, Convolved, DbcNorms, DeviceMatrix, Embed, GatedUnit, Input, Linear, ScanStep, SsdStep,
};
use crate::{Attention, Dtype, Elements, Layout, Matrix, PAGE, Rope};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

fn matrix(rng: &mut Rng, rows: usize, cols: usize, dtype: Dtype) -> Matrix {
    Matrix::new(rows, cols, Elements::F32(rng.vec(rows * cols))).unwrap().to_dtype(dtype)
}

fn narrow(xs: &[f64]) -> Vec<f32> {
    xs.iter().map(|&x| x as f32).collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_linear_agrees_at_every_blocking() {
    let gpu = gpu();
    let mut rng = Rng::new(11);
    for dtype in DTYPES {
        for (rows, cols) in
            [(1, 1), (5, 7), (3, 8), (130, 160), (257, 1000), (1500, 520), (2600, 768), (9001, 264), (40_001, 24)]
        {
            let what = format!("{dtype} {rows} × {cols}");
            let host = matrix(&mut rng, rows, cols, dtype);
            let (xs, b, before, scales) = (rng.vec(cols), rng.vec(rows), rng.vec(rows), rng.vec(rows));
            let weight = DeviceMatrix::upload(&gpu, &host).unwrap();
            let (x, bias, residual, row_scale) =
                (put(&gpu, &xs), put(&gpu, &b), put(&gpu, &before), put(&gpu, &scales));
            let y = poisoned::<f32>(&gpu, rows);
            let plain = Linear::new(&weight, Input::Plain(At(&x, 0)), Some(At(&y, 0)));
            Linear {
                bias: Some(&bias),
                residual: Some((At(&residual, 0), At(&residual, 0))),
                residual_scale: 0.5,
                ..plain
            }
            .run(&gpu)
            .unwrap();
            let expected = crate::linear::reference(&host, Some(&b), &xs);
            assert_close(&get(&gpu, &y), &expected, 3e-6, &what);
            let added: Vec<f64> = expected.iter().zip(&before).map(|(y, &x)| f64::from(x) + 0.5 * y).collect();
            assert_close(&get(&gpu, &residual), &added, 3e-6, &what);
            let y = poisoned::<f32>(&gpu, rows);
            Linear { y: Some(At(&y, 0)), row_scale: Some(&row_scale), activation: Some(Activation::GeluTanh), ..plain }
                .run(&gpu)
                .unwrap();
            let expected: Vec<f64> = crate::linear::reference(&host, None, &xs)
                .iter()
                .zip(&scales)
                .map(|(y, &s)| Activation::GeluTanh.reference(y * f64::from(s)))
                .collect();
            assert_close(&get(&gpu, &y), &expected, 1e-5, &what);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_linear_norms_and_gates_what_it_reads() {
    use crate::norm::*;
    let gpu = gpu();
    let mut rng = Rng::new(12);
    for (rows, cols, groups) in [(4, 6, 1), (40, 1030, 1), (33, 96, 3), (2100, 512, 1), (2100, 512, 4)] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let host = matrix(&mut rng, rows, cols, dtype);
            let weight = DeviceMatrix::upload(&gpu, &host).unwrap();
            let (xs, zs, ws, bs) = (rng.vec(cols), rng.vec(cols), rng.vec(cols), rng.vec(cols));
            let (x, z, w, b) = (put(&gpu, &xs), put(&gpu, &zs), put(&gpu, &ws), put(&gpu, &bs));
            let (x, gate, eps) = (At(&x, 0), At(&z, 0), 1e-5);
            let gated = |f: fn(f64) -> f64| xs.iter().zip(&zs).map(|(&x, &z)| f64::from(x) * f(z.into())).collect();
            let cases: [(Input<'_>, Vec<f64>); 6] = [
                (Input::Rms { x, weight: &w, groups: 1, eps }, rms_norm_reference(&xs, &ws, eps)),
                (Input::Layer { x, weight: &w, bias: Some(&b), eps }, layer_norm_reference(&xs, &ws, Some(&bs), eps)),
                (
                    Input::GateRms { x, gate, weight: &w, groups, eps },
                    gated_group_rms_norm_reference(&xs, &zs, &ws, groups, eps).0,
                ),
                (
                    Input::RmsGate { x, gate, weight: &w, groups, eps },
                    group_rms_norm_gated_reference(&xs, &zs, &ws, groups, eps).0,
                ),
                (Input::Gate { x, gate }, gated(silu_reference)),
                (Input::SigmoidGate { x, gate }, gated(|z| 1.0 / (1.0 + (-z).exp()))),
            ];
            for (input, seen) in cases {
                let y = poisoned::<f32>(&gpu, rows);
                Linear::new(&weight, input, Some(At(&y, 0))).run(&gpu).unwrap();
                let expected = crate::linear::reference(&host, None, &narrow(&seen));
                assert_close(&get(&gpu, &y), &expected, 5e-6, &format!("{input:?} {rows} × {cols}"));
            }
        }
    }
}

/// The input projection of a Mamba layer: z, what the convolution reads, and the steps.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_linear_convolves_and_steps_its_rows() {
    let gpu = gpu();
    let mut rng = Rng::new(13);
    for (z, channels, heads, cols, taps) in [(3, 5, 2, 7, 4), (64, 96, 8, 64, 4), (10, 33, 0, 40, 2), (0, 9, 1, 16, 1)]
    {
        let rows = z + channels + heads;
        let host = matrix(&mut rng, rows, cols, Dtype::Bf16);
        let weight = DeviceMatrix::upload(&gpu, &host).unwrap();
        let (cw, cb, dtb) = (rng.vec(channels * taps), rng.vec(channels), rng.vec(heads));
        let mut before = rng.vec(channels * (taps - 1));
        let (conv_weight, conv_bias, dt_bias) = (put(&gpu, &cw), put(&gpu, &cb), put(&gpu, &dtb));
        let history = put(&gpu, &before);
        for _ in 0..3 {
            let xs = rng.vec(cols);
            let x = put(&gpu, &xs);
            let [y, convolved, activated, delta] =
                [rows, channels, channels, heads].map(|len| poisoned::<f32>(&gpu, len));
            let plain = Linear::new(&weight, Input::Plain(At(&x, 0)), Some(At(&y, 0)));
            let conv = Convolved {
                from: z,
                channels,
                weight: &conv_weight,
                bias: Some(&conv_bias),
                history: &history,
                convolved: At(&convolved, 0),
                activated: At(&activated, 0),
            };
            let delta_part = (heads > 0).then_some((&dt_bias, At(&delta, 0), 0.1, 2.0));
            Linear { convolved: Some(conv), delta: delta_part, ..plain }.run(&gpu).unwrap();
            let projected = crate::linear::reference(&host, None, &xs);
            assert_close(&get(&gpu, &y), &projected, 3e-6, "projected");
            let input = narrow(&projected[z..z + channels]);
            let expected = crate::conv::reference(&input, &cw, Some(&cb), &before);
            assert_close(&get(&gpu, &convolved), &expected, 3e-6, "convolved");
            assert_close(
                &get(&gpu, &activated),
                &expected.iter().map(|&x| silu_reference(x)).collect::<Vec<_>>(),
                3e-6,
                "silu",
            );
            let steps: Vec<f64> = projected[z + channels..]
                .iter()
                .zip(&dtb)
                .map(|(y, &b)| (y + f64::from(b)).exp().ln_1p().clamp(0.1f32.into(), 2.0))
                .collect();
            assert_close(&get(&gpu, &delta), &steps, 3e-6, "delta");
            before = before.into_iter().chain(input).skip(channels).collect();
            if taps > 1 {
                assert_close(&get(&gpu, &history), &widened(&before), 3e-6, "history");
            } else {
                before.clear();
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_gated_units_agree() {
    let gpu = gpu();
    let mut rng = Rng::new(14);
    for (rows, cols) in [(3, 5), (170, 64), (3000, 256)] {
        for dtype in DTYPES {
            let (gate, up) = (matrix(&mut rng, rows, cols, dtype), matrix(&mut rng, rows, cols, dtype));
            let (gate_device, up_device) =
                (DeviceMatrix::upload(&gpu, &gate).unwrap(), DeviceMatrix::upload(&gpu, &up).unwrap());
            let (xs, b) = (rng.vec(cols), rng.vec(rows));
            let (x, bias, y) = (put(&gpu, &xs), put(&gpu, &b), poisoned::<f32>(&gpu, rows));
            let plain = Linear::new(&gate_device, Input::Plain(At(&x, 0)), Some(At(&y, 0)));
            let unit = GatedUnit { up: &up_device, up_bias: Some(&bias), gate_scale: 0.7 };
            Linear { gated: Some(unit), activation: Some(Activation::Silu), bias: Some(&bias), ..plain }
                .run(&gpu)
                .unwrap();
            let (g, u) = (crate::linear::reference(&gate, Some(&b), &xs), crate::linear::reference(&up, Some(&b), &xs));
            let expected: Vec<f64> = g.iter().zip(&u).map(|(g, u)| silu_reference(g * f64::from(0.7f32)) * u).collect();
            assert_close(&get(&gpu, &y), &expected, 5e-6, &format!("{dtype} {rows} × {cols}"));
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_embeds() {
    let gpu = gpu();
    let mut rng = Rng::new(15);
    for dtype in DTYPES {
        let (table, positions) = (matrix(&mut rng, 9, 130, dtype), matrix(&mut rng, 4, 130, dtype));
        let [a, b] = [&table, &positions].map(|m| DeviceMatrix::upload(&gpu, m).unwrap());
        let (place, x) = (gpu.upload(&[7u32, 3]).unwrap(), poisoned::<f32>(&gpu, 130));
        Embed { table: &a, positions: Some(&b), place: &place, scale: 2.0, x: At(&x, 0) }.run(&gpu).unwrap();
        let (mut row, mut position) = (nan(130), nan(130));
        table.copy_row(7, &mut row);
        positions.copy_row(3, &mut position);
        let expected: Vec<f64> = row.iter().zip(&position).map(|(&x, &p)| 2.0 * f64::from(x) + f64::from(p)).collect();
        assert_close(&get(&gpu, &x), &expected, 1e-6, "embedding");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_scan_steps_agree() {
    let gpu = gpu();
    let mut rng = Rng::new(16);
    for dtype in DTYPES {
        for (e, n, r, normed) in [
            (1, 1, 1, false),
            (33, 4, 3, true),
            (130, 16, 8, false),
            (64, 16, 160, true),
            (37, 17, 24, false),
            (96, 32, 200, true),
        ] {
            let what = format!("{dtype} E={e} N={n} R={r}");
            let host = matrix(&mut rng, e, r, dtype);
            let weight = DeviceMatrix::upload(&gpu, &host).unwrap();
            let data = ScanData::new(&mut rng, 1, e, n);
            let rates = data.op().a.to_vec();
            let (bias, d, scales) = (rng.vec(e), rng.vec(e), [rng.vec(r), rng.vec(n), rng.vec(n)]);
            let (dt_bias, a, skip) = (put(&gpu, &bias), put(&gpu, &rates), put(&gpu, &d));
            let scale_buffers = scales.each_ref().map(|s| put(&gpu, s));
            let mut h = widened(&rng.vec(e * n));
            let state = put(&gpu, &narrow(&h));
            for _ in 0..2 {
                let (dbcs, xs, zs) = (rng.vec(r + 2 * n), rng.vec(e), rng.vec(e));
                let (dbc, x, z) = (put(&gpu, &dbcs), put(&gpu, &xs), put(&gpu, &zs));
                let [delta, core, gated, norm] = [(); 4].map(|_| poisoned::<f32>(&gpu, e));
                let [key, query] = [(); 2].map(|_| poisoned::<f32>(&gpu, n));
                let norms = normed.then_some(DbcNorms { scales: scale_buffers.each_ref(), eps: 1e-5 });
                ScanStep {
                    dt_weight: &weight,
                    dt_bias: &dt_bias,
                    dbc: &dbc,
                    norms,
                    a: &a,
                    d: &skip,
                    x: At(&x, 0),
                    gate: At(&z, 0),
                    state: &state,
                    delta: At(&delta, 0),
                    key: At(&key, 0),
                    query: At(&query, 0),
                    core: At(&core, 0),
                    gated: At(&gated, 0),
                    state_norm: Some(&norm),
                }
                .run(&gpu)
                .unwrap();
                let mut parts = [(0, r), (r, n), (r + n, n)].map(|(from, len)| dbcs[from..from + len].to_vec());
                if normed {
                    for (part, scale) in parts.iter_mut().zip(&scales) {
                        *part = narrow(&crate::norm::rms_norm_reference(part, scale, 1e-5));
                    }
                }
                let steps: Vec<f64> =
                    crate::linear::reference(&host, Some(&bias), &parts[0]).iter().map(|x| x.exp().ln_1p()).collect();
                let op = crate::SelectiveScan {
                    delta: &narrow(&steps),
                    a: &rates,
                    b: &parts[1],
                    c: &parts[2],
                    x: &xs,
                    d: &d,
                };
                let (mut y, mut norms) = (vec![0.0; e], vec![0.0; e]);
                op.reference(&mut h, &mut y, &mut norms);
                assert_close(&get(&gpu, &delta), &steps, 5e-6, &what);
                assert_close(&get(&gpu, &key), &widened(&parts[1]), 2e-6, &what);
                assert_close(&get(&gpu, &query), &widened(&parts[2]), 2e-6, &what);
                assert_close(&get(&gpu, &core), &y, 2e-5, &what);
                assert_close(&get(&gpu, &norm), &norms, 2e-5, &what);
                assert_close(&get(&gpu, &state), &h, 2e-5, &what);
                y.iter_mut().zip(&zs).for_each(|(y, &z)| *y *= silu_reference(z.into()));
                assert_close(&get(&gpu, &gated), &y, 2e-5, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_ssd_steps_agree() {
    let gpu = gpu();
    let mut rng = Rng::new(17);
    for shape in
        [(1, 1, 1, 1), (4, 2, 3, 2), (3, 5, 9, 1), (2, 64, 64, 1), (4, 16, 40, 4), (6, 64, 128, 2), (1, 3, 256, 1)]
    {
        let (heads, head_dim, n, groups) = shape;
        let e = heads * head_dim;
        let mut s = widened(&rng.vec(e * n));
        let state = put(&gpu, &narrow(&s));
        for _ in 0..2 {
            let data = SsdData::new(&mut rng, 1, shape);
            let (op, zs) = (data.op(), rng.vec(e));
            let [delta, a, b, c, x, d, z] =
                [op.delta, op.a, op.b, op.c, op.x, op.d, &zs].map(|values| put(&gpu, values));
            let (core, gated) = (poisoned::<f32>(&gpu, e), poisoned::<f32>(&gpu, e));
            SsdStep {
                heads,
                head_dim,
                state_dim: n,
                groups,
                delta: At(&delta, 0),
                a: &a,
                d: &d,
                x: At(&x, 0),
                key: At(&b, 0),
                query: At(&c, 0),
                state: &state,
                core: At(&core, 0),
                gate: Some((At(&z, 0), At(&gated, 0))),
            }
            .run(&gpu)
            .unwrap();
            let (mut y, mut norms) = (vec![0.0; e], vec![0.0; heads]);
            op.reference(&mut s, &mut y, &mut norms);
            assert_close(&get(&gpu, &core), &y, 5e-6, &format!("{shape:?}"));
            assert_close(&get(&gpu, &state), &s, 5e-6, &format!("{shape:?}"));
            y.iter_mut().zip(&zs).for_each(|(y, &z)| *y *= silu_reference(z.into()));
            assert_close(&get(&gpu, &gated), &y, 5e-6, &format!("{shape:?}"));
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_attention_steps_agree() {
    let gpu = gpu();
    let mut rng = Rng::new(18);
    for (heads, kv_heads, hd, window, normed) in [
        (1, 1, 4, None, false),
        (4, 2, 64, None, true),
        (6, 2, 36, Some(70), false),
        (10, 2, 128, None, false),
        (8, 8, 80, Some(3), true),
        (2, 1, 256, None, false),
        (5, 5, 128, None, true),
    ] {
        let capacity = 400;
        let (q_len, kv_len, half) = (heads * hd, kv_heads * hd, hd / 4);
        let inv_freq: Vec<f32> = (0..half).map(|j| 10_000f32.powf(-(j as f32) / half as f32)).collect();
        let (q_scale, k_scale) = (rng.vec(hd), rng.vec(hd));
        let rope = Rope::new(inv_freq.clone());
        let (freq, q_norm, k_norm) = (put(&gpu, &inv_freq), put(&gpu, &q_scale), put(&gpu, &k_scale));
        // The cache beyond what is known must not be read.
        let (mut all_keys, mut all_values) = (rng.vec(capacity * kv_len), rng.vec(capacity * kv_len));
        let scratch = poisoned::<f32>(&gpu, AttentionStep::scratch_len(&gpu, heads, kv_heads, hd));
        let counters = gpu.zeros::<u32>(heads).unwrap();
        for position in [0usize, 1, 15, 16, 17, 64, 255, 399] {
            let what = format!("{heads}/{kv_heads} × {hd} at {position}");
            let mut known = [all_keys.clone(), all_values.clone()];
            known.iter_mut().for_each(|kv| kv[position * kv_len..].fill(f32::NAN));
            let [keys, values] = known.each_ref().map(|kv| put(&gpu, kv));
            let (qs, ks, vs) = (rng.vec(q_len), rng.vec(kv_len), rng.vec(kv_len));
            let (q, k, v) = (put(&gpu, &qs), put(&gpu, &ks), put(&gpu, &vs));
            let place = gpu.upload(&[0, position as u32]).unwrap();
            let [q_out, k_out, y, entropy] = [q_len, kv_len, q_len, heads].map(|len| poisoned::<f32>(&gpu, len));
            AttentionStep {
                heads,
                kv_heads,
                head_dim: hd,
                q: At(&q, 0),
                k: At(&k, 0),
                v: At(&v, 0),
                norms: normed.then_some((&q_norm, &k_norm, 1e-5)),
                inv_freq: Some(&freq),
                key_scale: 0.5,
                scale: 0.3,
                window,
                keys: &keys,
                values: &values,
                place: &place,
                q_out: At(&q_out, 0),
                k_out: At(&k_out, 0),
                y: At(&y, 0),
                entropy_bits: At(&entropy, 0),
                scratch: &scratch,
                counters: &counters,
            }
            .run(&gpu)
            .unwrap();
            let mut seen =
                [(qs, &q_scale), (ks.iter().map(|k| 0.5 * k).collect(), &k_scale)].map(|(x, scale)| match normed {
                    true => narrow(&crate::norm::rms_norm_reference(&x, scale, 1e-5)),
                    false => x,
                });
            rope.apply(&mut seen[0], heads, hd, position);
            rope.apply(&mut seen[1], kv_heads, hd, position);
            let at = position * kv_len..(position + 1) * kv_len;
            all_keys[at.clone()].copy_from_slice(&seen[1]);
            all_values[at.clone()].copy_from_slice(&vs);
            let pages = |kv: &[f32]| kv.chunks(PAGE * kv_len).map(<[f32]>::to_vec).collect::<Vec<_>>();
            let (key_pages, value_pages) = (pages(&all_keys[..at.end]), pages(&all_values[..at.end]));
            let [key_pages, value_pages] =
                [&key_pages, &value_pages].map(|p| p.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let op = Attention {
                heads,
                kv_heads,
                head_dim: hd,
                value_dim: hd,
                sinks: 0,
                scale: 0.3,
                window,
                keys: &key_pages,
                values: &value_pages,
                layout: Layout::ByToken,
            };
            let (expected, entropy64) = op.reference(&seen[0], position);
            assert_close(&get(&gpu, &q_out), &widened(&seen[0]), 3e-6, &what);
            assert_close(&get(&gpu, &k_out), &widened(&seen[1]), 3e-6, &what);
            assert_close(&get(&gpu, &y), &expected, 1e-5, &what);
            let bits = get(&gpu, &entropy);
            bits.iter()
                .zip(&entropy64)
                .for_each(|(a, b)| assert!((f64::from(*a) - b).abs() < 1e-4, "{what}: {a} bits, not {b}"));
            let mut stored = nan(kv_len);
            gpu.read(&keys, at.start, &mut stored).unwrap();
            assert_close(&stored, &widened(&seen[1]), 3e-6, &what);
            gpu.read(&values, at.start, &mut stored).unwrap();
            assert_eq!(stored, vs, "{what}");
        }
    }
}

/// 16-bit numbers survive the way to the device as they are.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_halves_are_not_changed() {
    let gpu = gpu();
    let values: Vec<bf16> = (0..100).map(|i| bf16::from_f32(i as f32 * 0.37)).collect();
    assert_eq!(gpu.download(&gpu.upload(&values).unwrap()).unwrap(), values);
    let values: Vec<f16> = (0..100).map(|i| f16::from_f32(i as f32 * 0.37)).collect();
    assert_eq!(gpu.download(&gpu.upload(&values).unwrap()).unwrap(), values);
}
