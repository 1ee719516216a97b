//! Many tokens through a linear map.

use super::launch::{Ptr, Shape, TensorMap};
use super::{At, Buffer, DeviceMatrix, Element, Gpu, Result, activation_code, number, optional};
use crate::Activation;
use crate::matrix::Dtype;

/// y = f((X Wᵀ + b) ⊙ row_scale · output_scale), f the identity where absent; residual_out = residual_in + y · residual_scale. T
/// tokens.
///
/// f32 inputs are multiplied in f32 whatever W is stored in. bf16 inputs meet a bf16 W on tensor cores, with f32 sums, where K and the
/// strides are multiples of eight; on Hopper by its own instructions, where N is one, too, and there is no f. There f32 inputs meet a bf16
/// W on tensor cores as well: each is the sum of three numbers in bf16, so that the products are those of f32 (Henry, Tang, Heinecke 2019).
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a, T: Element> {
    pub tokens: usize,
    /// [N, K].
    pub weight: &'a DeviceMatrix,
    /// [N] each.
    pub bias: Option<&'a Buffer<f32>>,
    pub row_scale: Option<&'a Buffer<f32>>,
    pub output_scale: f32,
    pub activation: Option<Activation>,
    /// [T, K], a row every `x_stride`.
    pub x: At<'a, T>,
    pub x_stride: usize,
    /// [T, N]: y as it is, and rounded to T.
    pub wide: Option<&'a Buffer<f32>>,
    pub y: Option<&'a Buffer<T>>,
    /// [T, N] (in, out): may be the same.
    pub residual: Option<(&'a Buffer<f32>, &'a Buffer<f32>)>,
    pub residual_scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    weight: Ptr,
    x: Ptr,
    bias: Ptr,
    row_scale: Ptr,
    residual_in: Ptr,
    residual_out: Ptr,
    wide: Ptr,
    y: Ptr,
    tokens: u32,
    rows: u32,
    cols: u32,
    x_stride: u32,
    activation: u32,
    pad: u32,
    output_scale: f32,
    residual_scale: f32,
}

/// See `struct HopperParams` in gemm_hopper.cu.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HopperParams {
    x: TensorMap,
    w: TensorMap,
    y: TensorMap,
    wide: TensorMap,
    residual: TensorMap,
    of: Params,
    pad: [u32; 8],
}

/// Outputs of a tile, and stages of the kernels for it: of X in bf16, and in f32.
const WIDTHS: [(u32, u32, u32); 4] = [(64, 6, 4), (128, 5, 4), (192, 4, 3), (256, 4, 3)];

impl Params {
    /// Two blocks make a tile of 256 tokens; as many pairs as fit walk over all tiles. `split`: X in f32, cut in three.
    fn run_on_hopper(&self, gpu: &Gpu, split: bool) -> Result<()> {
        let pairs = gpu.processors() / 2;
        let tiles = |width: u32| self.tokens.div_ceil(256) * self.rows.div_ceil(width);
        // As long as it takes to multiply all tiles of those that get most, and what each costs besides.
        let cost = |&&(width, ..): &&(u32, u32, u32)| tiles(width).div_ceil(pairs) * (width + 32);
        let &(width, stages, stages_split) = WIDTHS.iter().rev().min_by_key(cost).expect("widths");
        let (inputs, outputs, boxed) = ([self.tokens, self.cols], [self.tokens, self.rows], 64);
        // X and y are of one type.
        let own = |start, size, stride, boxed| match split {
            true => TensorMap::wide(start, size, stride, boxed),
            false => TensorMap::halves(start, size, stride, boxed),
        };
        let params = HopperParams {
            x: own(self.x, inputs, self.x_stride, 128)?,
            w: TensorMap::halves(self.weight, [self.rows, self.cols], self.cols, width / 2)?,
            y: own(self.y, outputs, self.rows, boxed)?,
            wide: TensorMap::wide(self.wide, outputs, self.rows, boxed)?,
            residual: TensorMap::wide(self.residual_out, outputs, self.rows, boxed)?,
            of: *self,
            pad: [0; 8],
        };
        // Stages, two pieces of 64 × 128 bytes a warpgroup on their way out, and what aligns them.
        let (stages, x_bytes) = if split { (stages_split, 4) } else { (stages, 2) };
        let shared = stages * (128 * x_bytes + width * 2) * 64 + 4 * 64 * 128 + 1024;
        let shape = Shape { grid: (2 * tiles(width).min(pairs), 1), threads: 384, shared, early: true };
        let kind = if split { "split" } else { "hopper" };
        gpu.launch("gemm_hopper", &format!("gemm_{kind}_{width}"), shape, &params)
    }
}

impl<'a, T: Element> Gemm<'a, T> {
    /// X Wᵀ of X [T, K].
    pub fn new(tokens: usize, weight: &'a DeviceMatrix, x: At<'a, T>) -> Self {
        Self {
            tokens,
            weight,
            bias: None,
            row_scale: None,
            output_scale: 1.0,
            activation: None,
            x,
            x_stride: weight.cols(),
            wide: None,
            y: None,
            residual: None,
            residual_scale: 1.0,
        }
    }

    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let (tokens, rows, cols) = (self.tokens, self.weight.rows(), self.weight.cols());
        if tokens == 0 {
            return Ok(());
        }
        let vector = |buffer: Option<&Buffer<f32>>, what: &str| optional(buffer.map(At::from), rows, what);
        let matrix = |buffer: Option<&Buffer<f32>>, what: &str| optional(buffer.map(At::from), tokens * rows, what);
        let params = Params {
            weight: self.weight.ptr(),
            x: self.x.rows(tokens, cols, self.x_stride, "gemm: x"),
            bias: vector(self.bias, "gemm: bias"),
            row_scale: vector(self.row_scale, "gemm: row scale"),
            residual_in: matrix(self.residual.map(|r| r.0), "gemm: residual"),
            residual_out: matrix(self.residual.map(|r| r.1), "gemm: residual"),
            wide: matrix(self.wide, "gemm: y"),
            y: optional(self.y.map(At::from), tokens * rows, "gemm: y"),
            tokens: number(tokens),
            rows: number(rows),
            cols: number(cols),
            x_stride: number(self.x_stride),
            activation: activation_code(self.activation),
            pad: 0,
            output_scale: self.output_scale,
            residual_scale: self.residual_scale,
        };
        let eights = [cols, self.x_stride, self.x.1].iter().all(|n| n.is_multiple_of(8));
        let eights = eights && self.weight.dtype() == Dtype::Bf16;
        let on_hopper = eights && gpu.is_hopper() && rows.is_multiple_of(8) && self.activation.is_none();
        if on_hopper && matches!(T::NAME, "bf16" | "f32") {
            return params.run_on_hopper(gpu, T::NAME == "f32");
        }
        let halves = eights && T::NAME == "bf16";
        if halves {
            let grid = (number(tokens).div_ceil(128), number(rows).div_ceil(256));
            let shape = Shape { grid, threads: 256, shared: 3 * (128 + 256) * 64 * 2, early: false };
            return gpu.launch("gemm", "gemm_tensor_bf16", shape, &params);
        }
        let grid = (number(tokens).div_ceil(64), number(rows).div_ceil(64));
        let kernel = format!("gemm_exact_{}_{}", self.weight.dtype(), T::NAME);
        gpu.launch("gemm", &kernel, Shape { grid, threads: 256, shared: 0, early: false }, &params)
    }
}
