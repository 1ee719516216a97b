//! One token through the recurrences of Mamba-1 and Mamba-2.

use super::launch::{Ptr, Shape};
use super::{At, Buffer, DeviceMatrix, Gpu, Result, number, optional};

/// Scales of the RMS norms of δ [R], B [N] and C [N].
#[derive(Clone, Copy, Debug)]
pub struct DbcNorms<'a> {
    pub scales: [&'a Buffer<f32>; 3],
    pub eps: f32,
}

/// Δ = softplus(W_dt δ + b), then one token of the selective scan ([`crate::SelectiveScan`]) and y ⊙ silu(z); E channels, N states.
#[derive(Clone, Copy, Debug)]
pub struct ScanStep<'a> {
    /// [E, R].
    pub dt_weight: &'a DeviceMatrix,
    /// [E].
    pub dt_bias: &'a Buffer<f32>,
    /// [R + 2N]: δ, B, C.
    pub dbc: &'a Buffer<f32>,
    pub norms: Option<DbcNorms<'a>>,
    /// [E, N], negative.
    pub a: &'a Buffer<f32>,
    /// [E].
    pub d: &'a Buffer<f32>,
    /// [E]: x and z.
    pub x: At<'a>,
    pub gate: At<'a>,
    /// [E, N], moved on.
    pub state: &'a Buffer<f32>,
    /// Written: Δ [E], B and C [N] after their norms, y [E] and y ⊙ silu(z) [E].
    pub delta: At<'a>,
    pub key: At<'a>,
    pub query: At<'a>,
    pub core: At<'a>,
    pub gated: At<'a>,
    /// ‖h‖ [E].
    pub state_norm: Option<&'a Buffer<f32>>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ScanParams {
    dt_weight: Ptr,
    dt_bias: Ptr,
    dbc: Ptr,
    dt_norm: Ptr,
    b_norm: Ptr,
    c_norm: Ptr,
    a: Ptr,
    d: Ptr,
    value: Ptr,
    gate: Ptr,
    state: Ptr,
    delta: Ptr,
    key: Ptr,
    query: Ptr,
    core: Ptr,
    gated: Ptr,
    state_norm: Ptr,
    channels: u32,
    n: u32,
    r: u32,
    eps: f32,
}

impl ScanStep<'_> {
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let (e, r) = (self.dt_weight.rows(), self.dt_weight.cols());
        let n = self.a.len() / e;
        let of = |buffer: &Buffer<f32>, len: usize, what: &str| At::from(buffer).ptr(len, what);
        let norm = |i: usize, len: usize| {
            self.norms.map_or(Ptr::default(), |norms| of(norms.scales[i], len, "scan step: norm"))
        };
        let params = ScanParams {
            dt_weight: self.dt_weight.ptr(),
            dt_bias: of(self.dt_bias, e, "scan step: bias"),
            dbc: of(self.dbc, r + 2 * n, "scan step: δ, B, C"),
            dt_norm: norm(0, r),
            b_norm: norm(1, n),
            c_norm: norm(2, n),
            a: of(self.a, e * n, "scan step: A"),
            d: of(self.d, e, "scan step: D"),
            value: self.x.ptr(e, "scan step: x"),
            gate: self.gate.ptr(e, "scan step: z"),
            state: of(self.state, e * n, "scan step: state"),
            delta: self.delta.ptr(e, "scan step: Δ"),
            key: self.key.ptr(n, "scan step: B"),
            query: self.query.ptr(n, "scan step: C"),
            core: self.core.ptr(e, "scan step: y"),
            gated: self.gated.ptr(e, "scan step: gated"),
            state_norm: optional(self.state_norm.map(At::from), e, "scan step: norm"),
            channels: number(e),
            n: number(n),
            r: number(r),
            eps: self.norms.map_or(0.0, |norms| norms.eps),
        };
        let any = if self.dt_weight.in_eights() && n.is_multiple_of(4) { "" } else { "any_" };
        let shape =
            Shape { grid: (number(e).div_ceil(32), 1), threads: 128, shared: number((r + 2 * n) * 4), early: true };
        gpu.launch("step", &format!("scan_step_{any}{}", self.dt_weight.dtype()), shape, &params)
    }
}

/// One token of the state-space dual ([`crate::Ssd`]): H heads of P, states of N ≤ 256, G groups.
#[derive(Clone, Copy, Debug)]
pub struct SsdStep<'a> {
    pub heads: usize,
    pub head_dim: usize,
    pub state_dim: usize,
    pub groups: usize,
    /// [H].
    pub delta: At<'a>,
    /// [H], negative.
    pub a: &'a Buffer<f32>,
    /// [H] or [H·P].
    pub d: &'a Buffer<f32>,
    /// x [H, P], B and C [G, N].
    pub x: At<'a>,
    pub key: At<'a>,
    pub query: At<'a>,
    /// [H, P, N], moved on.
    pub state: &'a Buffer<f32>,
    /// y [H, P].
    pub core: At<'a>,
    /// z [H, P], and y ⊙ silu(z).
    pub gate: Option<(At<'a>, At<'a>)>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SsdParams {
    delta: Ptr,
    a: Ptr,
    d: Ptr,
    x: Ptr,
    key: Ptr,
    query: Ptr,
    gate: Ptr,
    state: Ptr,
    core: Ptr,
    gated: Ptr,
    heads: u32,
    head_dim: u32,
    n: u32,
    groups: u32,
    d_by_channel: u32,
    pad: u32,
}

/// Elements of a row of the state that each lane of a warp holds, a power of two, of N ≤ 256.
pub(super) fn per_lane(state_dim: usize) -> usize {
    assert!((1..=256).contains(&state_dim), "ssd: a state of {state_dim} on the GPU");
    state_dim.div_ceil(32).next_power_of_two()
}

impl SsdStep<'_> {
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        let SsdStep { heads, head_dim, state_dim: n, groups, .. } = *self;
        assert!(groups > 0 && heads.is_multiple_of(groups), "ssd step: {heads} heads in {groups} groups");
        let e = heads * head_dim;
        let of = |buffer: &Buffer<f32>, len: usize, what: &str| At::from(buffer).ptr(len, what);
        assert!(self.d.len() == heads || self.d.len() == e, "ssd step: D is neither [H] nor [H, P]");
        let params = SsdParams {
            delta: self.delta.ptr(heads, "ssd step: Δ"),
            a: of(self.a, heads, "ssd step: A"),
            d: self.d.ptr(0),
            x: self.x.ptr(e, "ssd step: x"),
            key: self.key.ptr(groups * n, "ssd step: B"),
            query: self.query.ptr(groups * n, "ssd step: C"),
            gate: optional(self.gate.map(|gate| gate.0), e, "ssd step: z"),
            state: of(self.state, e * n, "ssd step: state"),
            core: self.core.ptr(e, "ssd step: y"),
            gated: optional(self.gate.map(|gate| gate.1), e, "ssd step: gated"),
            heads: number(heads),
            head_dim: number(head_dim),
            n: number(n),
            groups: number(groups),
            d_by_channel: (self.d.len() != heads).into(),
            pad: 0,
        };
        let shape = Shape { grid: (number(e).div_ceil(16), 1), threads: 128, shared: 0, early: true };
        gpu.launch("step", &format!("ssd_step_{}", per_lane(n)), shape, &params)
    }
}
