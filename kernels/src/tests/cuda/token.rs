//! A token in one launch against the same layers one op at a time, which the other tests compare with f64.

use std::sync::Arc;

use super::*;
use crate::cuda::{
    At, Convolved, DeviceMatrix, Embed, Input, Linear, ScanStep, SsdStep, TokenHead, TokenKind, TokenLayer, TokenPass,
    TokenShape,
};
use crate::{Dtype, Elements, Matrix};

const LAYERS: usize = 3;
const VOCAB: usize = 1003;
const TOKENS: usize = 3;

struct Maker {
    gpu: Arc<Gpu>,
    rng: Rng,
    dtype: Dtype,
}

impl Maker {
    fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        let scale = (cols as f32).sqrt().recip();
        let values = self.rng.vec(rows * cols).iter().map(|x| x * scale).collect();
        Matrix::new(rows, cols, Elements::F32(values)).unwrap().to_dtype(self.dtype)
    }

    fn weight(&mut self, rows: usize, cols: usize) -> DeviceMatrix {
        let matrix = self.matrix(rows, cols);
        DeviceMatrix::upload(&self.gpu, &matrix).unwrap()
    }

    fn vector(&mut self, len: usize, scale: f32, base: f32) -> Buffer<f32> {
        let values: Vec<f32> = self.rng.vec(len).iter().map(|x| base + scale * x).collect();
        put(&self.gpu, &values)
    }

    fn nan(&self, len: usize) -> Buffer<f32> {
        poisoned(&self.gpu, len)
    }

    /// A layer, and the projection to δ, B and C as one op reads it.
    fn layer(&mut self, shape: &TokenShape, scan: bool) -> (TokenLayer, Option<DeviceMatrix>) {
        let TokenShape { width: d, inner: e, state_dim: n, rank: r, heads: h, .. } = *shape;
        let (rows, convolved) = if scan { (2 * e, e) } else { (2 * e + 2 * n + h, e + 2 * n) };
        let (steps, rates, skips) = if scan { (e, e * n, e) } else { (h, h, h) };
        let (kind, plain) = if scan {
            let x = self.matrix(r + 2 * n, e);
            let kind = TokenKind::Scan {
                x_turned: DeviceMatrix::upload(&self.gpu, &x.transposed()).unwrap(),
                dt_proj: self.weight(e, r),
                dbc: self.nan(r + 2 * n),
                key: self.nan(n),
                query: self.nan(n),
            };
            (kind, Some(DeviceMatrix::upload(&self.gpu, &x).unwrap()))
        } else {
            (TokenKind::Ssd { norm: Some(self.vector(e, 0.2, 1.0)) }, None)
        };
        let layer = TokenLayer {
            in_proj: self.weight(rows, d),
            out_proj: self.weight(d, e),
            norm: self.vector(d, 0.2, 1.0),
            conv_weight: self.vector(convolved * 4, 0.5, 0.0),
            conv_bias: Some(self.vector(convolved, 0.1, 0.0)),
            dt_bias: self.vector(steps, 1.0, -2.0),
            a: self.vector(rates, 0.4, -1.0),
            d: self.vector(skips, 0.3, 1.0),
            state: self.vector(e * n, 0.5, 0.0),
            history: self.vector(3 * convolved, 0.5, 0.0),
            projected: self.nan(rows),
            convolved: self.nan(convolved),
            activated: self.nan(convolved),
            delta: self.nan(steps),
            core: self.nan(e),
            gated: self.nan(e),
            output: self.nan(d),
            resid: self.nan(d),
            kind,
        };
        (layer, plain)
    }
}

/// Everything a layer leaves, by name.
fn left(layer: &TokenLayer) -> Vec<(&'static str, &Buffer<f32>)> {
    let mut left = vec![
        ("projected", &layer.projected),
        ("convolved", &layer.convolved),
        ("activated", &layer.activated),
        ("delta", &layer.delta),
        ("core", &layer.core),
        ("gated", &layer.gated),
        ("output", &layer.output),
        ("resid", &layer.resid),
        ("state", &layer.state),
        ("history", &layer.history),
    ];
    if let TokenKind::Scan { dbc, key, query, .. } = &layer.kind {
        left.extend([("dbc", dbc), ("key", key), ("query", query)]);
    }
    left
}

/// A copy with memory and results of its own.
fn apart(gpu: &Gpu, layer: &TokenLayer) -> TokenLayer {
    let twin = |buffer: &Buffer<f32>| gpu.twin(buffer).unwrap();
    let mut copy = layer.clone();
    for buffer in [
        &mut copy.projected,
        &mut copy.convolved,
        &mut copy.activated,
        &mut copy.delta,
        &mut copy.core,
        &mut copy.gated,
        &mut copy.output,
        &mut copy.resid,
        &mut copy.state,
        &mut copy.history,
    ] {
        *buffer = twin(buffer);
    }
    if let TokenKind::Scan { dbc, key, query, .. } = &mut copy.kind {
        (*dbc, *key, *query) = (twin(dbc), twin(key), twin(query));
    }
    copy
}

fn one_op_at_a_time(gpu: &Gpu, shape: &TokenShape, layer: &TokenLayer, x_proj: Option<&DeviceMatrix>, x: &Buffer<f32>) {
    let all = |buffer| At(buffer, 0);
    let (e, n) = (shape.inner, shape.state_dim);
    let input = Input::Rms { x: all(x), weight: &layer.norm, groups: 1, eps: shape.eps };
    let scan = matches!(layer.kind, TokenKind::Scan { .. });
    let convolved = Convolved {
        from: if scan { 0 } else { e },
        channels: layer.convolved.len(),
        weight: &layer.conv_weight,
        bias: layer.conv_bias.as_ref(),
        history: &layer.history,
        convolved: all(&layer.convolved),
        activated: all(&layer.activated),
    };
    let projection = Linear::new(&layer.in_proj, input, Some(all(&layer.projected)));
    let (low, high) = shape.delta_limit;
    let delta = (!scan).then_some((&layer.dt_bias, all(&layer.delta), low, high));
    Linear { convolved: Some(convolved), delta, ..projection }.run(gpu).unwrap();
    let read = match &layer.kind {
        TokenKind::Scan { dt_proj, dbc, key, query, .. } => {
            Linear::new(x_proj.unwrap(), Input::Plain(all(&layer.activated)), Some(all(dbc))).run(gpu).unwrap();
            let step = ScanStep {
                dt_weight: dt_proj,
                dt_bias: &layer.dt_bias,
                dbc,
                norms: None,
                a: &layer.a,
                d: &layer.d,
                x: all(&layer.activated),
                gate: At(&layer.projected, e),
                state: &layer.state,
                delta: all(&layer.delta),
                key: all(key),
                query: all(query),
                core: all(&layer.core),
                gated: all(&layer.gated),
                state_norm: None,
            };
            step.run(gpu).unwrap();
            Input::Plain(all(&layer.gated))
        }
        TokenKind::Ssd { norm } => {
            let step = SsdStep {
                heads: shape.heads,
                head_dim: e / shape.heads,
                state_dim: n,
                groups: 1,
                delta: all(&layer.delta),
                a: &layer.a,
                d: &layer.d,
                x: all(&layer.activated),
                key: At(&layer.activated, e),
                query: At(&layer.activated, e + n),
                state: &layer.state,
                core: all(&layer.core),
                gate: Some((all(&layer.projected), all(&layer.gated))),
            };
            step.run(gpu).unwrap();
            let weight = norm.as_ref().unwrap();
            Input::Rms { x: all(&layer.gated), weight, groups: 1, eps: shape.gated_eps }
        }
    };
    Linear {
        output_scale: shape.output_scale,
        residual: Some((all(x), all(&layer.resid))),
        residual_scale: shape.residual_scale,
        ..Linear::new(&layer.out_proj, read, Some(all(&layer.output)))
    }
    .run(gpu)
    .unwrap();
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_one_launch_is_the_layers_one_after_the_other() {
    let gpu = gpu();
    let plain = TokenShape { eps: 1e-5, gated_eps: 3e-5, output_scale: 0.7, residual_scale: 0.9, ..Default::default() };
    let scan = |width, rank, state_dim| (true, TokenShape { width, inner: 2 * width, state_dim, rank, ..plain });
    let ssd = |width, heads| {
        let delta_limit = (0.01, 0.4);
        (false, TokenShape { width, inner: 2 * width, state_dim: 128, heads, delta_limit, ..plain })
    };
    let shapes =
        [scan(256, 16, 16), scan(768, 48, 8), scan(2048, 128, 16), scan(2560, 160, 16), ssd(256, 8), ssd(768, 24)];
    let shapes = shapes.into_iter().chain([ssd(1024, 64), ssd(2560, 80)]);
    let mut seen = 0;
    for (index, (scan, shape)) in shapes.enumerate() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            if !shape.fits(&gpu, dtype, scan) {
                continue;
            }
            seen += 1;
            let mut maker = Maker { gpu: gpu.clone(), rng: Rng::new(70 + index as u64), dtype };
            let (layers, x_projs): (Vec<_>, Vec<_>) = (0..LAYERS).map(|_| maker.layer(&shape, scan)).unzip();
            let theirs: Vec<TokenLayer> = layers.iter().map(|layer| apart(&gpu, layer)).collect();
            let (embeddings, scale) = (maker.weight(TOKENS, shape.width), 1.3 * (shape.width as f32).sqrt());
            let x = maker.nan(shape.width);
            let head = TokenHead {
                norm: maker.vector(shape.width, 0.2, 1.0),
                eps: 2e-5,
                weight: maker.weight(VOCAB, shape.width),
                logits: maker.nan(VOCAB),
                scale: 0.3,
            };
            let pass = TokenPass::new(&gpu, shape, (&embeddings, scale), layers.clone(), Some(head.clone()))
                .unwrap()
                .expect("a shape that fits");
            assert!(pass.has_head());
            for token in (0..TOKENS).rev() {
                let place = gpu.upload(&[token as u32, 0]).unwrap();
                pass.run(&gpu, token as u32).unwrap();
                Embed { table: &embeddings, positions: None, place: &place, scale, x: At(&x, 0) }.run(&gpu).unwrap();
                for (i, layer) in theirs.iter().enumerate() {
                    let before = if i == 0 { &x } else { &theirs[i - 1].resid };
                    one_op_at_a_time(&gpu, &shape, layer, x_projs[i].as_ref(), before);
                    for ((name, ours), (_, wanted)) in left(&layers[i]).into_iter().zip(left(layer)) {
                        let wanted: Vec<f64> = get(&gpu, wanted).iter().map(|&x| x.into()).collect();
                        let what = format!("{shape:?} {dtype}, token {token}, layer {i}: {name}");
                        assert_close(&get(&gpu, ours), &wanted, 2e-5, &what);
                    }
                }
                let expected = poisoned::<f32>(&gpu, VOCAB);
                let input =
                    Input::Rms { x: At(&theirs[LAYERS - 1].resid, 0), weight: &head.norm, groups: 1, eps: head.eps };
                let linear = Linear::new(&head.weight, input, Some(At(&expected, 0)));
                Linear { output_scale: head.scale, ..linear }.run(&gpu).unwrap();
                let wanted: Vec<f64> = get(&gpu, &expected).iter().map(|&x| x.into()).collect();
                assert_close(&get(&gpu, &head.logits), &wanted, 2e-5, &format!("{shape:?} {dtype}: logits"));
            }
            // The same from the same memory, in a graph and without a head, bit for bit.
            let once: Vec<Vec<f32>> = layers.iter().map(|layer| get(&gpu, &layer.resid)).collect();
            let again: Vec<TokenLayer> = layers.iter().map(|layer| apart(&gpu, layer)).collect();
            let others = TokenPass::new(&gpu, shape, (&embeddings, scale), again.clone(), None).unwrap();
            let others = others.expect("a shape that fits");
            let graph = gpu.capture(|| others.run(&gpu, 1)).unwrap();
            pass.run(&gpu, 1).unwrap();
            graph.replay().unwrap();
            for ((layer, other), once) in layers.iter().zip(&again).zip(&once) {
                let resid = get(&gpu, &layer.resid);
                assert_ne!(resid, *once, "{shape:?}: the state has moved on");
                assert_eq!(resid, get(&gpu, &other.resid), "{shape:?} {dtype}");
                assert_eq!(get(&gpu, &layer.state), get(&gpu, &other.state), "{shape:?} {dtype}");
            }
        }
    }
    // Elsewhere than on Hopper there is nothing to compare.
    assert!(seen == 0 || seen >= 20, "{seen} shapes");
}
