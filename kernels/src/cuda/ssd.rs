//! The state-space dual of any number of tokens.

use super::launch::{Ptr, Shape, TensorMap};
use super::step::per_lane;
use super::{At, Buffer, Element, Gpu, Result, number, optional};

/// Inputs of the op ([`crate::Ssd`]): T tokens, H heads of P, states of N ≤ 256, G groups. Rows of each input stand `…_stride` apart.
///
/// P = 64 with N = 64 or 128 takes chunks of 64 tokens on tensor cores, other shapes the recurrence in f32. Of 16-bit inputs: products of
/// 16-bit numbers, f32 sums, the state f32 from chunk to chunk and rounded where C reads it; on Hopper by its own instructions. Of f32: each
/// number is the sum of two of eleven bits, so that products are those of f32 (Markidis et al. 2018).
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
    parts: u32,
}

/// See `struct HopperSsdParams` in ssd_hopper.cu.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HopperParams {
    x: TensorMap,
    b: TensorMap,
    c: TensorMap,
    y: TensorMap,
    of: Params,
    pad: [u32; 10],
}

/// Tokens a chunk.
const CHUNK: usize = 64;
const HEAD_DIM: usize = 64;

/// Which kernels do it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Along time, in f32.
    Walk,
    /// ssd.cu.
    Halves,
    /// ssd_hopper.cu.
    Hopper,
    /// ssd_f32.cu.
    Fine,
}

/// How a text is cut: segments of `chunks` chunks, and the states that those before the last add are made of `parts` each.
#[derive(Clone, Copy, Debug, Default)]
struct Cut {
    segments: usize,
    chunks: usize,
    parts: usize,
}

impl Cut {
    fn new(all_chunks: usize, segments: usize, parts: usize) -> Self {
        let chunks = all_chunks.div_ceil(segments).div_ceil(parts).max(1) * parts;
        Self { segments: all_chunks.div_ceil(chunks), chunks, parts }
    }

    /// States that are made apart before all else.
    fn states(self) -> usize {
        (self.segments - 1) * self.parts
    }
}

fn cheapest(cuts: impl Iterator<Item = Cut>, cost: impl Fn(Cut) -> f32) -> Cut {
    let costs = cuts.map(|cut| (cost(cut), cut));
    costs.min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is a cut").1
}

/// Bytes of shared memory of ssd_f32.cu: of B and x of a chunk, rows padded, as often as there is room for (two at most); of C and scores.
fn fine_shared(gpu: &Gpu, n: usize) -> Option<(usize, usize)> {
    let (size, steps) = (4 * CHUNK * (n + 8 + 2 * (HEAD_DIM + 8)), 2 * 5 * 4 * CHUNK);
    (1..=2)
        .rev()
        .map(|buffers| (buffers * size, size))
        .find(|(inputs, rest)| inputs + rest + steps <= gpu.shared_limit())
}

impl<T: Element> Ssd<'_, T> {
    fn way(&self, gpu: &Gpu) -> Way {
        let starts = [self.x.1, self.b.1, self.c.1, self.x_stride, self.bc_stride];
        let (shape, n) = (self.head_dim == HEAD_DIM && matches!(self.state_dim, 64 | 128), self.state_dim);
        let lies_by = |unit: usize| starts.iter().all(|start| start.is_multiple_of(unit));
        if T::NAME == "f32" {
            let fine = shape && lies_by(4) && self.tokens >= CHUNK / 2 && fine_shared(gpu, n).is_some();
            return if fine { Way::Fine } else { Way::Walk };
        }
        if !shape || !lies_by(8) || self.tokens < 2 {
            return Way::Walk;
        }
        // There logarithms of steps are taken.
        let (low, high) = self.delta_limit;
        let steps_are_positive = low >= 0.0 || self.softplus && high >= 0.0;
        if gpu.is_hopper() && steps_are_positive { Way::Hopper } else { Way::Halves }
    }

    /// Blocks that the heads take, `each` heads of a group a block.
    fn sets(&self, each: usize) -> usize {
        ((self.heads / self.groups).div_ceil(each) * self.groups).max(1)
    }

    fn cut(&self, gpu: &Gpu, way: Way) -> Cut {
        let (chunks, processors) = (self.tokens.div_ceil(CHUNK), gpu.processors() as usize);
        match way {
            Way::Walk => Cut::new(chunks, 1, 1),
            Way::Hopper => self.cut_for_pairs(chunks, processors, 4, 0.8),
            Way::Fine => self.cut_for_pairs(chunks, processors, 2, 0.4),
            // As many segments as fill the device, two blocks of a head a multiprocessor. Long segments must end together, or the last
            // wave of blocks is waited for; each segment also costs a state to carry.
            Way::Halves => {
                let cuts = (1..=chunks.div_ceil(2).min(64)).map(|segments| Cut::new(chunks, segments, 1));
                cheapest(cuts, |cut| {
                    let waves = (self.heads * cut.segments) as f32 / (2 * processors) as f32;
                    let waves = if cut.chunks < 16 { waves.max(1.0) } else { waves.ceil() };
                    cut.chunks as f32 * waves + 0.2 * cut.segments as f32
                })
            }
        }
    }

    /// For blocks of two heads, one a multiprocessor, and of `heads` where only states are made, a chunk of which costs `cost` of one of
    /// the others: whole waves of both.
    fn cut_for_pairs(&self, chunks: usize, processors: usize, heads: usize, cost: f32) -> Cut {
        let (sets, sets_of_states) = (self.sets(2), self.sets(heads));
        let most = chunks.min(64);
        let segments = std::iter::once(1).chain((1..=4).map(|waves| (waves * processors / sets).clamp(1, most)));
        let cuts = segments.flat_map(|segments| {
            let parts = |waves: usize| (waves * processors / (sets_of_states * (segments - 1).max(1))).clamp(1, 8);
            [1, parts(1), parts(2)].map(|parts| Cut::new(chunks, segments, if segments == 1 { 1 } else { parts }))
        });
        // In chunks of a block: those of all waves, what a block costs at its start, and what carrying states does.
        cheapest(cuts, |cut| {
            let waves = |items: usize, chunks: usize| (items.div_ceil(processors) * (chunks + 2)) as f32;
            let whole = waves(sets * cut.segments, cut.chunks);
            let states = cut.states();
            if states == 0 {
                return whole;
            }
            let carried = 0.03 * (states * self.heads) as f32 + 5.0;
            whole + waves(sets_of_states * states, cut.chunks / cut.parts) * cost + carried
        })
    }

    fn scratch_of(&self, states: usize) -> usize {
        if states == 0 { 0 } else { self.heads * (self.head_dim * self.state_dim * (states + 1) + states) }
    }

    /// Floats of scratch memory that [`Ssd::run`] needs.
    pub fn scratch_len(&self, gpu: &Gpu) -> usize {
        self.scratch_of(self.cut(gpu, self.way(gpu)).states())
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
        let way = self.way(gpu);
        let cut = self.cut(gpu, way);
        let states = cut.states();
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
            segments: number(cut.segments),
            chunks: number(cut.chunks),
            dt_low: self.delta_limit.0,
            dt_high: self.delta_limit.1,
            parts: number(cut.parts),
        };
        let early = matches!(way, Way::Hopper | Way::Fine);
        let shape = |blocks: usize, threads: u32, shared: usize| Shape {
            grid: (number(blocks), 1),
            threads,
            shared: number(shared),
            early,
        };
        if states > 0 {
            let scratch = At::from(scratch);
            params.segment_state = scratch.ptr(self.scratch_of(states), "ssd: scratch");
            params.segment_decay = At(scratch.0, (states + 1) * e * n).ptr(states * heads, "ssd: scratch");
        }
        let carry = || gpu.launch("ssd", "ssd_carry", shape((e * n).div_ceil(256), 256, 0), &params);
        let name = |pass: &str| format!("{pass}_{n}_{}", T::NAME);
        match way {
            Way::Walk => {
                let kernel = format!("ssd_recurrent_{}_{}", per_lane(n), T::NAME);
                gpu.launch("ssd", &kernel, shape(heads * head_dim.div_ceil(16), 128, 0), &params)
            }
            Way::Halves => {
                if states > 0 {
                    let blocks = shape(heads * states, 256, 4 * CHUNK * (HEAD_DIM + n));
                    gpu.launch("ssd", &name("ssd_segment"), blocks, &params)?;
                    carry()?;
                }
                // Two stages of x, B and C, and the state.
                let shared = 4 * CHUNK * (HEAD_DIM + 2 * n) + 2 * HEAD_DIM * n;
                gpu.launch("ssd", &name("ssd_chunk"), shape(heads * cut.segments, 256, shared), &params)
            }
            Way::Hopper => {
                let (tokens, keys, boxed) = (params.tokens, number(groups * n), number(CHUNK));
                let inputs = HopperParams {
                    x: TensorMap::halves(params.x, [tokens, number(e)], params.x_stride, boxed)?,
                    b: TensorMap::halves(params.b, [tokens, keys], params.bc_stride, boxed)?,
                    c: TensorMap::halves(params.c, [tokens, keys], params.bc_stride, boxed)?,
                    y: TensorMap::halves(params.y, [tokens, number(e)], params.y_stride, boxed)?,
                    of: params,
                    pad: [0; 10],
                };
                // Stages of x of some heads, B and C, in tiles of 64 × 64; two copies of the state of each of two heads; what aligns them.
                let (tile, width, processors) = (2 * CHUNK * 64, n / 64, gpu.processors() as usize);
                if states > 0 {
                    let blocks = (self.sets(4) * states).min(processors);
                    let blocks = shape(blocks, 640, 4 * (4 + width) * tile + 1024);
                    gpu.launch("ssd_hopper", &name("ssd_hopper_segment"), blocks, &inputs)?;
                    carry()?;
                }
                let blocks = (self.sets(2) * cut.segments).min(processors);
                let blocks = shape(blocks, 640, 3 * (2 + 2 * width) * tile + 4 * width * tile + 1024);
                gpu.launch("ssd_hopper", &name("ssd_hopper_chunk"), blocks, &inputs)
            }
            Way::Fine => {
                let (inputs, rest) = fine_shared(gpu, n).expect("there is room");
                if states > 0 {
                    gpu.launch("ssd_f32", &name("ssd_segment"), shape(self.sets(2) * states, 256, inputs), &params)?;
                    carry()?;
                }
                gpu.launch(
                    "ssd_f32",
                    &name("ssd_chunk"),
                    shape(self.sets(2) * cut.segments, 256, inputs + rest),
                    &params,
                )
            }
        }
    }
}
