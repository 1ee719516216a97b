//! Depthwise causal convolution of many tokens.

use super::launch::{Ptr, Shape, TensorMap};
use super::{At, Buffer, DeviceMatrix, Element, Gemm, Gpu, Result, number, optional};
use crate::matrix::Dtype;

/// Weights and memory of a convolution of K ≤ 4 taps over C channels.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// [C, K].
    pub weight: &'a Buffer<f32>,
    /// [C].
    pub bias: Option<&'a Buffer<f32>>,
    /// [K−1, C]: the inputs before, and those that the next call needs; two buffers.
    pub history: (&'a Buffer<f32>, &'a Buffer<f32>),
    pub channels: usize,
    /// silu after it.
    pub silu: bool,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    x: Ptr,
    weight: Ptr,
    bias: Ptr,
    history: Ptr,
    next_history: Ptr,
    y: Ptr,
    tokens: u32,
    channels: u32,
    taps: u32,
    stride: u32,
    run: u32,
    silu: u32,
}

/// See conv_hopper.cu.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HopperParams {
    u: TensorMap,
    w: TensorMap,
    x: TensorMap,
    product: TensorMap,
    input: Ptr,
    taps: Ptr,
    bias: Ptr,
    history: Ptr,
    next_history: Ptr,
    tokens: u32,
    channels: u32,
    stride: u32,
    rows: u32,
    silu: u32,
    pad: u32,
}

/// Channels of a tile on Hopper, and rows of W that a block multiplies with.
const TILE: usize = 64;
const WIDTHS: [usize; 2] = [128, 192];

impl Params {
    /// With a product: its matrix, [rows, C] in bf16, and where it goes.
    fn run_on_hopper(&self, gpu: &Gpu, product: Option<(Ptr, u32, Ptr)>) -> Result<()> {
        let (weight, rows, to) = product.unwrap_or_default();
        let width = WIDTHS.into_iter().find(|&width| width >= rows as usize).expect("the caller has looked");
        // Few tokens a block where they would not fill the device.
        let of_block = if product.is_some() && self.tokens.div_ceil(64) <= gpu.processors() { 64 } else { 128 };
        let size = [self.tokens, self.channels];
        let params = HopperParams {
            u: TensorMap::plain_halves(self.x, size, self.stride, of_block + 3)?,
            w: TensorMap::halves(weight, [rows, self.channels], self.channels, number(width / 2))?,
            x: TensorMap::halves(self.y, size, self.channels, 64)?,
            product: TensorMap::halves(to, [self.tokens, rows], rows, 64)?,
            input: self.x,
            taps: self.weight,
            bias: self.bias,
            history: self.history,
            next_history: self.next_history,
            tokens: self.tokens,
            channels: self.channels,
            stride: self.stride,
            rows,
            silu: self.silu,
            pad: 0,
        };
        let blocks = self.tokens.div_ceil(of_block);
        // Four stages of W, tokens, taps and bias, two rooms of 64 tokens a warpgroup, and what aligns them.
        let stage = |width: usize| (width * 128 + (of_block as usize + 3) * 128 + TILE * 20).next_multiple_of(1024);
        let shared = |width: usize| number(4 * stage(width)) + of_block * 256 + 1024;
        let threads = 2 * of_block + 32;
        if product.is_none() {
            let grid = ((blocks * (self.channels / 64)).min(2 * gpu.processors()), 1);
            let shape = Shape { grid, threads, shared: shared(0), early: true };
            return gpu.launch("conv_hopper", "conv_hopper", shape, &params);
        }
        let shape = Shape { grid: (blocks.next_multiple_of(2), 1), threads, shared: shared(width), early: true };
        gpu.launch("conv_hopper", &format!("conv_product_{width}_{of_block}"), shape, &params)
    }
}

/// Whether [`conv_product`] takes less time than one after the other: where its blocks of 128 tokens have nearly all multiprocessors to do.
/// (An H200, 5,120 channels to 192: 16,384 tokens in 0.154 ms, not 0.18; half as many and fewer take longer.)
pub fn conv_product_pays(gpu: &Gpu, tokens: usize) -> bool {
    8 * tokens.div_ceil(128) >= 7 * gpu.processors() as usize
}

/// As [`conv`], and the product y Wᵀ [T, N] with W [N, C] in bf16, while y is there: the bits of [`conv`] and [`Gemm`] one after the
/// other.
pub fn conv_product<T: Element>(
    gpu: &Gpu,
    op: Conv<'_>,
    x: At<'_, T>,
    stride: usize,
    tokens: usize,
    y: &Buffer<T>,
    (weight, product): (&DeviceMatrix, &Buffer<T>),
) -> Result<()> {
    let rows = weight.rows();
    assert_eq!(weight.cols(), op.channels, "conv: the product's matrix is of other channels");
    let fits = rows.is_multiple_of(8) && WIDTHS.iter().any(|&width| width >= rows) && weight.dtype() == Dtype::Bf16;
    if !fits || !op.on_hopper::<T>(gpu, x.1, stride) || tokens == 0 {
        conv(gpu, op, x, stride, tokens, y)?;
        return Gemm { y: Some(product), ..Gemm::new(tokens, weight, At(y, 0)) }.run(gpu);
    }
    let to = At::from(product).ptr(tokens * rows, "conv: product");
    op.params(x, stride, tokens, y).run_on_hopper(gpu, Some((weight.ptr(), number(rows), to)))
}

impl Conv<'_> {
    fn taps(&self) -> usize {
        self.weight.len() / self.channels.max(1)
    }

    /// Whether conv_hopper.cu does it.
    fn on_hopper<T: Element>(&self, gpu: &Gpu, from: usize, stride: usize) -> bool {
        let eights = [from, stride].iter().all(|n| n.is_multiple_of(8));
        gpu.is_hopper() && T::NAME == "bf16" && self.taps() == 4 && self.channels.is_multiple_of(TILE) && eights
    }

    fn params<T: Element>(&self, x: At<'_, T>, stride: usize, tokens: usize, y: &Buffer<T>) -> Params {
        let (channels, taps) = (self.channels, self.taps());
        assert!(self.weight.len() == channels * taps && (1..=4).contains(&taps), "conv: {taps} taps");
        assert!(self.history.0.ptr(0) != self.history.1.ptr(0) || taps == 1, "conv: one history for before and after");
        Params {
            x: x.rows(tokens, channels, stride, "conv: x"),
            weight: self.weight.ptr(0),
            bias: optional(self.bias.map(At::from), channels, "conv: bias"),
            history: At::from(self.history.0).ptr((taps - 1) * channels, "conv: history"),
            next_history: At::from(self.history.1).ptr((taps - 1) * channels, "conv: history"),
            y: At::from(y).ptr(tokens * channels, "conv: y"),
            tokens: number(tokens),
            channels: number(channels),
            taps: number(taps),
            stride: number(stride),
            // Long enough runs that the taps' overlap costs little, short enough to fill the device.
            run: if tokens > 4096 { 64 } else { 16 },
            silu: self.silu.into(),
        }
    }
}

/// y [T, C] of x [T, C], a row every `stride`: see [`crate::causal_conv`].
pub fn conv<T: Element>(
    gpu: &Gpu,
    conv: Conv<'_>,
    x: At<'_, T>,
    stride: usize,
    tokens: usize,
    y: &Buffer<T>,
) -> Result<()> {
    let channels = conv.channels;
    let params = conv.params(x, stride, tokens, y);
    if tokens == 0 {
        return Ok(());
    }
    if conv.on_hopper::<T>(gpu, x.1, stride) {
        return params.run_on_hopper(gpu, None);
    }
    if [channels, stride, x.1].iter().all(|n| n.is_multiple_of(8)) && channels >= 512 {
        let params = Params { run: if tokens > 2048 { 32 } else { 8 }, ..params };
        let grid = (number(channels / 8).div_ceil(128), number(tokens).div_ceil(params.run));
        let shape = Shape { grid, threads: 128, shared: 0, early: true };
        return gpu.launch("conv", &format!("conv_wide_{}", T::NAME), shape, &params);
    }
    let grid = (number(channels).div_ceil(128), number(tokens).div_ceil(params.run));
    gpu.launch("conv", &format!("conv_{}", T::NAME), Shape { grid, threads: 128, shared: 0, early: true }, &params)
}
