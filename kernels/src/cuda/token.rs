//! One token through all layers of a Mamba or Mamba-2 model and its head, in one launch (`token_hopper.cu`).

use super::launch::{Ptr, Shape};
use super::{At, Buffer, DeviceMatrix, Gpu, Result, number};
use crate::matrix::Dtype;

/// Warps of a block that stream weights, and threads of those that do what is between (`token_hopper.cuh`).
const STREAMING: usize = 8;
const RECURRING: usize = 7 * 32;
const THREADS: usize = 512;
/// Channels of a block, and blocks, that the kernel holds.
const MOST_CHANNELS: usize = 40;
const MOST_BLOCKS: usize = 160;
/// Pieces in the ring of a warp.
const FEWEST_SLOTS: usize = 4;
const MOST_SLOTS: usize = 32;
/// Bytes of these that are on their way at once, of Mamba and of Mamba-2: with more, memory answers all else too late.
const UNDER_WAY: [usize; 2] = [5120, 7680];
/// Bytes of shared memory that are not the ring's or the vectors'.
const STATIC: usize = 1024;

/// A layer of a [`TokenPass`]: weights, memory, and where what it makes is left, as in [`super::Linear`], [`super::ScanStep`] and
/// [`super::SsdStep`].
#[derive(Clone, Debug)]
pub struct TokenLayer {
    /// [2E, d] or [2E + 2N + H, d], and [d, E].
    pub in_proj: DeviceMatrix,
    pub out_proj: DeviceMatrix,
    /// [d].
    pub norm: Buffer<f32>,
    pub conv_weight: Buffer<f32>,
    pub conv_bias: Option<Buffer<f32>>,
    pub dt_bias: Buffer<f32>,
    pub a: Buffer<f32>,
    pub d: Buffer<f32>,
    pub state: Buffer<f32>,
    pub history: Buffer<f32>,
    pub projected: Buffer<f32>,
    pub convolved: Buffer<f32>,
    pub activated: Buffer<f32>,
    pub delta: Buffer<f32>,
    pub core: Buffer<f32>,
    pub gated: Buffer<f32>,
    /// [d]: what is added to the residual stream, and what comes of it.
    pub output: Buffer<f32>,
    pub resid: Buffer<f32>,
    pub kind: TokenKind,
}

/// What Mamba and Mamba-2 do not share.
#[derive(Clone, Debug)]
pub enum TokenKind {
    Scan {
        /// [E, R + 2N]: the projection to δ, B and C, turned.
        x_turned: DeviceMatrix,
        /// [E, R].
        dt_proj: DeviceMatrix,
        dbc: Buffer<f32>,
        key: Buffer<f32>,
        query: Buffer<f32>,
    },
    Ssd {
        /// [E]: of y ⊙ silu(z); none where that is not normed.
        norm: Option<Buffer<f32>>,
    },
}

/// Numbers that all layers share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenShape {
    /// d, E, N; R of Mamba, H of Mamba-2.
    pub width: usize,
    pub inner: usize,
    pub state_dim: usize,
    pub rank: usize,
    pub heads: usize,
    pub eps: f32,
    pub gated_eps: f32,
    pub output_scale: f32,
    pub residual_scale: f32,
    pub delta_limit: (f32, f32),
}

/// The norm and the linear map that end a model.
#[derive(Clone, Debug)]
pub struct TokenHead {
    pub norm: Buffer<f32>,
    pub eps: f32,
    pub weight: DeviceMatrix,
    pub logits: Buffer<f32>,
    pub scale: f32,
}

/// All layers of a model for the kernel.
pub struct TokenPass {
    layers: Vec<TokenLayer>,
    head: Option<TokenHead>,
    embeddings: DeviceMatrix,
    kernel: String,
    params: Params,
    shared: usize,
    blocks: usize,
    table: Buffer<u32>,
    exchange: Buffer<u32>,
    epoch: Buffer<u32>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Layer {
    in_proj: Ptr,
    out_proj: Ptr,
    x: Ptr,
    dt: Ptr,
    norm: Ptr,
    gated_norm: Ptr,
    conv_weight: Ptr,
    conv_bias: Ptr,
    dt_bias: Ptr,
    a: Ptr,
    d: Ptr,
    state: Ptr,
    history: Ptr,
    projected: Ptr,
    convolved: Ptr,
    activated: Ptr,
    dbc: Ptr,
    delta: Ptr,
    key: Ptr,
    query: Ptr,
    core: Ptr,
    gated: Ptr,
    output: Ptr,
    resid: Ptr,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    layers: Ptr,
    exchange: Ptr,
    epoch: Ptr,
    token: u32,
    pad: u32,
    embeddings: Ptr,
    final_norm: Ptr,
    head: Ptr,
    logits: Ptr,
    count: u32,
    d: u32,
    e: u32,
    n: u32,
    rank: u32,
    heads: u32,
    taps: u32,
    vocab: u32,
    split: u32,
    split_out: u32,
    slots: u32,
    under_way: u32,
    pointers_at: u32,
    layer_at: u32,
    x_at: u32,
    sums_at: u32,
    small_at: u32,
    ring_at: u32,
    eps: f32,
    gated_eps: f32,
    final_eps: f32,
    output_scale: f32,
    residual_scale: f32,
    logits_scale: f32,
    dt_low: f32,
    dt_high: f32,
    embedding_scale: f32,
    pad2: f32,
}

impl Default for TokenShape {
    fn default() -> Self {
        Self {
            width: 0,
            inner: 0,
            state_dim: 0,
            rank: 0,
            heads: 0,
            eps: 0.0,
            gated_eps: 0.0,
            output_scale: 1.0,
            residual_scale: 1.0,
            delta_limit: (0.0, f32::INFINITY),
        }
    }
}

impl TokenShape {
    /// Whether the kernel takes layers of this shape, on this GPU.
    pub fn fits(&self, gpu: &Gpu, dtype: Dtype, scan: bool) -> bool {
        let TokenShape { width, inner, state_dim, rank, heads, .. } = *self;
        let blocks = gpu.processors() as usize;
        let recurrence = match scan {
            true => {
                state_dim <= 16
                    && state_dim.is_multiple_of(4)
                    && (8..=160).contains(&rank)
                    && rank.is_multiple_of(8)
                    && rank + 2 * state_dim <= RECURRING
            }
            false => {
                let power = heads > 0 && inner.is_multiple_of(heads) && (inner / heads).is_power_of_two();
                state_dim == 128 && power && 2 * state_dim + heads <= 2 * RECURRING
            }
        };
        let channels = (inner / 8).div_ceil(blocks) * 8;
        gpu.is_hopper()
            && recurrence
            && blocks <= MOST_BLOCKS
            && inner.is_multiple_of(8)
            && channels <= MOST_CHANNELS
            && width.div_ceil(blocks) <= RECURRING
            && [1, 2, 4].iter().any(|times| width * times == inner)
            && pieces(width, inner, dtype).is_some()
    }
}

/// (log2 of the warps that share a row of d, eights of a lane in a piece): pieces are 256 of the latter long.
fn pieces(width: usize, inner: usize, dtype: Dtype) -> Option<(usize, usize)> {
    let (most, times) = (if dtype == Dtype::F32 { 4 } else { 5 }, (inner / width).ilog2() as usize);
    (0..=3 - times.min(3))
        .map(|split| (split, (width >> split) / 256))
        .find(|&(split, eights)| eights << (split + 8) == width && [1, 3, 4, 5].contains(&eights) && eights <= most)
}

impl TokenPass {
    /// For layers that follow each other, after a row of `embeddings` [V, d] times a scale; none if they do not go together or do not fit into
    /// shared memory.
    ///
    /// # Errors
    /// No memory is left.
    pub fn new(
        gpu: &Gpu,
        shape: TokenShape,
        (embeddings, embedding_scale): (&DeviceMatrix, f32),
        layers: Vec<TokenLayer>,
        head: Option<TokenHead>,
    ) -> Result<Option<TokenPass>> {
        let Some(first) = layers.first() else { return Ok(None) };
        let (dtype, scan) = (first.in_proj.dtype(), matches!(first.kind, TokenKind::Scan { .. }));
        let alike = |layer: &TokenLayer| {
            let scans = match &layer.kind {
                TokenKind::Scan { x_turned, dt_proj, .. } => {
                    scan && x_turned.dtype() == dtype && dt_proj.dtype() == dtype
                }
                TokenKind::Ssd { norm } => !scan && norm.is_some() == has_norm(first),
            };
            scans && layer.in_proj.dtype() == dtype && layer.out_proj.dtype() == dtype && taps(layer) == taps(first)
        };
        let embeds = embeddings.dtype() == dtype && embeddings.cols() == shape.width;
        if !shape.fits(gpu, dtype, scan) || !embeds || !layers.iter().all(alike) || !(1..=4).contains(&taps(first)) {
            return Ok(None);
        }
        let head = head.filter(|head| head.weight.dtype() == dtype && head.weight.cols() == shape.width);
        let TokenShape { width: d, inner: e, state_dim: n, rank, heads, .. } = shape;
        let small = if scan { rank + 2 * n } else { 2 * n + heads };
        let blocks = gpu.processors() as usize;
        let Some((split, eights)) = pieces(d, e, dtype) else { return Ok(None) };
        let split_out = split + (e / d).ilog2() as usize;
        let element = if dtype == Dtype::F32 { 4 } else { 2 };
        let vocab = head.as_ref().map_or(0, |head| head.weight.rows());

        // Shared memory: see TokenParams.
        let (channels, rows) = ((e / 8).div_ceil(blocks) * 8, d.div_ceil(blocks));
        let sums = ((2 * channels + small.div_ceil(blocks)) << split) + (rows << split_out);
        let vector = d.max(e).max(vocab.div_ceil(blocks) << split).max(4 * RECURRING);
        let layout = |slots: usize| {
            let pointers = 16 * STREAMING * slots;
            let layer = pointers + 32 * layers.len();
            let x = layer + 2 * size_of::<Layer>();
            let sums_at = x + (4 * vector).next_multiple_of(16);
            let small_at = sums_at + (4 * sums).next_multiple_of(16);
            let ring = (small_at + 4 * small).next_multiple_of(128);
            (
                [pointers, layer, x, sums_at, small_at, ring].map(number),
                ring + STREAMING * slots * eights * 256 * element,
            )
        };
        let room = gpu.shared_limit() - STATIC;
        let Some(slots) = (FEWEST_SLOTS..=MOST_SLOTS).rev().find(|&slots| layout(slots).1 <= room) else {
            return Ok(None);
        };
        let ([pointers_at, layer_at, x_at, sums_at, small_at, ring_at], shared) = layout(slots);

        let entries: Vec<Layer> = layers.iter().map(|layer| layer.entry(&shape)).collect();
        let table: &[u32] = bytemuck::cast_slice(&entries);
        let numbers = d + e + small + if scan { small * blocks } else { 0 };
        let params = Params {
            count: number(layers.len()),
            d: number(d),
            e: number(e),
            n: number(n),
            rank: number(rank),
            heads: number(heads),
            taps: number(taps(first)),
            vocab: number(vocab),
            split: number(split),
            split_out: number(split_out),
            slots: number(slots),
            under_way: number((UNDER_WAY[usize::from(!scan)] / (eights * 256 * element)).clamp(2, slots)),
            pointers_at,
            layer_at,
            x_at,
            sums_at,
            small_at,
            ring_at,
            eps: shape.eps,
            gated_eps: shape.gated_eps,
            final_eps: head.as_ref().map_or(0.0, |head| head.eps),
            output_scale: shape.output_scale,
            residual_scale: shape.residual_scale,
            logits_scale: head.as_ref().map_or(1.0, |head| head.scale),
            dt_low: shape.delta_limit.0,
            dt_high: shape.delta_limit.1,
            embedding_scale,
            ..bytemuck::Zeroable::zeroed()
        };
        Ok(Some(TokenPass {
            kernel: format!("token{}_{eights}_{dtype}", if scan { 1 } else { 2 }),
            params,
            shared,
            blocks,
            table: gpu.upload(table)?,
            exchange: gpu.zeros(2 * numbers)?,
            epoch: gpu.upload(&[1])?,
            embeddings: embeddings.clone(),
            head,
            layers,
        }))
    }

    /// Whether logits come of it.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// `token` is a row of the embeddings, as the caller sees to. A graph would make it the same each time. (All blocks reading it from
    /// page-locked memory costs 11 to 17 µs, a launch outside a graph 2.)
    pub fn run(&self, gpu: &Gpu, token: u32) -> Result<()> {
        let head = self.head.as_ref();
        let whole = |buffer: &Buffer<f32>, len: usize, what: &str| At::from(buffer).ptr(len, what);
        let params = Params {
            layers: self.table.ptr(0),
            exchange: self.exchange.ptr(0),
            epoch: self.epoch.ptr(0),
            token,
            embeddings: self.embeddings.ptr(),
            final_norm: head.map_or(Ptr::default(), |h| whole(&h.norm, self.params.d as usize, "token: final norm")),
            head: head.map_or(Ptr::default(), |head| head.weight.ptr()),
            logits: head.map_or(Ptr::default(), |h| whole(&h.logits, self.params.vocab as usize, "token: logits")),
            ..self.params
        };
        let shape = Shape {
            grid: (number(self.blocks), 1),
            threads: THREADS as u32,
            shared: number(self.shared),
            early: false,
        };
        if gpu.captures() {
            // What the table speaks of is asked for, so that the graph keeps it alive.
            for layer in &self.layers {
                let _ = layer.pointers();
            }
        }
        gpu.launch_together("token_hopper", &self.kernel, shape, &params)
    }
}

fn taps(layer: &TokenLayer) -> usize {
    let channels = layer.convolved.len();
    layer.conv_weight.len() / channels.max(1)
}

fn has_norm(layer: &TokenLayer) -> bool {
    matches!(&layer.kind, TokenKind::Ssd { norm: Some(_) })
}

impl TokenLayer {
    /// The addresses, having checked all sizes.
    fn entry(&self, shape: &TokenShape) -> Layer {
        let TokenShape { width: d, inner: e, state_dim: n, rank: r, heads: h, .. } = *shape;
        let scan = matches!(self.kind, TokenKind::Scan { .. });
        let (rows, convolved) = if scan { (2 * e, e) } else { (2 * e + 2 * n + h, e + 2 * n) };
        let (steps, rates, skips) = if scan { (e, e * n, e) } else { (h, h, h) };
        let size = |matrix: &DeviceMatrix| (matrix.rows(), matrix.cols());
        assert_eq!((size(&self.in_proj), size(&self.out_proj)), ((rows, d), (d, e)), "token: projections");
        let sizes = [
            (&self.norm, d),
            (&self.conv_weight, convolved * taps(self)),
            (&self.dt_bias, steps),
            (&self.a, rates),
            (&self.d, skips),
            (&self.state, e * n),
            (&self.history, (taps(self) - 1) * convolved),
            (&self.projected, rows),
            (&self.convolved, convolved),
            (&self.activated, convolved),
            (&self.delta, steps),
            (&self.core, e),
            (&self.gated, e),
            (&self.output, d),
            (&self.resid, d),
        ];
        sizes.iter().enumerate().for_each(|(i, (buffer, len))| assert_eq!(buffer.len(), *len, "token: buffer {i}"));
        assert!(self.conv_bias.as_ref().is_none_or(|bias| bias.len() == convolved), "token: conv bias");
        match &self.kind {
            TokenKind::Scan { x_turned, dt_proj, dbc, key, query } => {
                assert_eq!((size(x_turned), size(dt_proj)), ((e, r + 2 * n), (e, r)), "token: x and Δ");
                assert_eq!((dbc.len(), key.len(), query.len()), (r + 2 * n, n, n), "token: δ, B and C");
            }
            TokenKind::Ssd { norm } => {
                assert!(norm.as_ref().is_none_or(|norm| norm.len() == e), "token: gated norm");
            }
        }
        self.pointers()
    }

    fn pointers(&self) -> Layer {
        let some = |buffer: &Option<Buffer<f32>>| buffer.as_ref().map_or(Ptr::default(), |buffer| buffer.ptr(0));
        let mut layer = Layer {
            in_proj: self.in_proj.ptr(),
            out_proj: self.out_proj.ptr(),
            norm: self.norm.ptr(0),
            conv_weight: self.conv_weight.ptr(0),
            conv_bias: some(&self.conv_bias),
            dt_bias: self.dt_bias.ptr(0),
            a: self.a.ptr(0),
            d: self.d.ptr(0),
            state: self.state.ptr(0),
            history: self.history.ptr(0),
            projected: self.projected.ptr(0),
            convolved: self.convolved.ptr(0),
            activated: self.activated.ptr(0),
            delta: self.delta.ptr(0),
            core: self.core.ptr(0),
            gated: self.gated.ptr(0),
            output: self.output.ptr(0),
            resid: self.resid.ptr(0),
            ..bytemuck::Zeroable::zeroed()
        };
        match &self.kind {
            TokenKind::Scan { x_turned, dt_proj, dbc, key, query } => {
                (layer.x, layer.dt, layer.dbc) = (x_turned.ptr(), dt_proj.ptr(), dbc.ptr(0));
                (layer.key, layer.query) = (key.ptr(0), query.ptr(0));
            }
            TokenKind::Ssd { norm } => layer.gated_norm = some(norm),
        }
        layer
    }
}
