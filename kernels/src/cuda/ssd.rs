//! The state-space dual of any number of tokens.

use super::launch::{Ptr, Shape};
use super::step::per_lane;
use super::{At, Buffer, Element, Gpu, Result, number, optional};

/// Inputs of the op ([`crate::Ssd`]): T tokens, H heads of P, states of N ≤ 256, G groups. Rows of each input stand `…_stride` apart.
///
/// f32 inputs, and shapes other than P = 64 with N = 64 or 128, take the recurrence in f32. 16-bit inputs of those shapes take chunks
/// of 64 tokens on tensor cores: products of 16-bit numbers, f32 sums, the state f32 from chunk to chunk and rounded where C reads it.
#[derive(Clone, Copy, Debug)]
pub struct Ssd<'a, T: Element> {
    pub tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub state_dim: usize,
    pub groups: usize,
    /// Δ before its bias [T, H].
    pub delta: At<'a, T>,
    pub delta_stride: usize,
    pub delta_bias: Option<&'a Buffer<f32>>,
    pub softplus: bool,
    /// Δ is clamped to this.
    pub delta_limit: (f32, f32),
    /// [H], negative.
    pub a: &'a Buffer<f32>,
    /// [T, G, N] each.
    pub b: At<'a, T>,
    pub c: At<'a, T>,
    pub bc_stride: usize,
    /// [T, H, P].
    pub x: At<'a, T>,
    pub x_stride: usize,
    /// [H] or [H·P].
    pub d: Option<&'a Buffer<f32>>,
    /// [H, P, N]: the initial state, which becomes the final one.
    pub state: &'a Buffer<f32>,
    /// [T, H, P].
    pub y: &'a Buffer<T>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    delta: Ptr,
    x: Ptr,
    b: Ptr,
    c: Ptr,
    delta_bias: Ptr,
    a: Ptr,
    d: Ptr,
    state: Ptr,
    y: Ptr,
    segment_state: Ptr,
    segment_decay: Ptr,
    tokens: u32,
    heads: u32,
    head_dim: u32,
    n: u32,
    groups: u32,
    delta_stride: u32,
    x_stride: u32,
    bc_stride: u32,
    y_stride: u32,
    softplus: u32,
    d_by_channel: u32,
    segments: u32,
    chunks: u32,
    dt_low: f32,
    dt_high: f32,
    pad: u32,
}

/// Tokens a chunk.
const CHUNK: usize = 64;
const HEAD_DIM: usize = 64;

impl<T: Element> Ssd<'_, T> {
    fn on_tensor_cores(&self) -> bool {
        let starts = [self.x.1, self.b.1, self.c.1, self.x_stride, self.bc_stride];
        T::NAME != "f32"
            && self.head_dim == HEAD_DIM
            && (self.state_dim == 64 || self.state_dim == 128)
            && starts.iter().all(|s| s.is_multiple_of(8))
            && self.tokens > 1
    }

    /// (segments, chunks of each): as many as fill the device, two blocks a multiprocessor. Long segments must end together, or the
    /// last wave of blocks is waited for; each segment also costs a state to carry.
    fn segments(&self, gpu: &Gpu) -> (usize, usize) {
        let (chunks, slots) = (self.tokens.div_ceil(CHUNK), 2.0 * gpu.processors() as f32);
        let split = |wanted: usize| {
            let each = chunks.div_ceil(wanted);
            (chunks.div_ceil(each), each)
        };
        let cost = |(segments, each): (usize, usize)| {
            let waves = (self.heads * segments) as f32 / slots;
            let waves = if each < 16 { waves.max(1.0) } else { waves.ceil() };
            each as f32 * waves + 0.2 * segments as f32
        };
        let splits = (1..=chunks.div_ceil(2).min(64)).map(split);
        splits.min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or((1, chunks))
    }

    /// Floats of scratch memory that [`Ssd::run`] needs.
    pub fn scratch_len(&self, gpu: &Gpu) -> usize {
        if !self.on_tensor_cores() {
            return 0;
        }
        let (segments, _) = self.segments(gpu);
        if segments == 1 { 0 } else { segments * self.heads * (self.head_dim * self.state_dim + 1) }
    }

    /// `scratch` of [`Ssd::scratch_len`], or more.
    pub fn run(&self, gpu: &Gpu, scratch: &Buffer<f32>) -> Result<()> {
        let Ssd { tokens, heads, head_dim, state_dim: n, groups, delta_stride, x_stride, bc_stride, .. } = *self;
        assert!(groups > 0 && heads.is_multiple_of(groups), "ssd: {heads} heads in {groups} groups");
        let e = heads * head_dim;
        assert!(self.d.is_none_or(|d| d.len() == heads || d.len() == e), "ssd: D is neither [H] nor [H, P]");
        if tokens == 0 {
            return Ok(());
        }
        let (segments, chunks) = self.segments(gpu);
        let mut params = Params {
            delta: self.delta.rows(tokens, heads, delta_stride, "ssd: Δ"),
            x: self.x.rows(tokens, e, x_stride, "ssd: x"),
            b: self.b.rows(tokens, groups * n, bc_stride, "ssd: B"),
            c: self.c.rows(tokens, groups * n, bc_stride, "ssd: C"),
            delta_bias: optional(self.delta_bias.map(At::from), heads, "ssd: bias of Δ"),
            a: At::from(self.a).ptr(heads, "ssd: A"),
            d: self.d.map_or(Ptr::default(), |d| d.ptr(0)),
            state: At::from(self.state).ptr(e * n, "ssd: state"),
            y: At::from(self.y).ptr(tokens * e, "ssd: y"),
            segment_state: Ptr::default(),
            segment_decay: Ptr::default(),
            tokens: number(tokens),
            heads: number(heads),
            head_dim: number(head_dim),
            n: number(n),
            groups: number(groups),
            delta_stride: number(delta_stride),
            x_stride: number(x_stride),
            bc_stride: number(bc_stride),
            y_stride: number(e),
            softplus: self.softplus.into(),
            d_by_channel: self.d.is_some_and(|d| d.len() != heads).into(),
            segments: number(segments),
            chunks: number(chunks),
            dt_low: self.delta_limit.0,
            dt_high: self.delta_limit.1,
            pad: 0,
        };
        let shape = |blocks: usize, threads: u32, shared: usize| Shape {
            grid: (number(blocks), 1),
            threads,
            shared: number(shared),
            early: false,
        };
        if !self.on_tensor_cores() {
            let kernel = format!("ssd_recurrent_{}_{}", per_lane(n), T::NAME);
            return gpu.launch("ssd", &kernel, shape(heads * head_dim.div_ceil(16), 128, 0), &params);
        }
        if segments > 1 {
            let scratch = At::from(scratch);
            params.segment_state = scratch.ptr(self.scratch_len(gpu), "ssd: scratch");
            params.segment_decay = At(scratch.0, segments * e * n).ptr(segments * heads, "ssd: scratch");
            let kernel = format!("ssd_segment_{n}_{}", T::NAME);
            gpu.launch("ssd", &kernel, shape(heads * (segments - 1), 256, 4 * CHUNK * (HEAD_DIM + n)), &params)?;
            let carry = Shape { grid: (number(e * n).div_ceil(256), 1), threads: 256, shared: 0, early: false };
            gpu.launch("ssd", "ssd_carry", carry, &params)?;
        }
        // Two stages of x, B and C, and the state.
        let shared = 4 * CHUNK * (HEAD_DIM + 2 * n) + 2 * HEAD_DIM * n;
        gpu.launch("ssd", &format!("ssd_chunk_{n}_{}", T::NAME), shape(heads * segments, 256, shared), &params)
    }
}
