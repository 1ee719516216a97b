//! Checks each op against its f64 reference, then times it: `cargo bench -p statescope-kernels`.
//!
//! Times are the least of many runs, so that what else the machine does disturbs them little.

use std::time::{Duration, Instant};

use statescope_kernels::{self as kernels, *};

/// Reproducible numbers in [−1, 1).
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        z ^= z << 13;
        z ^= z >> 7;
        z ^= z << 17;
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Between 0.01 and 0.11: steps Δ.
fn steps(n: usize) -> Vec<f32> {
    numbers(n, 77).iter().map(|x| 0.06 + 0.05 * x).collect()
}

/// Between −4 and −0.2: rates A.
fn rates(n: usize) -> Vec<f32> {
    numbers(n, 78).iter().map(|x| -2.1 + 1.9 * x).collect()
}

fn nan(n: usize) -> Vec<f32> {
    vec![f32::NAN; n]
}

fn check(what: &str, actual: &[f32], expected: &[f64]) {
    let scale = expected.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    let error = actual
        .iter()
        .zip(expected)
        .map(|(a, b)| (f64::from(*a) - b).abs())
        .fold(0.0, |m: f64, e| if e <= m { m } else { e });
    assert!(
        actual.len() == expected.len() && error / scale < 1e-5,
        "{what} differs from its reference by {:.2e}",
        error / scale
    );
}

/// Least time of a call.
fn time(mut call: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(300) {
        let now = Instant::now();
        call();
        best = best.min(now.elapsed().as_secs_f64());
    }
    best
}

/// One line of the table; `flop` and `bytes` of a call, `tokens` it handles.
fn report(what: &str, seconds: f64, flop: f64, bytes: f64, tokens: usize) {
    let rate = |amount: f64| {
        if amount > 0.0 { format!("{:.1}", amount / seconds / 1e9) } else { "–".to_owned() }
    };
    println!("| {what} | {:.1} | {} | {} | {:.0} |", seconds * 1e6, rate(flop), rate(bytes), tokens as f64 / seconds);
}

fn linears() {
    for (outputs, inputs) in [(1160, 256), (256, 512), (4096, 2048)] {
        let weights = numbers(outputs * inputs, 1);
        for dtype in Dtype::ALL {
            let w = Matrix::new(outputs, inputs, Elements::F32(weights.clone())).unwrap().to_dtype(dtype);
            for tokens in [1, 16, 256] {
                if tokens > 1 && dtype == Dtype::F16 {
                    continue;
                }
                let (xs, mut ys) = (numbers(tokens * inputs, 2), nan(tokens * outputs));
                linear(&w, None, &xs, &mut ys);
                check("linear", &ys, &kernels::linear::reference(&w, None, &xs));
                let seconds = time(|| linear(&w, None, &xs, &mut ys));
                let what = format!("linear {outputs} × {inputs} {dtype}, T = {tokens}");
                let flop = (2 * outputs * inputs * tokens) as f64;
                report(&what, seconds, flop, if tokens == 1 { w.bytes() as f64 } else { 0.0 }, tokens);
            }
        }
    }
}

fn pointwise() {
    let n = 1 << 16;
    let (xs, ws) = (numbers(n, 3), numbers(512, 4));
    let mut out = nan(n);
    rms_norm(&xs, &ws, 1e-5, &mut out);
    check("rms_norm", &out, &kernels::norm::rms_norm_reference(&xs, &ws, 1e-5));
    report("rms_norm, 128 × 512", time(|| rms_norm(&xs, &ws, 1e-5, &mut out)), 0.0, (8 * n) as f64, 128);
    layer_norm(&xs, &ws, None, 1e-5, &mut out);
    check("layer_norm", &out, &kernels::norm::layer_norm_reference(&xs, &ws, None, 1e-5));
    report("layer_norm, 128 × 512", time(|| layer_norm(&xs, &ws, None, 1e-5, &mut out)), 0.0, (8 * n) as f64, 128);
    gated_group_rms_norm(&xs, &xs, &ws, 1, 1e-5, &mut out, None);
    check("gated norm", &out, &kernels::norm::gated_group_rms_norm_reference(&xs, &xs, &ws, 1, 1e-5).0);
    report(
        "gated_group_rms_norm, 128 × 512",
        time(|| gated_group_rms_norm(&xs, &xs, &ws, 1, 1e-5, &mut out, None)),
        0.0,
        (12 * n) as f64,
        128,
    );
    let mut ys = xs.clone();
    exp_slice(&mut ys);
    check("exp", &ys, &xs.iter().map(|&x| f64::from(x).exp()).collect::<Vec<_>>());
    let mut again = |slice: fn(&mut [f32])| {
        time(|| {
            ys.copy_from_slice(&xs);
            slice(&mut ys);
        })
    };
    report("exp_slice, 65 536", again(exp_slice), 0.0, (8 * n) as f64, n);
    report("gelu_slice, 65 536", again(gelu_slice), 0.0, (8 * n) as f64, n);
    report("silu_slice, 65 536", again(silu_slice), 0.0, (8 * n) as f64, n);
    report("softplus_slice, 65 536", again(softplus_slice), 0.0, (8 * n) as f64, n);

    for tokens in [1, 256] {
        let (xs, w, mut history) = (numbers(tokens * 640, 5), numbers(640 * 4, 6), vec![0.0; 640 * 3]);
        let mut out = nan(tokens * 640);
        let truth = kernels::conv::reference(&xs, &w, None, &history);
        causal_conv(&xs, &w, None, &mut history, &mut out);
        check("conv", &out, &truth);
        let seconds = time(|| causal_conv(&xs, &w, None, &mut history, &mut out));
        report(&format!("causal_conv, C 640, K 4, T = {tokens}"), seconds, (8 * tokens * 640) as f64, 0.0, tokens);
    }
}

fn recurrences() {
    for tokens in [1, 256] {
        let (e, n) = (512, 16);
        let (delta, a, d) = (steps(tokens * e), rates(e * n), numbers(e, 7));
        let (b, c, x) = (numbers(tokens * n, 8), numbers(tokens * n, 9), numbers(tokens * e, 10));
        let op = SelectiveScan { delta: &delta, a: &a, b: &b, c: &c, x: &x, d: &d };
        let (mut state, mut y) = (vec![0.0; e * n], nan(tokens * e));
        op.forward(&mut state, &mut y, None);
        let mut truth = vec![0.0; tokens * e];
        op.reference(&mut vec![0.0; e * n], &mut truth, &mut vec![0.0; tokens * e]);
        check("scan", &y, &truth);
        report(
            &format!("selective scan, E 512, N 16, T = {tokens}"),
            time(|| op.forward(&mut state, &mut y, None)),
            0.0,
            0.0,
            tokens,
        );
        report(&format!("— state alone, T = {tokens}"), time(|| op.fold(&mut state)), 0.0, 0.0, tokens);
    }
    for (tokens, n) in [(1, 64), (256, 64), (256, 128)] {
        let (heads, head_dim) = (8, 64);
        let (delta, a, d) = (steps(tokens * heads), rates(heads), numbers(heads, 7));
        let (b, c, x) = (numbers(tokens * n, 8), numbers(tokens * n, 9), numbers(tokens * heads * head_dim, 10));
        let op = Ssd { heads, head_dim, state_dim: n, groups: 1, delta: &delta, a: &a, b: &b, c: &c, x: &x, d: &d };
        let (mut state, mut y) = (vec![0.0; heads * head_dim * n], nan(x.len()));
        op.forward(&mut state, &mut y);
        let mut truth = vec![0.0; x.len()];
        op.reference(&mut vec![0.0; state.len()], &mut truth, &mut vec![0.0; tokens * heads]);
        check("ssd", &y, &truth);
        let flop = (tokens * heads * head_dim * n * 5) as f64;
        report(
            &format!("ssd, H 8, P 64, N {n}, T = {tokens}"),
            time(|| op.forward(&mut state, &mut y)),
            flop,
            0.0,
            tokens,
        );
        report(&format!("— state alone, T = {tokens}"), time(|| op.fold(&mut state)), 0.0, 0.0, tokens);
    }
    for tokens in [1, 256] {
        let (key_heads, heads, key_dim, head_dim) = (4, 8, 64, 64);
        let [mut q, mut k] = [8, 9].map(|seed| numbers(tokens * key_heads * key_dim, seed));
        l2_normalise(&mut q, key_dim, 1e-6, 0.125);
        l2_normalise(&mut k, key_dim, 1e-6, 1.0);
        let v = numbers(tokens * heads * head_dim, 10);
        let beta = steps(tokens * heads);
        let log_decay: Vec<f32> = beta.iter().map(|x| -x).collect();
        let op =
            DeltaRule { key_heads, heads, key_dim, head_dim, q: &q, k: &k, v: &v, log_decay: &log_decay, beta: &beta };
        let (mut state, mut y) = (vec![0.0; heads * head_dim * key_dim], nan(v.len()));
        op.forward(&mut state, &mut y);
        let mut truth = vec![0.0; v.len()];
        op.reference(&mut vec![0.0; state.len()], &mut truth);
        check("delta rule", &y, &truth);
        let flop = (tokens * heads * head_dim * key_dim * 7) as f64;
        let seconds = time(|| op.forward(&mut state, &mut y));
        report(&format!("delta rule, H 4/8, 64 × 64, T = {tokens}"), seconds, flop, 0.0, tokens);
    }
}

fn attentions() {
    for (first, tokens) in [(511, 1), (0, 512)] {
        let (heads, kv_heads, head_dim) = (4, 2, 64);
        let [k, v] = [11, 12].map(|seed| numbers(512 * kv_heads * head_dim, seed));
        let (keys, values): (Vec<_>, Vec<_>) = (k.chunks(PAGE * 128).collect(), v.chunks(PAGE * 128).collect());
        let op = Attention {
            heads,
            kv_heads,
            head_dim,
            value_dim: head_dim,
            sinks: 0,
            scale: 0.125,
            window: None,
            keys: &keys,
            values: &values,
            layout: Layout::ByToken,
        };
        let q = numbers(tokens * heads * head_dim, 13);
        let mut y = nan(q.len());
        op.forward(&q, first, &mut y, None);
        check("attention", &y, &op.reference(&q, first).0);
        let flop = (4 * heads * head_dim * (first + tokens / 2 + 1) * tokens) as f64;
        report(
            &format!("attention, H 4/2 × 64, {tokens} queries at {first}"),
            time(|| op.forward(&q, first, &mut y, None)),
            flop,
            0.0,
            tokens,
        );
    }
}

fn mixing() {
    let (tokens, n) = (512, 64);
    let (delta, a) = (steps(tokens), rates(n));
    let (q, k) = (numbers(tokens * n, 14), numbers(tokens * n, 15));
    let read = |data| Strided { data, stride: n, offset: 0, width: n };
    let log = Strided { data: &delta, stride: 1, offset: 0, width: 1 };
    let decays: Vec<f32> = delta.iter().map(|x| -0.1 * x).collect();
    let forget = Strided { data: &decays, ..log };
    for (name, weight, decay) in [
        ("scalar", Some(log), Decay::Scalar { log, factor: -0.05 }),
        ("diagonal", Some(log), Decay::Diagonal { log, rates: &a }),
        ("delta", None, Decay::Delta { log: forget, beta: log }),
    ] {
        let lowered = Lowered::Recurrent(Recurrent {
            weight,
            decay,
            diagonal: 1.0,
            ..Recurrent::new(tokens, read(&q), read(&k))
        });
        let mut all = nan(tokens * tokens);
        lowered.rows(0..tokens, &mut all);
        check("mixing", &all[(tokens - 1) * tokens..], &lowered.reference_row(tokens - 1));
        let mut row = nan(tokens);
        report(&format!("mixing {name}, N 64, row 511"), time(|| lowered.row(tokens - 1, &mut row)), 0.0, 0.0, 1);
        report(
            &format!("mixing {name}, N 64, 512 × 512"),
            time(|| lowered.rows(0..tokens, &mut all)),
            0.0,
            0.0,
            tokens,
        );
    }
}

/// One token through eight Mamba-2 layers of a 4.5 M-parameter model, all that is arithmetic.
fn decode() {
    let (layers, d, e, heads, head_dim, n) = (8, 256, 512, 8, 64, 64);
    let (projected, convolved) = (2 * e + 2 * n + heads, e + 2 * n);
    let matrix = |rows, cols, seed| {
        let scaled = numbers(rows * cols, seed).iter().map(|x| x * 0.1).collect();
        Matrix::new(rows, cols, Elements::F32(scaled)).unwrap().to_dtype(Dtype::Bf16)
    };
    let weights: Vec<_> = (0..layers).map(|i| (matrix(projected, d, 20 + i), matrix(d, e, 40 + i))).collect();
    let (norm, gate_norm, taps, a, skip) =
        (vec![1.0; d], vec![1.0; e], numbers(convolved * 4, 16), rates(heads), vec![1.0; heads]);
    let mut states = vec![(vec![0.0; heads * head_dim * n], vec![0.0; convolved * 3]); layers as usize];
    let (mut resid, mut normed, mut p, mut conv) = (numbers(d, 17), nan(d), nan(projected), nan(convolved));
    let (mut y, mut gated, mut out) = (nan(e), nan(e), nan(d));
    let mut token = || {
        for ((w_in, w_out), (state, history)) in weights.iter().zip(&mut states) {
            rms_norm(&resid, &norm, 1e-5, &mut normed);
            linear(w_in, None, &normed, &mut p);
            let (z, rest) = p.split_at_mut(e);
            let (xbc, delta) = rest.split_at_mut(convolved);
            causal_conv(xbc, &taps, None, history, &mut conv);
            silu_slice(&mut conv);
            softplus_slice(delta);
            let (x, b, c) = (&conv[..e], &conv[e..e + n], &conv[e + n..]);
            Ssd { heads, head_dim, state_dim: n, groups: 1, delta, a: &a, b, c, x, d: &skip }.forward(state, &mut y);
            gated_group_rms_norm(&y, z, &gate_norm, 1, 1e-5, &mut gated, None);
            linear(w_out, None, &gated, &mut out);
            resid.iter_mut().zip(&out).for_each(|(r, o)| *r = 0.5 * *r + o);
        }
    };
    let seconds = time(&mut token);
    assert!(resid.iter().all(|x| x.is_finite()));
    let bytes: usize = weights.iter().map(|(a, b)| a.bytes() + b.bytes()).sum();
    report("decode, 8 Mamba-2 layers of d 256, bf16", seconds, 0.0, bytes as f64, 1);
}

/// The value that follows `name` on the command line.
fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

/// Options: --threads N, --only GROUP.
fn main() {
    if let Some(threads) = option("--threads") {
        set_threads(threads.parse().expect("--threads N"));
    }
    let only = option("--only");
    println!("threads: {}\n", par::threads());
    println!("| op | µs | GFLOP/s | GB/s | tokens/s |\n|---|---:|---:|---:|---:|");
    let groups: [(&str, fn()); 6] = [
        ("linear", linears),
        ("pointwise", pointwise),
        ("recurrence", recurrences),
        ("attention", attentions),
        ("mixing", mixing),
        ("decode", decode),
    ];
    for (name, group) in groups {
        if only.as_deref().is_none_or(|only| only == name) {
            group();
        }
    }
}
