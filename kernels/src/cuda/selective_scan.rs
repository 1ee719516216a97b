//! The selective scan of any number of tokens.

use super::launch::{Ptr, Shape};
use super::{At, Buffer, CudaError, Element, Gpu, Result, number, optional};

/// Inputs of the scan ([`crate::SelectiveScan`]): T tokens, E channels, N ≤ 64 states, G groups of B and C. Rows of each input stand
/// `…_stride` apart, so that parts of packed projections serve as they are. Sums are f32.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a, T: Element> {
    pub tokens: usize,
    pub channels: usize,
    pub groups: usize,
    /// Δ before its bias [T, E].
    pub delta: At<'a, T>,
    pub delta_stride: usize,
    pub delta_bias: Option<&'a Buffer<f32>>,
    /// Whether Δ goes through softplus.
    pub softplus: bool,
    /// [E, N], negative.
    pub a: &'a Buffer<f32>,
    /// [T, G, N] each.
    pub b: At<'a, T>,
    pub c: At<'a, T>,
    pub bc_stride: usize,
    /// [T, E].
    pub x: At<'a, T>,
    pub x_stride: usize,
    /// [E].
    pub d: Option<&'a Buffer<f32>>,
    /// z [T, E]; y becomes y ⊙ silu(z).
    pub gate: Option<(At<'a, T>, usize)>,
    /// [E, N]: the initial state, which becomes the final one.
    pub state: &'a Buffer<f32>,
    /// [T, E].
    pub y: &'a Buffer<T>,
    /// y before the gate, [T, E].
    pub core: Option<&'a Buffer<T>>,
    pub probes: ScanProbes<'a>,
}

/// What leaves with the scan where asked for: Δ after softplus and ‖h‖, [T, E] each.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanProbes<'a> {
    pub delta: Option<&'a Buffer<f32>>,
    pub state_norm: Option<&'a Buffer<f32>>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    delta: Ptr,
    x: Ptr,
    b: Ptr,
    c: Ptr,
    gate: Ptr,
    delta_bias: Ptr,
    a: Ptr,
    d: Ptr,
    state: Ptr,
    y: Ptr,
    delta_out: Ptr,
    state_norm: Ptr,
    core: Ptr,
    tokens: u32,
    channels: u32,
    n: u32,
    groups: u32,
    delta_stride: u32,
    x_stride: u32,
    bc_stride: u32,
    gate_stride: u32,
    y_stride: u32,
    softplus: u32,
}

impl<T: Element> Scan<'_, T> {
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let Scan { tokens, channels: e, groups, delta_stride, x_stride, bc_stride, .. } = *self;
        assert!(groups > 0 && e > 0 && e.is_multiple_of(groups), "scan: {e} channels in {groups} groups");
        let n = self.a.len() / e;
        assert_eq!((self.a.len(), self.state.len()), (e * n, e * n), "scan: A and the state are not [E, N]");
        if n > 64 {
            return Err(CudaError::Unsupported(format!("a selective scan over states of {n}")));
        }
        if tokens == 0 {
            return Ok(());
        }
        let gate_stride = self.gate.map_or(0, |gate| gate.1);
        let params = Params {
            delta: self.delta.rows(tokens, e, delta_stride, "scan: Δ"),
            x: self.x.rows(tokens, e, x_stride, "scan: x"),
            b: self.b.rows(tokens, groups * n, bc_stride, "scan: B"),
            c: self.c.rows(tokens, groups * n, bc_stride, "scan: C"),
            gate: self.gate.map_or(Ptr::default(), |(gate, stride)| gate.rows(tokens, e, stride, "scan: z")),
            delta_bias: optional(self.delta_bias.map(At::from), e, "scan: bias of Δ"),
            a: self.a.ptr(0),
            d: optional(self.d.map(At::from), e, "scan: D"),
            state: self.state.ptr(0),
            y: At::from(self.y).ptr(tokens * e, "scan: y"),
            delta_out: optional(self.probes.delta.map(At::from), tokens * e, "scan: Δ out"),
            state_norm: optional(self.probes.state_norm.map(At::from), tokens * e, "scan: norms"),
            core: optional(self.core.map(At::from), tokens * e, "scan: y"),
            tokens: number(tokens),
            channels: number(e),
            n: number(n),
            groups: number(groups),
            delta_stride: number(delta_stride),
            x_stride: number(x_stride),
            bc_stride: number(bc_stride),
            gate_stride: number(gate_stride),
            y_stride: number(e),
            softplus: self.softplus.into(),
        };
        let starts = [self.delta.1, self.x.1, self.b.1, self.c.1, self.gate.map_or(0, |gate| gate.0.1)];
        let in_fours = [delta_stride, x_stride, bc_stride, gate_stride, e / groups]
            .iter()
            .chain(&starts)
            .all(|s| s.is_multiple_of(4));
        let variant = match n {
            16 if in_fours && self.probes.state_norm.is_none() => "n16",
            16 if in_fours => "n16_norm",
            0..=8 => "any_n8",
            9..=16 => "any_n16",
            _ => "any_n64",
        };
        let blocks = groups * (e / groups).div_ceil(16);
        let shape = Shape { grid: (number(blocks), 1), threads: 128, shared: 0, early: false };
        gpu.launch("selective_scan", &format!("scan_{variant}_{}", T::NAME), shape, &params)
    }
}
