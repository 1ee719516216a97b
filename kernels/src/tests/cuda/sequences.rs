//! Ops over many tokens: norms, convolution, scan, SSD.

use half::{bf16, f16};

use super::super::recurrences::{ScanData, SsdData};
use super::*;
use crate::activation::silu_reference;
use crate::cuda::{At, Conv, DeviceMatrix, Gating, Gemm, Norm, Scan, ScanProbes, conv, conv_product};
use crate::{Dtype, Elements, Matrix, SelectiveScan, Ssd, cuda};

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_norms_agree() {
    let gpu = gpu();
    let mut rng = Rng::new(3);
    let shapes = [(1, 1, 1), (3, 33, 1), (2, 2560, 1), (5, 96, 3), (2, 1030, 2), (3, 1040, 2), (2, 8192, 1)];
    for (rows, width, groups) in shapes {
        let (xs, zs, w, b) = (rng.vec(rows * width), rng.vec(rows * width), rng.vec(width), rng.vec(width));
        let (x, z, weight, bias) = (put(&gpu, &xs), put(&gpu, &zs), put(&gpu, &w), put(&gpu, &b));
        for gating in [Gating::None, Gating::Before(At(&z, 0), w.len()), Gating::After(At(&z, 0), w.len())] {
            let (y, rho) = (poisoned::<f32>(&gpu, xs.len()), poisoned::<f32>(&gpu, rows * groups));
            let plain = Norm::rms(rows, At(&x, 0), &weight, 1e-5, At(&y, 0));
            let norm = Norm { gating, groups, rho: Some(&rho), ..plain };
            norm.run(&gpu).unwrap();
            use crate::norm::*;
            let (expected, scales) = match gating {
                Gating::Before(..) => gated_group_rms_norm_reference(&xs, &zs, &w, groups, 1e-5),
                Gating::After(..) => group_rms_norm_gated_reference(&xs, &zs, &w, groups, 1e-5),
                Gating::None if groups == 1 => (rms_norm_reference(&xs, &w, 1e-5), Vec::new()),
                Gating::None => continue,
            };
            assert_close(&get(&gpu, &y), &expected, 2e-6, &format!("{gating:?} {width}"));
            if !scales.is_empty() {
                assert_close(&get(&gpu, &rho), &scales, 2e-6, "rho");
            }
            let y = poisoned::<bf16>(&gpu, xs.len());
            if matches!(gating, Gating::None) {
                Norm::rms(rows, At(&x, 0), &weight, 1e-5, At(&y, 0)).run(&gpu).unwrap();
                let expected = rms_norm_reference(&xs, &w, 1e-5);
                if groups == 1 {
                    assert_close(&get(&gpu, &y), &expected, bf16::ERROR, &format!("norm to bf16, {width}"));
                }
            }
        }
        let y = poisoned::<f32>(&gpu, xs.len());
        let plain = Norm::rms(rows, At(&x, 0), &weight, 1e-5, At(&y, 0));
        let layer = Norm { bias: Some(&bias), layer: true, ..plain };
        layer.run(&gpu).unwrap();
        let expected = crate::norm::layer_norm_reference(&xs, &w, Some(&b), 1e-5);
        assert_close(&get(&gpu, &y), &expected, 2e-6, "layer norm");
    }
}

fn check_conv<T: Float>(gpu: &Gpu) {
    let mut rng = Rng::new(4);
    for tokens in LENGTHS {
        for (channels, taps) in [(1, 1), (5, 2), (130, 4), (7, 3), (520, 3), (1032, 4), (64, 4), (320, 4)] {
            let (w, b, before) = (rng.vec(channels * taps), rng.vec(channels), rng.vec(channels * (taps - 1)));
            // A part of wider rows.
            let (from, stride) = (8, channels + 16);
            let (x, xs) = rounded::<T>(gpu, &rng.vec(tokens * stride));
            let xs: Vec<f32> = xs.chunks_exact(stride).flat_map(|row| &row[from..from + channels]).copied().collect();
            let (weight, bias, history) = (put(gpu, &w), put(gpu, &b), put(gpu, &before));
            for (bias, silu) in [(Some(&bias), true), (None, false)] {
                let what = format!("conv {tokens} {channels} {taps}");
                let (after, y) = (poisoned::<f32>(gpu, before.len()), poisoned::<T>(gpu, xs.len()));
                let op = Conv { weight: &weight, bias, history: (&history, &after), channels, silu };
                conv(gpu, op, At(&x, from), stride, tokens, &y).unwrap();
                let mut expected = crate::conv::reference(&xs, &w, bias.map(|_| &b[..]), &before);
                if silu {
                    expected.iter_mut().for_each(|y| *y = silu_reference(*y));
                }
                assert_close(&get(gpu, &y), &expected, T::ERROR, &what);
                let all: Vec<f32> = before.iter().chain(&xs).copied().collect();
                assert_eq!(get(gpu, &after), all[all.len() - before.len()..], "history: {what}");
                // Piece after piece.
                let (cut, mut pieces) = (tokens / 3, Vec::new());
                let (middle, after) = (poisoned::<f32>(gpu, before.len()), poisoned::<f32>(gpu, before.len()));
                for (start, end, memory) in [(0, cut, (&history, &middle)), (cut, tokens, (&middle, &after))] {
                    let count = end - start;
                    if count == 0 {
                        continue;
                    }
                    // Of an empty first piece nothing is left.
                    let memory = if start == 0 { (&history, memory.1) } else { memory };
                    let y = poisoned::<T>(gpu, count * channels);
                    conv(gpu, Conv { history: memory, ..op }, At(&x, from + start * stride), stride, count, &y)
                        .unwrap();
                    pieces.extend(get(gpu, &y));
                }
                assert_eq!(bits(&pieces), bits(&get(gpu, &y)), "in pieces: {what}");
            }
        }
    }
}

/// The product made beside the convolution is that of the two ops alone.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_conv_with_a_product_is_both_ops() {
    let gpu = gpu();
    let mut rng = Rng::new(9);
    let few = LENGTHS.map(|tokens| (tokens, 192, 40));
    let others = [
        (129, 64, 8),
        (300, 320, 192),
        (130, 128, 136),
        (70, 128, 200),
        (70, 130, 16),
        (8600, 128, 160),
        (16_400, 64, 24),
    ];
    for (tokens, channels, rows) in few.into_iter().chain(others) {
        let what = format!("{tokens} × {channels} to {rows}");
        let (stride, weights) = (channels + 24, rng.vec(rows * channels));
        let host = Matrix::new(rows, channels, Elements::F32(weights)).unwrap().to_dtype(Dtype::Bf16);
        let matrix = DeviceMatrix::upload(&gpu, &host).unwrap();
        let (w, b, before) = (rng.vec(channels * 4), rng.vec(channels), rng.vec(channels * 3));
        let (x, _) = rounded::<bf16>(&gpu, &rng.vec(tokens * stride));
        let (weight, bias, history) = (put(&gpu, &w), put(&gpu, &b), put(&gpu, &before));
        let run = |with_product: bool| {
            let after = poisoned::<f32>(&gpu, before.len());
            let (y, made) = (poisoned::<bf16>(&gpu, tokens * channels), poisoned::<bf16>(&gpu, tokens * rows));
            let op = Conv { weight: &weight, bias: Some(&bias), history: (&history, &after), channels, silu: true };
            if with_product {
                conv_product(&gpu, op, At(&x, 16), stride, tokens, &y, (&matrix, &made)).unwrap();
            } else {
                conv(&gpu, op, At(&x, 16), stride, tokens, &y).unwrap();
                Gemm { y: Some(&made), ..Gemm::new(tokens, &matrix, At(&y, 0)) }.run(&gpu).unwrap();
            }
            [bits(&get(&gpu, &y)), bits(&get(&gpu, &made)), bits(&get(&gpu, &after))]
        };
        let (both, alone) = (run(true), run(false));
        assert_eq!(both, alone, "{what}");
        let of_x: Vec<f32> = both[0].iter().map(|&bits| f32::from_bits(bits)).collect();
        let product: Vec<f32> = both[1].iter().map(|&bits| f32::from_bits(bits)).collect();
        assert_close(&product, &crate::linear::reference(&host, None, &of_x), bf16::ERROR, &what);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_conv_agrees() {
    let gpu = gpu();
    check_conv::<f32>(&gpu);
    check_conv::<bf16>(&gpu);
    check_conv::<f16>(&gpu);
}

fn check_scan<T: Float>(gpu: &Gpu, tokens: usize, (e, n): (usize, usize), packed: bool, probes: bool) {
    let what = format!("{} scan T={tokens} E={e} N={n}", T::NAME);
    let mut rng = Rng::new(5 + tokens as u64);
    let data = ScanData::new(&mut rng, tokens, e, n);
    let op = data.op();
    // Δ before softplus, as the projection makes it.
    let raw: Vec<f32> = op.delta.iter().map(|d| d.exp_m1().ln() - 0.25).collect();
    let ((delta, raw), (x, xs)) = (rounded::<T>(gpu, &raw), rounded::<T>(gpu, op.x));
    let zs = rng.vec(tokens * e);
    let (z, zs) = rounded::<T>(gpu, &zs);
    let bc: Vec<f32> = op.b.chunks(n).zip(op.c.chunks(n)).flat_map(|(b, c)| [b, c].concat()).collect();
    let (bc, bcs) = rounded::<T>(gpu, &bc);
    let half = |from: usize| bcs.chunks(2 * n).flat_map(|row| row[from..from + n].to_vec()).collect::<Vec<f32>>();
    let (bs, cs) = (half(0), half(n));
    let (b, _) = rounded::<T>(gpu, &bs);
    let (c, _) = rounded::<T>(gpu, &cs);
    let start = rng.vec(e * n);
    let (a, d, bias, state) = (put(gpu, op.a), put(gpu, op.d), put(gpu, &vec![0.25; e]), put(gpu, &start));
    let y = poisoned::<T>(gpu, tokens * e);
    let (norms, steps) = (poisoned::<f32>(gpu, tokens * e), poisoned::<f32>(gpu, tokens * e));
    Scan {
        tokens,
        channels: e,
        groups: 1,
        delta: At(&delta, 0),
        delta_stride: e,
        delta_bias: Some(&bias),
        softplus: true,
        a: &a,
        b: if packed { At(&bc, 0) } else { At(&b, 0) },
        c: if packed { At(&bc, n) } else { At(&c, 0) },
        bc_stride: if packed { 2 * n } else { n },
        x: At(&x, 0),
        x_stride: e,
        d: Some(&d),
        gate: Some((At(&z, 0), e)),
        state: &state,
        y: &y,
        core: None,
        probes: ScanProbes { delta: probes.then_some(&steps), state_norm: probes.then_some(&norms) },
    }
    .run(gpu)
    .unwrap();
    let softplus: Vec<f32> = raw.iter().map(|r| (f64::from(*r) + 0.25).exp().ln_1p() as f32).collect();
    let reference = SelectiveScan { delta: &softplus, a: op.a, b: &bs, c: &cs, x: &xs, d: op.d };
    let (mut h, mut expected, mut norms64) = (widened(&start), vec![0.0; tokens * e], vec![0.0; tokens * e]);
    reference.reference(&mut h, &mut expected, &mut norms64);
    expected.iter_mut().zip(&zs).for_each(|(y, &z)| *y *= silu_reference(z.into()));
    assert_close(&get(gpu, &y), &expected, T::ERROR, &what);
    assert_close(&get(gpu, &state), &h, 2e-5, &what);
    if probes {
        assert_close(&get(gpu, &norms), &norms64, 2e-5, &what);
        assert_close(&get(gpu, &steps), &widened(&softplus), 2e-6, &what);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_scan_agrees() {
    let gpu = gpu();
    for tokens in LENGTHS {
        for (i, shape) in
            [(1, 1), (5, 4), (65, 16), (64, 16), (160, 16), (3, 17), (20, 64), (16, 8)].into_iter().enumerate()
        {
            for probes in [false, true] {
                check_scan::<f32>(&gpu, tokens, shape, i % 2 == 0, probes);
                check_scan::<bf16>(&gpu, tokens, shape, i % 2 == 1, probes);
                check_scan::<f16>(&gpu, tokens, shape, i % 2 == 0, probes);
            }
        }
    }
}

/// More channels than multiprocessors take in one round: some texts are begun by one and ended by another.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_scan_of_many_channels_agrees() {
    let gpu = gpu();
    let channels = 32 * (gpu.processors() as usize + 5) + 2;
    // As many that fewer of them, in more lanes each, pay.
    let fewer = 16 * (gpu.processors() as usize + 5) + 2;
    for tokens in [1, 33, 150] {
        for channels in [channels, fewer] {
            check_scan::<bf16>(&gpu, tokens, (channels, 16), true, false);
            check_scan::<f32>(&gpu, tokens, (channels, 16), true, tokens == 150);
        }
        check_scan::<f16>(&gpu, tokens, (channels, 7), true, true);
    }
}

/// Groups of B and C are scans side by side.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_scan_of_groups_is_scans_side_by_side() {
    let gpu = gpu();
    let (tokens, groups, width, n) = (70, 3, 24, 16);
    let mut rng = Rng::new(6);
    let e = groups * width;
    let [delta, x] = [0, 1].map(|_| rng.log_uniform(tokens * e, 1e-3, 1.0));
    let [b, c] = [0, 1].map(|_| rng.vec(tokens * groups * n));
    let rates: Vec<f32> = rng.log_uniform(e * n, 0.5, 16.0).iter().map(|a| -a).collect();
    let run = |from: usize, channels: usize, groups_here: usize| {
        let group = from / width;
        let (delta, x, b, c) = (put(&gpu, &delta), put(&gpu, &x), put(&gpu, &b), put(&gpu, &c));
        let (a, state) = (put(&gpu, &rates[from * n..(from + channels) * n]), gpu.zeros(channels * n).unwrap());
        let y = poisoned::<f32>(&gpu, tokens * channels);
        Scan {
            tokens,
            channels,
            groups: groups_here,
            delta: At(&delta, from),
            delta_stride: e,
            delta_bias: None,
            softplus: false,
            a: &a,
            b: At(&b, group * n),
            c: At(&c, group * n),
            bc_stride: groups * n,
            x: At(&x, from),
            x_stride: e,
            d: None,
            gate: None,
            state: &state,
            y: &y,
            core: None,
            probes: ScanProbes::default(),
        }
        .run(&gpu)
        .unwrap();
        get(&gpu, &y)
    };
    let all = run(0, e, groups);
    for group in 0..groups {
        let one = run(group * width, width, 1);
        for (t, row) in one.chunks(width).enumerate() {
            assert_eq!(bits(row), bits(&all[t * e + group * width..][..width]), "token {t} of group {group}");
        }
    }
}

fn check_ssd<T: Float>(gpu: &Gpu, tokens: usize, shape: (usize, usize, usize, usize), error: f64) {
    check_ssd_of::<T>(gpu, tokens, shape, true, error);
}

/// Without softplus some steps are a little below zero.
fn check_ssd_of<T: Float>(gpu: &Gpu, tokens: usize, shape: (usize, usize, usize, usize), softplus: bool, error: f64) {
    let (heads, head_dim, n, groups) = shape;
    let what = format!("{} ssd T={tokens} {shape:?} softplus {softplus}", T::NAME);
    let mut rng = Rng::new(7 + tokens as u64);
    let data = SsdData::new(&mut rng, tokens, shape);
    let op = data.op();
    let raw: Vec<f32> = op.delta.iter().map(|d| if softplus { d.exp_m1().ln() } else { *d } - 0.25).collect();
    let ((delta, raw), (x, xs)) = (rounded::<T>(gpu, &raw), rounded::<T>(gpu, op.x));
    let ((b, bs), (c, cs)) = (rounded::<T>(gpu, op.b), rounded::<T>(gpu, op.c));
    let start = rng.vec(data.state_len());
    let (a, d, bias, state) = (put(gpu, op.a), put(gpu, op.d), put(gpu, &vec![0.25; heads]), put(gpu, &start));
    let y = poisoned::<T>(gpu, xs.len());
    let run = cuda::Ssd {
        tokens,
        heads,
        head_dim,
        state_dim: n,
        groups,
        delta: At(&delta, 0),
        delta_stride: heads,
        delta_bias: Some(&bias),
        softplus,
        delta_limit: (if softplus { 0.0 } else { f32::NEG_INFINITY }, f32::INFINITY),
        a: &a,
        b: At(&b, 0),
        c: At(&c, 0),
        bc_stride: groups * n,
        x: At(&x, 0),
        x_stride: heads * head_dim,
        d: Some(&d),
        state: &state,
        y: &y,
    };
    let scratch = poisoned::<f32>(gpu, run.scratch_len(gpu));
    run.run(gpu, &scratch).unwrap();
    let step = |r: &f32| f64::from(*r) + 0.25;
    let steps: Vec<f32> = raw.iter().map(|r| if softplus { step(r).exp().ln_1p() } else { step(r) } as f32).collect();
    let reference = Ssd { delta: &steps, b: &bs, c: &cs, x: &xs, ..op };
    let (mut s, mut expected, mut norms) = (widened(&start), vec![0.0; xs.len()], vec![0.0; raw.len()]);
    reference.reference(&mut s, &mut expected, &mut norms);
    assert_close(&get(gpu, &y), &expected, error, &what);
    assert_close(&get(gpu, &state), &s, error, &what);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_ssd_recurrence_agrees() {
    let gpu = gpu();
    for tokens in LENGTHS {
        for shape in
            [(1, 1, 1, 1), (4, 2, 3, 2), (3, 5, 9, 1), (2, 64, 32, 1), (4, 16, 40, 4), (2, 20, 128, 2), (1, 33, 256, 1)]
        {
            check_ssd::<f32>(&gpu, tokens, shape, 2e-5);
            check_ssd::<bf16>(&gpu, tokens, shape, 4e-3);
            check_ssd::<f16>(&gpu, tokens, shape, 6e-4);
        }
    }
}

/// Products of 16-bit numbers: what rounding x, the scores and the state costs; and of f32. Heads that fill no pair, groups of one, and
/// more of them than blocks fit.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_ssd_chunks_agree() {
    let gpu = gpu();
    for tokens in LENGTHS.into_iter().chain([1000, 2050]) {
        for shape in [(2, 64, 64, 1), (4, 64, 128, 2), (3, 64, 128, 1), (2, 64, 128, 2)] {
            check_ssd::<bf16>(&gpu, tokens, shape, 1.2e-2);
            check_ssd::<f16>(&gpu, tokens, shape, 2e-3);
            check_ssd::<f32>(&gpu, tokens, shape, 4e-6);
            // Of such steps the kernels for Hopper take no logarithm: those beside them do it.
            check_ssd_of::<bf16>(&gpu, tokens, shape, false, 1.2e-2);
            check_ssd_of::<f16>(&gpu, tokens, shape, false, 2e-3);
        }
    }
    for shape in [(405, 64, 64, 3), (270, 64, 128, 1)] {
        check_ssd::<bf16>(&gpu, 150, shape, 1.2e-2);
        check_ssd::<f16>(&gpu, 150, shape, 2e-3);
        check_ssd::<f32>(&gpu, 150, shape, 4e-6);
    }
}
