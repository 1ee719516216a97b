//! Norms of many rows.

use super::launch::{Ptr, Shape};
use super::{At, Buffer, Element, Gpu, Result, number, optional};

/// Where silu(gate) joins: [T, E], a row every so many elements.
#[derive(Clone, Copy, Debug)]
pub enum Gating<'a, Y: Element> {
    None,
    Before(At<'a, Y>, usize),
    After(At<'a, Y>, usize),
}

/// RMS norm, layer norm or gated group norm of x [T, E]: see [`crate::norm`]. Sums are f32; X and Y are f32 and f32, f32 and bf16, or
/// bf16 and bf16.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a, X: Element, Y: Element> {
    pub tokens: usize,
    pub x: At<'a, X>,
    pub x_stride: usize,
    pub gating: Gating<'a, Y>,
    /// [E].
    pub weight: &'a Buffer<f32>,
    /// [E]; of a layer norm.
    pub bias: Option<&'a Buffer<f32>>,
    /// Whether the mean goes first.
    pub layer: bool,
    pub groups: usize,
    pub eps: f32,
    /// May be x, where the types are the same.
    pub y: At<'a, Y>,
    pub y_stride: usize,
    /// [T, groups]: ρ.
    pub rho: Option<&'a Buffer<f32>>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    x: Ptr,
    gate: Ptr,
    weight: Ptr,
    bias: Ptr,
    y: Ptr,
    rho: Ptr,
    width: u32,
    groups: u32,
    layer: u32,
    gate_first: u32,
    x_stride: u32,
    gate_stride: u32,
    y_stride: u32,
    eps: f32,
}

impl<'a, X: Element, Y: Element> Norm<'a, X, Y> {
    /// The RMS norm of dense rows.
    pub fn rms(tokens: usize, x: At<'a, X>, weight: &'a Buffer<f32>, eps: f32, y: At<'a, Y>) -> Self {
        let width = weight.len();
        Self {
            tokens,
            x,
            x_stride: width,
            gating: Gating::None,
            weight,
            bias: None,
            layer: false,
            groups: 1,
            eps,
            y,
            y_stride: width,
            rho: None,
        }
    }

    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let (tokens, width, groups) = (self.tokens, self.weight.len(), self.groups);
        assert!(groups > 0 && width > 0 && width.is_multiple_of(groups), "norm: {width} channels in {groups} groups");
        let rows = tokens * groups;
        let (gate, gate_first, gate_stride) = match self.gating {
            Gating::None => (Ptr::default(), 0, 0),
            Gating::Before(gate, stride) => (gate.rows(tokens, width, stride, "norm: gate"), 1, stride),
            Gating::After(gate, stride) => (gate.rows(tokens, width, stride, "norm: gate"), 2, stride),
        };
        let params = Params {
            x: self.x.rows(tokens, width, self.x_stride, "norm: x"),
            gate,
            weight: self.weight.ptr(0),
            bias: optional(self.bias.map(At::from), width, "norm: bias"),
            y: self.y.rows(tokens, width, self.y_stride, "norm: y"),
            rho: optional(self.rho.map(At::from), rows, "norm: rho"),
            width: number(width / groups),
            groups: number(groups),
            layer: self.layer.into(),
            gate_first,
            x_stride: number(self.x_stride),
            gate_stride: number(gate_stride),
            y_stride: number(self.y_stride),
            eps: self.eps,
        };
        if rows == 0 {
            return Ok(());
        }
        let gate_start = match self.gating {
            Gating::None => 0,
            Gating::Before(gate, _) | Gating::After(gate, _) => gate.1,
        };
        let of_group = width / groups;
        let starts = [of_group, self.x_stride, self.x.1, gate_stride, gate_start, self.y_stride, self.y.1];
        let grid = (number(rows), 1);
        if (512..=8192).contains(&of_group) && starts.iter().all(|n| n.is_multiple_of(8)) {
            let (kernel, eights) = if of_group < 1024 { ("wide", 1) } else { ("wider", 4) };
            let gated = ["", "_before", "_after"][gate_first as usize];
            let threads = number(of_group).div_ceil(8 * eights).next_multiple_of(32);
            let shape = Shape { grid, threads, shared: 0, early: true };
            return gpu.launch("norm", &format!("norm_{kernel}{gated}_{}_{}", X::NAME, Y::NAME), shape, &params);
        }
        let shape = Shape { grid, threads: 256, shared: number(of_group * 4), early: true };
        gpu.launch("norm", &format!("norm_rows_{}_{}", X::NAME, Y::NAME), shape, &params)
    }
}
