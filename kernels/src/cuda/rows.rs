//! Rows of many tokens: embedding, gates, and what leaves for the record of a run.

use super::launch::{Ptr, Shape};
use super::{At, Buffer, DeviceMatrix, Element, Gpu, Result, To, activation_code, number, optional};
use crate::Activation;

/// x [T, d] = E[token] · scale (+ positions[first + t]), tokens inside the table and positions too, as the caller sees to.
#[derive(Clone, Copy, Debug)]
pub struct EmbedRows<'a> {
    pub table: &'a DeviceMatrix,
    pub positions: Option<&'a DeviceMatrix>,
    /// Of at least `count`.
    pub tokens: &'a Buffer<u32>,
    pub count: usize,
    pub first: usize,
    pub scale: f32,
    pub x: &'a Buffer<f32>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct EmbedParams {
    table: Ptr,
    positions: Ptr,
    tokens: Ptr,
    x: Ptr,
    width: u32,
    first: u32,
    scale: f32,
    pad: u32,
}

impl EmbedRows<'_> {
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let width = self.table.cols();
        if let Some(positions) = self.positions {
            assert_eq!((positions.cols(), positions.dtype()), (width, self.table.dtype()), "embed: positions");
            assert!(self.first + self.count <= positions.rows(), "embed: positions");
        }
        let params = EmbedParams {
            table: self.table.ptr(),
            positions: self.positions.map_or(Ptr::default(), DeviceMatrix::ptr),
            tokens: At::from(self.tokens).ptr(self.count, "embed: tokens"),
            x: At::from(self.x).ptr(self.count * width, "embed: x"),
            width: number(width),
            first: number(self.first),
            scale: self.scale,
            pad: 0,
        };
        let shape = Shape { grid: (number(self.count), 1), threads: 256, shared: 0, early: false };
        gpu.launch("rows", &format!("embed_rows_{}", self.table.dtype()), shape, &params)
    }
}

/// What a gate goes through.
#[derive(Clone, Copy, Debug)]
pub enum GateFunction {
    Activation(Activation),
    Sigmoid,
}

/// y [T, E] = x ⊙ f(gate · scale), x alone without a gate; X and Y as in [`super::Norm`].
#[derive(Clone, Copy, Debug)]
pub struct GateRows<'a, X: Element, Y: Element> {
    pub tokens: usize,
    pub width: usize,
    pub x: At<'a, X>,
    pub x_stride: usize,
    pub gate: Option<(At<'a, Y>, usize)>,
    pub function: GateFunction,
    pub gate_scale: f32,
    pub y: &'a Buffer<Y>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GateParams {
    x: Ptr,
    gate: Ptr,
    y: Ptr,
    tokens: u32,
    width: u32,
    x_stride: u32,
    gate_stride: u32,
    activation: u32,
    pad: u32,
    gate_scale: f32,
    pad2: f32,
}

impl<X: Element, Y: Element> GateRows<'_, X, Y> {
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let (tokens, width) = (self.tokens, self.width);
        if tokens * width == 0 {
            return Ok(());
        }
        let params = GateParams {
            x: self.x.rows(tokens, width, self.x_stride, "gate: x"),
            gate: self.gate.map_or(Ptr::default(), |(gate, stride)| gate.rows(tokens, width, stride, "gate: gate")),
            y: At::from(self.y).ptr(tokens * width, "gate: y"),
            tokens: number(tokens),
            width: number(width),
            x_stride: number(self.x_stride),
            gate_stride: number(self.gate.map_or(0, |gate| gate.1)),
            activation: match self.function {
                GateFunction::Activation(activation) => activation_code(Some(activation)),
                GateFunction::Sigmoid => 5,
            },
            pad: 0,
            gate_scale: self.gate_scale,
            pad2: 0.0,
        };
        let gate_at = self.gate.map_or((0, 0), |(gate, stride)| (gate.1, stride));
        let eights = [width, self.x.1, self.x_stride, gate_at.0, gate_at.1].iter().all(|n| n.is_multiple_of(8));
        let (together, suffix) = if eights { (8, "_wide") } else { (1, "") };
        let blocks = (tokens * width / together).div_ceil(256).min(16 * gpu.processors() as usize);
        let shape = Shape { grid: (number(blocks), 1), threads: 256, shared: 0, early: false };
        gpu.launch("rows", &format!("gate_{}_{}{suffix}", X::NAME, Y::NAME), shape, &params)
    }
}

/// What one [`record`] entry takes of T tokens.
#[derive(Clone, Copy, Debug)]
pub enum Taken<'a, T: Element> {
    /// [T, width], a row every `stride`, to [T, width].
    Rows { from: At<'a, T>, stride: usize, width: usize },
    /// The same through clamp(softplus(· + bias)): Δ of Mamba-2.
    Steps { from: At<'a, T>, stride: usize, bias: &'a Buffer<f32>, low: f32, high: f32 },
    /// The strength of writing of a whole layer, ‖(Δ_h ‖k_h‖ ‖v_h‖)_h‖, to [T].
    Write(Written<'a, T>),
}

/// Keys [T, G, N] and values [T, H_v, P] of H heads, which share keys and values in equal parts; Δ [T, H] if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a, T: Element> {
    pub heads: usize,
    pub delta: Option<At<'a>>,
    pub keys: At<'a, T>,
    pub keys_stride: usize,
    pub groups: usize,
    pub key_dim: usize,
    pub values: At<'a, T>,
    pub values_stride: usize,
    pub value_groups: usize,
    pub value_dim: usize,
}

/// One quantity on its way into the record, as the kernel reads it; see `struct Entry` in rows.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Entry {
    a: Ptr,
    b: Ptr,
    c: Ptr,
    to: Ptr,
    kind: u32,
    element: u32,
    width: u32,
    stride: u32,
    stride_b: u32,
    stride_c: u32,
    heads: u32,
    groups: u32,
    value_groups: u32,
    head_dim: u32,
    n: u32,
    low: f32,
    high: f32,
    pad: u32,
}

/// 32-bit words of an [`Entry`].
pub const ENTRY_WORDS: usize = size_of::<Entry>() / 4;

impl Entry {
    /// `tokens` rows of what is `taken` go to `to`. The buffers must live while the entry is used.
    pub fn new<'a, T: Element>(taken: Taken<'_, T>, tokens: usize, to: impl Into<To<'a>>) -> Self {
        let to: To<'a> = to.into();
        let element = match T::NAME {
            "f32" => 0,
            "bf16" => 1,
            _ => 2,
        };
        let none = Self { element, ..bytemuck::Zeroable::zeroed() };
        match taken {
            Taken::Rows { from, stride, width } => Self {
                a: from.rows(tokens, width, stride, "record: rows"),
                to: to.ptr(tokens * width, "record"),
                width: number(width),
                stride: number(stride),
                ..none
            },
            Taken::Steps { from, stride, bias, low, high } => Self {
                a: from.rows(tokens, bias.len(), stride, "record: steps"),
                b: bias.ptr(0),
                to: to.ptr(tokens * bias.len(), "record"),
                kind: 1,
                width: number(bias.len()),
                stride: number(stride),
                low,
                high,
                ..none
            },
            Taken::Write(w) => {
                assert!(w.groups <= 256 && w.heads.is_multiple_of(w.value_groups), "record: {} groups", w.groups);
                Self {
                    a: optional(w.delta, tokens * w.heads, "record: Δ"),
                    b: w.keys.rows(tokens, w.groups * w.key_dim, w.keys_stride, "record: keys"),
                    c: w.values.rows(tokens, w.value_groups * w.value_dim, w.values_stride, "record: values"),
                    to: to.ptr(tokens, "record"),
                    kind: 2,
                    width: 1,
                    stride: number(w.heads),
                    stride_b: number(w.keys_stride),
                    stride_c: number(w.values_stride),
                    heads: number(w.heads),
                    groups: number(w.groups),
                    value_groups: number(w.value_groups),
                    head_dim: number(w.value_dim),
                    n: number(w.key_dim),
                    ..none
                }
            }
        }
    }
}

impl Entry {
    /// As they lie in a table for [`record`].
    pub fn words(entries: &[Self]) -> &[u32] {
        bytemuck::cast_slice(entries)
    }

    /// Moves this quantity alone, for all tokens.
    pub fn run(&self, gpu: &Gpu, tokens: usize) -> Result<()> {
        if tokens == 0 {
            return Ok(());
        }
        let shape = Shape { grid: (1, number(tokens)), threads: 256, shared: 0, early: false };
        gpu.launch("rows", "record_one", shape, self)
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RecordParams {
    entries: Ptr,
}

/// Moves what the first `count` [`Entry`]s of `entries` name, for all tokens, in one launch.
pub fn record(gpu: &Gpu, entries: &Buffer<u32>, count: usize, tokens: usize) -> Result<()> {
    let params = RecordParams { entries: At::from(entries).ptr(count * ENTRY_WORDS, "record: entries") };
    if count * tokens == 0 {
        return Ok(());
    }
    let shape = Shape { grid: (number(count), number(tokens)), threads: 1024, shared: 0, early: false };
    gpu.launch("rows", "record", shape, &params)
}
