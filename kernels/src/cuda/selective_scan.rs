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
    share: u32,
    pad: u32,
}

/// A kernel of selective_scan.cu: lanes a channel, states a lane, tokens a tile.
#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    lanes: usize,
    states: usize,
    tile: usize,
    norms: bool,
}

/// Threads of a team, teams of a block, tiles between them, barriers of a tile: as in selective_scan.cuh.
const TEAM: usize = 128;
const TEAMS: usize = 3;
const STAGES: usize = 3;
/// Warps of channels that may be handed from one multiprocessor to another.
const MOST_HANDED: usize = 1 << 16;

impl Variant {
    const WIDE: Self = Self { name: "wide", lanes: 4, states: 4, tile: 32, norms: false };
    const WIDE_NORM: Self = Self { name: "wide_norm", tile: 16, norms: true, ..Self::WIDE };
    const NARROW: Self = Self { name: "narrow", lanes: 8, states: 2, tile: 32, norms: false };
    const NARROW_NORM: Self = Self { name: "narrow_norm", norms: true, ..Self::NARROW };
    const ANY_N8: Self = Self { name: "any_n8", lanes: 4, states: 2, tile: 16, norms: true };
    const ANY_N16: Self = Self { name: "any_n16", ..Self::WIDE_NORM };
    const ANY_N64: Self = Self { name: "any_n64", lanes: 8, states: 8, tile: 16, norms: true };

    fn channels(self) -> usize {
        TEAM / self.lanes
    }

    /// Bytes of `Shared` in selective_scan.cu.
    fn shared(self) -> usize {
        let shares = 4 * self.tile * self.channels() * self.lanes;
        let steps = 8 * self.tile * self.channels();
        let keys = 4 * self.tile * (2 * self.lanes * self.states + 8);
        STAGES * (steps + keys + shares + if self.norms { shares } else { 16 } + 3 * 8)
    }
}

impl<T: Element> Scan<'_, T> {
    /// Which kernel; it does not depend on the length of the text, and those with and without norms sum in the same order, so that neither
    /// changes a bit of y.
    fn variant(&self, gpu: &Gpu, n: usize) -> Variant {
        // Pairs of channels, and 16 bytes of B and C, are loaded as one.
        let sixteen_bytes = 16 / size_of::<T>();
        let pairs = [self.delta.1, self.x.1, self.gate.map_or(0, |gate| gate.0.1), self.channels / self.groups];
        let strides = [self.delta_stride, self.x_stride, self.gate.map_or(0, |gate| gate.1)];
        let aligned = pairs.iter().chain(&strides).all(|s| s.is_multiple_of(2))
            && [self.b.1, self.c.1, self.bc_stride].iter().all(|s| s.is_multiple_of(sixteen_bytes));
        // Many lanes a channel where there are few channels. On an H200 a token takes 60 clocks of a multiprocessor with 32 channels in
        // four lanes each, and 40 with 16 in eight.
        let rounds = |variant: Variant| {
            let tasks = self.groups * (self.channels / self.groups).div_ceil(variant.channels());
            tasks.max(gpu.processors() as usize)
        };
        let wide = 3 * rounds(Variant::WIDE) <= 2 * rounds(Variant::NARROW);
        let fits = |variant: Variant| variant.shared() <= gpu.shared_limit();
        match n {
            16 if aligned && fits(Variant::NARROW_NORM) => match (wide, self.probes.state_norm.is_some()) {
                (true, false) => Variant::WIDE,
                (true, true) => Variant::WIDE_NORM,
                (false, false) => Variant::NARROW,
                (false, true) => Variant::NARROW_NORM,
            },
            16 if aligned && self.probes.state_norm.is_none() => Variant::WIDE,
            0..=8 => Variant::ANY_N8,
            9..=16 => Variant::ANY_N16,
            _ => Variant::ANY_N64,
        }
    }

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
        let variant = self.variant(gpu, n);
        // All tiles of all channels, evenly over the multiprocessors; none has less than one text's, so that no text is cut twice.
        let (tasks, tiles) = (groups * (e / groups).div_ceil(variant.channels()), tokens.div_ceil(variant.tile));
        let even = (tasks * tiles).div_ceil(gpu.processors() as usize);
        let share = if 4 * tasks > MOST_HANDED { tiles } else { even.max(tiles) };
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
            share: number(share),
            pad: 0,
        };
        let shape = Shape {
            grid: (number((tasks * tiles).div_ceil(share)), 1),
            threads: (TEAMS * TEAM) as u32,
            shared: number(variant.shared()),
            early: true,
        };
        gpu.launch("selective_scan", &format!("scan_{}_{}", variant.name, T::NAME), shape, &params)
    }
}
