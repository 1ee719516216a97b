//! One token through whole models of public shapes with random bf16 weights, as one replayed graph: what decoding costs without sampling
//! and without a text. Every layer's recorded quantities stay on the device; one variant copies those of one layer to the host.

use statescope_kernels::cuda::{
    At, AttentionStep, Buffer, Convolved, DeviceMatrix, Embed, GatedUnit, Gpu, Input, Linear, Result, ScanStep, SsdStep,
};
use statescope_kernels::{Activation, Elements, Matrix};

use crate::{halves, median};

fn matrix(gpu: &Gpu, rows: usize, cols: usize, seed: u64) -> Result<DeviceMatrix> {
    let elements = Elements::Bf16(halves(rows * cols, seed, 1.5 / (cols as f32).sqrt()));
    DeviceMatrix::upload(gpu, &Matrix::new(rows, cols, elements).expect("rows × cols elements"))
}

fn filled(gpu: &Gpu, len: usize, value: f32) -> Result<Buffer<f32>> {
    gpu.upload(&vec![value; len])
}

enum Layer {
    Mamba1 {
        in_proj: DeviceMatrix,
        x_proj: DeviceMatrix,
        dt_proj: DeviceMatrix,
        out_proj: DeviceMatrix,
        a: Buffer<f32>,
    },
    Mamba2 {
        in_proj: DeviceMatrix,
        out_proj: DeviceMatrix,
    },
    Transformer {
        qkv: DeviceMatrix,
        o_proj: DeviceMatrix,
        gate: DeviceMatrix,
        up: DeviceMatrix,
        down: DeviceMatrix,
    },
}

struct Shape {
    name: &'static str,
    kind: u8,
    d: usize,
    layers: usize,
    vocab: usize,
    /// Mamba-1: R; Mamba-2: H; transformer: H.
    third: usize,
    /// Mamba: N; transformer: MLP width.
    fourth: usize,
}

const SHAPES: [Shape; 6] = [
    Shape { name: "mamba-130m", kind: 1, d: 768, layers: 24, vocab: 50_280, third: 48, fourth: 16 },
    Shape { name: "mamba2-130m", kind: 2, d: 768, layers: 24, vocab: 50_288, third: 24, fourth: 128 },
    Shape { name: "transformer of 125M", kind: 3, d: 768, layers: 12, vocab: 50_280, third: 12, fourth: 2048 },
    Shape { name: "mamba-2.8b", kind: 1, d: 2560, layers: 64, vocab: 50_280, third: 160, fourth: 16 },
    Shape { name: "mamba2-2.7b", kind: 2, d: 2560, layers: 64, vocab: 50_288, third: 80, fourth: 128 },
    Shape { name: "transformer of 2.7B", kind: 3, d: 2560, layers: 32, vocab: 50_280, third: 32, fourth: 6912 },
];

const CONTEXT: usize = 2048;

pub fn all(gpu: &Gpu) -> Result<()> {
    SHAPES.iter().try_for_each(|shape| model(gpu, shape))
}

fn model(gpu: &Gpu, shape: &Shape) -> Result<()> {
    let &Shape { kind, d, third, fourth: n, .. } = shape;
    let e = 2 * d;
    let embeddings = matrix(gpu, shape.vocab, d, 99)?;
    let (mut layers, mut weights) = (Vec::new(), 2 * shape.vocab * d);
    for layer in 0..shape.layers {
        let m = |rows: usize, cols: usize, i: usize| {
            weights += 2 * rows * cols;
            matrix(gpu, rows, cols, (layer * 8 + i) as u64)
        };
        layers.push(made(gpu, shape, m)?);
    }
    let head_dim = if kind == 3 { d / third } else { 64 };
    let conv_dim = if kind == 1 { e } else { e + 2 * n };
    let [projected, convolved, activated, delta, core, gated] =
        [2 * conv_dim + e + third, conv_dim, conv_dim, e, e, e].map(|len| gpu.zeros(len));
    let (projected, convolved, activated, delta, core, gated) =
        (projected?, convolved?, activated?, delta?, core?, gated?);
    let (dbc, key, query) = (gpu.zeros(third + 2 * n)?, gpu.zeros(n)?, gpu.zeros(n)?);
    let (x, logits, hidden) = (gpu.zeros(d)?, gpu.zeros(shape.vocab)?, gpu.zeros(n.max(e))?);
    let (ones, bias, steps_bias) = (filled(gpu, e.max(d), 1.0)?, filled(gpu, conv_dim, 0.1)?, filled(gpu, e, -4.0)?);
    let (head_bias, head_delta) = (filled(gpu, third, -4.0)?, gpu.zeros::<f32>(third)?);
    let (rates, taps) = (filled(gpu, third, -1.0)?, filled(gpu, 4 * conv_dim, 0.25)?);
    let width = if kind == 3 { d } else { 1 };
    let (q_out, k_out, entropy) = (gpu.zeros(d)?, gpu.zeros(d)?, gpu.zeros(third)?);
    let place = gpu.upload(&[17u32, CONTEXT as u32 - 1])?;
    let scratch = gpu.zeros(if kind == 3 { AttentionStep::scratch_len(gpu, third, third, head_dim) } else { 1 })?;
    let counters = gpu.zeros(third)?;
    let freq = filled(gpu, head_dim / 2, 0.01)?;
    let mut memories = Vec::new();
    for _ in &layers {
        let state = gpu.zeros(if kind == 3 { CONTEXT * width } else { e * n })?;
        memories.push((state, gpu.zeros::<f32>(if kind == 3 { CONTEXT * width } else { 3 * conv_dim })?));
    }
    let (norm, groups, eps) = (&ones, 1, 1e-5);
    let rms = |x, weight| Input::Rms { x: At(x, 0), weight, groups, eps };
    let norm_d = filled(gpu, d, 1.0)?;
    let token = || -> Result<()> {
        Embed { table: &embeddings, positions: None, place: &place, scale: 1.0, x: At(&x, 0) }.run(gpu)?;
        for (layer, (state, history)) in layers.iter().zip(&memories) {
            let added = |weight, input| Linear {
                residual: Some((At(&x, 0), At(&x, 0))),
                ..Linear::new(weight, input, Some(At(&hidden, 0)))
            };
            let conv = |from| Convolved {
                from,
                channels: conv_dim,
                weight: &taps,
                bias: Some(&bias),
                history,
                convolved: At(&convolved, 0),
                activated: At(&activated, 0),
            };
            match layer {
                Layer::Mamba1 { in_proj, x_proj, dt_proj, out_proj, a } => {
                    let first = Linear::new(in_proj, rms(&x, &norm_d), Some(At(&projected, 0)));
                    Linear { convolved: Some(conv(0)), ..first }.run(gpu)?;
                    Linear::new(x_proj, Input::Plain(At(&activated, 0)), Some(At(&dbc, 0))).run(gpu)?;
                    ScanStep {
                        dt_weight: dt_proj,
                        dt_bias: &steps_bias,
                        dbc: &dbc,
                        norms: None,
                        a,
                        d: norm,
                        x: At(&activated, 0),
                        gate: At(&projected, e),
                        state,
                        delta: At(&delta, 0),
                        key: At(&key, 0),
                        query: At(&query, 0),
                        core: At(&core, 0),
                        gated: At(&gated, 0),
                        state_norm: None,
                    }
                    .run(gpu)?;
                    added(out_proj, Input::Plain(At(&gated, 0))).run(gpu)?;
                }
                Layer::Mamba2 { in_proj, out_proj } => {
                    let first = Linear::new(in_proj, rms(&x, &norm_d), Some(At(&projected, 0)));
                    Linear {
                        convolved: Some(conv(e)),
                        delta: Some((&head_bias, At(&head_delta, 0), 0.0, 1e9)),
                        ..first
                    }
                    .run(gpu)?;
                    SsdStep {
                        heads: third,
                        head_dim,
                        state_dim: n,
                        groups,
                        delta: At(&head_delta, 0),
                        a: &rates,
                        d: &rates,
                        x: At(&activated, 0),
                        key: At(&activated, e),
                        query: At(&activated, e + n),
                        state,
                        core: At(&core, 0),
                        gate: Some((At(&projected, 0), At(&gated, 0))),
                    }
                    .run(gpu)?;
                    added(out_proj, rms(&gated, norm)).run(gpu)?;
                }
                Layer::Transformer { qkv, o_proj, gate, up, down } => {
                    Linear::new(qkv, rms(&x, &norm_d), Some(At(&projected, 0))).run(gpu)?;
                    AttentionStep {
                        heads: third,
                        kv_heads: third,
                        head_dim,
                        q: At(&projected, 0),
                        k: At(&projected, d),
                        v: At(&projected, 2 * d),
                        norms: None,
                        inv_freq: Some(&freq),
                        key_scale: 1.0,
                        scale: 0.1,
                        window: None,
                        keys: state,
                        values: history,
                        place: &place,
                        q_out: At(&q_out, 0),
                        k_out: At(&k_out, 0),
                        y: At(&core, 0),
                        entropy_bits: At(&entropy, 0),
                        scratch: &scratch,
                        counters: &counters,
                    }
                    .run(gpu)?;
                    added(o_proj, Input::Plain(At(&core, 0))).run(gpu)?;
                    let unit = GatedUnit { up, up_bias: None, gate_scale: 1.0 };
                    let first = Linear::new(gate, rms(&x, &norm_d), Some(At(&hidden, 0)));
                    Linear { gated: Some(unit), activation: Some(Activation::Silu), ..first }.run(gpu)?;
                    Linear {
                        residual: Some((At(&x, 0), At(&x, 0))),
                        ..Linear::new(down, Input::Plain(At(&hidden, 0)), Some(At(&gated, 0)))
                    }
                    .run(gpu)?;
                }
            }
        }
        Linear::new(&embeddings, rms(&x, &norm_d), Some(At(&logits, 0))).run(gpu)
    };
    let mut host = gpu.pinned::<f32>(shape.vocab)?;
    let mut seen = gpu.pinned::<f32>(6 * e)?;
    let graph = gpu.capture(|| {
        token()?;
        gpu.copy_out(&logits, 0, &mut host, 0, shape.vocab)
    })?;
    let observed = gpu.capture(|| {
        token()?;
        // What one layer on screen is drawn from: Δ, x, z, y, the convolution and the residual stream.
        for (i, buffer) in [&delta, &activated, &projected, &core, &convolved].into_iter().enumerate() {
            gpu.copy_out(buffer, 0, &mut seen, i * e, e)?;
        }
        gpu.copy_out(&x, 0, &mut seen, 5 * e, d)?;
        gpu.copy_out(&logits, 0, &mut host, 0, shape.vocab)
    })?;
    let launched = median(gpu, 10, token)?;
    let (mut plain, mut with) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        plain.push(median(gpu, 40, || graph.replay())?);
        with.push(median(gpu, 40, || observed.replay())?);
    }
    let middle = |mut times: Vec<f32>| {
        times.sort_by(f32::total_cmp);
        times[times.len() / 2]
    };
    let (plain, with) = (middle(plain), middle(with));
    let state: usize = memories.iter().map(|m| (m.0.len() + m.1.len()) * 4).sum();
    let bytes = weights + if kind == 3 { state } else { 2 * state };
    println!(
        "| decode {}, bf16 | {:.0} tokens/s | {:.0} looking at a layer | {:.0} without the graph | {:.2} GB a token, {:.0} GB/s |",
        shape.name,
        1e3 / plain,
        1e3 / with,
        1e3 / launched,
        bytes as f32 / 1e9,
        bytes as f32 / plain / 1e6
    );
    Ok(())
}

fn made(gpu: &Gpu, shape: &Shape, mut m: impl FnMut(usize, usize, usize) -> Result<DeviceMatrix>) -> Result<Layer> {
    let &Shape { d, third, fourth: n, .. } = shape;
    let e = 2 * d;
    Ok(match shape.kind {
        1 => Layer::Mamba1 {
            in_proj: m(2 * e, d, 0)?,
            x_proj: m(third + 2 * n, e, 1)?,
            dt_proj: m(e, third, 2)?,
            out_proj: m(d, e, 3)?,
            a: gpu.upload(&(0..e * n).map(|i| -1.0 - (i % n) as f32).collect::<Vec<f32>>())?,
        },
        2 => Layer::Mamba2 { in_proj: m(2 * e + 2 * n + third, d, 0)?, out_proj: m(d, e, 1)? },
        _ => Layer::Transformer {
            qkv: m(3 * d, d, 0)?,
            o_proj: m(d, d, 1)?,
            gate: m(n, d, 2)?,
            up: m(n, d, 3)?,
            down: m(d, n, 4)?,
        },
    })
}
