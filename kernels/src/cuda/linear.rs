//! One token through a linear map, with what stands before and after it.

use half::{bf16, f16};

use super::launch::{Ptr, Shape};
use super::{At, Buffer, CudaError, Gpu, Result, activation_code, number, optional};
use crate::Activation;
use crate::matrix::{Dtype, Matrix, Values};

/// A [`Matrix`] in device memory.
#[derive(Clone, Debug)]
pub struct DeviceMatrix {
    rows: usize,
    cols: usize,
    elements: Elements,
}

#[derive(Clone, Debug)]
enum Elements {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    F16(Buffer<f16>),
}

impl DeviceMatrix {
    /// # Errors
    /// It does not fit, or is of q8 blocks, which have no kernel.
    pub fn upload(gpu: &Gpu, matrix: &Matrix) -> Result<DeviceMatrix> {
        let elements = match matrix.values() {
            Values::F32(values) => Elements::F32(gpu.upload(values)?),
            Values::Bf16(values) => Elements::Bf16(gpu.upload(values)?),
            Values::F16(values) => Elements::F16(gpu.upload(values)?),
            Values::Q8(_) => return Err(CudaError::Unsupported("q8 weights".to_owned())),
        };
        Ok(DeviceMatrix { rows: matrix.rows(), cols: matrix.cols(), elements })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn dtype(&self) -> Dtype {
        match self.elements {
            Elements::F32(_) => Dtype::F32,
            Elements::Bf16(_) => Dtype::Bf16,
            Elements::F16(_) => Dtype::F16,
        }
    }

    pub(super) fn ptr(&self) -> Ptr {
        match &self.elements {
            Elements::F32(buffer) => buffer.ptr(0),
            Elements::Bf16(buffer) => buffer.ptr(0),
            Elements::F16(buffer) => buffer.ptr(0),
        }
    }

    /// Whether kernels may read eight elements at a time.
    pub(super) fn in_eights(&self) -> bool {
        self.cols.is_multiple_of(8)
    }
}

/// What a linear map reads, [in].
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    Plain(At<'a>),
    /// RMS norm by group, ⊙ w.
    Rms {
        x: At<'a>,
        weight: &'a Buffer<f32>,
        groups: usize,
        eps: f32,
    },
    /// Layer norm.
    Layer {
        x: At<'a>,
        weight: &'a Buffer<f32>,
        bias: Option<&'a Buffer<f32>>,
        eps: f32,
    },
    /// RMS norm of x ⊙ silu(gate), ⊙ w.
    GateRms {
        x: At<'a>,
        gate: At<'a>,
        weight: &'a Buffer<f32>,
        groups: usize,
        eps: f32,
    },
    /// The RMS norm of x ⊙ w, ⊙ silu(gate).
    RmsGate {
        x: At<'a>,
        gate: At<'a>,
        weight: &'a Buffer<f32>,
        groups: usize,
        eps: f32,
    },
    /// x ⊙ silu(gate).
    Gate {
        x: At<'a>,
        gate: At<'a>,
    },
    /// x ⊙ σ(gate).
    SigmoidGate {
        x: At<'a>,
        gate: At<'a>,
    },
}

/// Rows `from..from + channels` meet a convolution of K ≤ 4 taps and silu.
#[derive(Clone, Copy, Debug)]
pub struct Convolved<'a> {
    pub from: usize,
    pub channels: usize,
    /// [C, K].
    pub weight: &'a Buffer<f32>,
    pub bias: Option<&'a Buffer<f32>>,
    /// [K−1, C], moved on.
    pub history: &'a Buffer<f32>,
    /// [C] each: before and after silu.
    pub convolved: At<'a>,
    pub activated: At<'a>,
}

/// The second matrix of f(gate · scale) ⊙ up.
#[derive(Clone, Copy, Debug)]
pub struct GatedUnit<'a> {
    pub up: &'a DeviceMatrix,
    pub up_bias: Option<&'a Buffer<f32>>,
    pub gate_scale: f32,
}

/// y = f((W input + b) ⊙ row_scale · output_scale), f the identity where absent; residual_out = residual_in + y · residual_scale.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    pub weight: &'a DeviceMatrix,
    pub bias: Option<&'a Buffer<f32>>,
    pub row_scale: Option<&'a Buffer<f32>>,
    pub input: Input<'a>,
    pub gated: Option<GatedUnit<'a>>,
    pub activation: Option<Activation>,
    pub output_scale: f32,
    pub y: Option<At<'a>>,
    /// (in, out): may be the same.
    pub residual: Option<(At<'a>, At<'a>)>,
    pub residual_scale: f32,
    pub convolved: Option<Convolved<'a>>,
    /// (bias, Δ, low, high): the last H rows become Δ = clamp(softplus(· + bias)).
    pub delta: Option<(&'a Buffer<f32>, At<'a>, f32, f32)>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    weight: Ptr,
    weight2: Ptr,
    bias: Ptr,
    bias2: Ptr,
    row_scale: Ptr,
    x: Ptr,
    norm_weight: Ptr,
    norm_bias: Ptr,
    gate: Ptr,
    y: Ptr,
    residual_in: Ptr,
    residual_out: Ptr,
    conv_weight: Ptr,
    conv_bias: Ptr,
    history: Ptr,
    conv: Ptr,
    value: Ptr,
    dt_bias: Ptr,
    delta: Ptr,
    rows: u32,
    cols: u32,
    prologue: u32,
    groups: u32,
    conv_from: u32,
    conv_to: u32,
    taps: u32,
    dt_from: u32,
    activation: u32,
    pad: u32,
    eps: f32,
    scale: f32,
    dt_low: f32,
    dt_high: f32,
    gate_scale: f32,
    output_scale: f32,
}

impl<'a> Linear<'a> {
    /// y = W input.
    pub fn new(weight: &'a DeviceMatrix, input: Input<'a>, y: Option<At<'a>>) -> Linear<'a> {
        Linear {
            weight,
            bias: None,
            row_scale: None,
            input,
            gated: None,
            activation: None,
            output_scale: 1.0,
            y,
            residual: None,
            residual_scale: 1.0,
            convolved: None,
            delta: None,
        }
    }

    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let (rows, cols) = (self.weight.rows, self.weight.cols);
        assert!(rows > 0 && cols > 0, "linear: an empty matrix");
        let whole = |buffer: Option<&Buffer<f32>>, len: usize, what: &str| optional(buffer.map(At::from), len, what);
        // (kind, x, gate, weight, bias, groups, eps)
        let (kind, x, gate, weight, bias, groups, eps) = match self.input {
            Input::Plain(x) => (0, x, None, None, None, 1, 0.0),
            Input::Rms { x, weight, groups, eps } => (1, x, None, Some(weight), None, groups, eps),
            Input::Layer { x, weight, bias, eps } => (2, x, None, Some(weight), bias, 1, eps),
            Input::GateRms { x, gate, weight, groups, eps } => (3, x, Some(gate), Some(weight), None, groups, eps),
            Input::RmsGate { x, gate, weight, groups, eps } => (4, x, Some(gate), Some(weight), None, groups, eps),
            Input::Gate { x, gate } => (5, x, Some(gate), None, None, 1, 0.0),
            Input::SigmoidGate { x, gate } => (6, x, Some(gate), None, None, 1, 0.0),
        };
        assert!((1..=256).contains(&groups) && cols.is_multiple_of(groups), "linear: {cols} inputs in {groups} groups");
        let pair = self.gated.as_ref();
        if let Some(unit) = pair {
            assert_eq!((unit.up.rows, unit.up.cols, unit.up.dtype()), (rows, cols, self.weight.dtype()), "linear: up");
            assert!(self.residual.is_none() && self.convolved.is_none() && self.delta.is_none() && self.y.is_some());
        }
        let mut params = Params {
            weight: self.weight.ptr(),
            weight2: pair.map_or(Ptr::default(), |unit| unit.up.ptr()),
            bias: whole(self.bias, rows, "linear: bias"),
            bias2: pair.map_or(Ptr::default(), |unit| whole(unit.up_bias, rows, "linear: up bias")),
            row_scale: whole(self.row_scale, rows, "linear: row scale"),
            x: x.ptr(cols, "linear: x"),
            norm_weight: whole(weight, cols, "linear: norm"),
            norm_bias: whole(bias, cols, "linear: norm bias"),
            gate: optional(gate, cols, "linear: gate"),
            y: optional(self.y, rows, "linear: y"),
            residual_in: optional(self.residual.map(|r| r.0), rows, "linear: residual"),
            residual_out: optional(self.residual.map(|r| r.1), rows, "linear: residual"),
            rows: number(rows),
            cols: number(cols),
            prologue: kind,
            groups: number(groups),
            dt_from: u32::MAX,
            activation: activation_code(self.activation),
            eps,
            scale: self.residual_scale,
            gate_scale: pair.map_or(1.0, |unit| unit.gate_scale),
            output_scale: self.output_scale,
            ..bytemuck::Zeroable::zeroed()
        };
        if let Some(conv) = &self.convolved {
            let (channels, taps) = (conv.channels, conv.weight.len() / conv.channels);
            assert!(
                (1..=4).contains(&taps) && conv.weight.len() == channels * taps,
                "linear: a convolution of {taps} taps"
            );
            assert!(conv.from + channels <= rows && self.residual.is_none(), "linear: rows of the convolution");
            params.conv_from = number(conv.from);
            params.conv_to = number(conv.from + channels);
            params.taps = number(taps);
            params.conv_weight = conv.weight.ptr(0);
            params.conv_bias = whole(conv.bias, channels, "linear: conv bias");
            params.history = At::from(conv.history).ptr((taps - 1) * channels, "linear: history");
            params.conv = conv.convolved.ptr(channels, "linear: conv");
            params.value = conv.activated.ptr(channels, "linear: value");
        }
        if let Some((bias, delta, low, high)) = self.delta {
            assert!(bias.len() <= rows && self.residual.is_none(), "linear: delta");
            params.dt_from = number(rows - bias.len());
            (params.dt_bias, params.delta) = (bias.ptr(0), delta.ptr(bias.len(), "linear: delta"));
            (params.dt_low, params.dt_high) = (low, high);
        }
        // (kernel, rows a block, blocks a multiprocessor at most): enough warps to keep the memory busy, few enough that each pays the
        // prologue once and shares reads of x.
        let busy = rows as u32 / gpu.processors();
        let (variant, rows_a_block, resident) = match (pair.is_some(), self.weight.in_eights()) {
            (true, true) => ("pair", 16, 2),
            (true, false) => ("pair_any", 8, 8),
            (false, false) => ("any", 8, 8),
            (false, true) if busy < 4 => ("r1s8", 1, 8),
            (false, true) if busy < 16 => ("r1", 8, 3),
            (false, true) if busy < 128 || self.weight.dtype() == Dtype::F32 => ("r2", 16, 3),
            (false, true) => ("r4", 32, 2),
        };
        let kernel = format!("linear_{variant}_{}", self.weight.dtype());
        let shape = Shape {
            grid: (number(rows).div_ceil(rows_a_block).min(resident * gpu.processors()), 1),
            threads: 256,
            shared: number(cols.div_ceil(8) * 32),
            early: true,
        };
        gpu.launch("linear", &kernel, shape, &params)
    }
}

/// x = E[token] · scale (+ positions[position]), the two read from `place` [2] on the device.
#[derive(Clone, Copy, Debug)]
pub struct Embed<'a> {
    pub table: &'a DeviceMatrix,
    pub positions: Option<&'a DeviceMatrix>,
    /// {token, position}: inside the tables, as the caller sees to.
    pub place: &'a Buffer<u32>,
    pub scale: f32,
    pub x: At<'a>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct EmbedParams {
    table: Ptr,
    positions: Ptr,
    place: Ptr,
    x: Ptr,
    width: u32,
    scale: f32,
}

impl Embed<'_> {
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let width = self.table.cols;
        if let Some(positions) = self.positions {
            assert_eq!((positions.cols, positions.dtype()), (width, self.table.dtype()), "embed: positions");
        }
        let params = EmbedParams {
            table: self.table.ptr(),
            positions: self.positions.map_or(Ptr::default(), DeviceMatrix::ptr),
            place: At::from(self.place).ptr(2, "embed: place"),
            x: self.x.ptr(width, "embed: x"),
            width: number(width),
            scale: self.scale,
        };
        let shape = Shape { grid: (number(width).div_ceil(128), 1), threads: 128, shared: 0, early: true };
        gpu.launch("linear", &format!("embed_{}", self.table.dtype()), shape, &params)
    }
}
