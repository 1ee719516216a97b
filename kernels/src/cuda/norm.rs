//! Norms of many rows.

use super::launch::{Ptr, Shape};
use super::{At, Buffer, Gpu, Result, number, optional};

/// Where silu(gate) joins.
#[derive(Clone, Copy, Debug)]
pub enum Gating<'a> {
    None,
    Before(&'a Buffer<f32>),
    After(&'a Buffer<f32>),
}

/// RMS norm, layer norm or gated group norm of x [T, E]: see [`crate::norm`].
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub x: &'a Buffer<f32>,
    pub gating: Gating<'a>,
    /// [E].
    pub weight: &'a Buffer<f32>,
    /// [E]; of a layer norm.
    pub bias: Option<&'a Buffer<f32>>,
    /// Whether the mean goes first.
    pub layer: bool,
    pub groups: usize,
    pub eps: f32,
    pub y: &'a Buffer<f32>,
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
    eps: f32,
    pad: u32,
}

impl Norm<'_> {
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let (all, width, groups) = (self.x.len(), self.weight.len(), self.groups);
        assert!(width > 0 && all.is_multiple_of(width), "norm: x of {all} elements is not [T, {width}]");
        assert!(groups > 0 && width.is_multiple_of(groups), "norm: {width} channels in {groups} groups");
        let rows = all / width * groups;
        let (gate, gate_first) = match self.gating {
            Gating::None => (None, 0),
            Gating::Before(gate) => (Some(At::from(gate)), 1),
            Gating::After(gate) => (Some(At::from(gate)), 2),
        };
        let params = Params {
            x: self.x.ptr(0),
            gate: optional(gate, all, "norm: gate"),
            weight: self.weight.ptr(0),
            bias: optional(self.bias.map(At::from), width, "norm: bias"),
            y: At::from(self.y).ptr(all, "norm: y"),
            rho: optional(self.rho.map(At::from), rows, "norm: rho"),
            width: number(width / groups),
            groups: number(groups),
            layer: self.layer.into(),
            gate_first,
            eps: self.eps,
            pad: 0,
        };
        if rows == 0 {
            return Ok(());
        }
        let shape = Shape { grid: (number(rows), 1), threads: 256, shared: number(width / groups * 4), early: true };
        gpu.launch("norm", "norm_rows", shape, &params)
    }
}
