//! The whole model on the GPU: embed → blocks → norm → head, for one token or many.

use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use statescope_kernels::cuda::{
    Buffer, CudaError, DeviceMatrix, Gpu, Mark, Pinned, RankRow, Result, draws_as_the_cpu, rank_width,
};

use super::Scratch;
use super::block::{Block, Uploaded, supported};
use super::memory::{Memory, Slot};
use super::record::{Recorder, TokenRecorder};
use super::token::{Graphs, Piece, pieces};
use super::upload::{Norm, Upload};
use crate::hooks::{Depth, Hooks};
use crate::mixer::{Handed, StateSlot};
use crate::model::block::Pass;
use crate::model::{Logits, Model};
use crate::place::Place;
use crate::protocol::{Device, DeviceInfo, Dtype, ModelInfo, TokenId};
use crate::room;
use crate::runner::{Draw, Drawn, Outlook, Ranked};

/// From this size on a model is large: weights in bf16 meet activations in bf16, when many tokens are read.
const LARGE: usize = 1 << 30;
/// Recorded bytes of a token from which on only what is looked at is copied over.
const MUCH: usize = 128 << 10;
/// Tokens of a prompt read at once: many, so that the products fill the GPU; fewer of large models in f32, which take long.
const LONG_CHUNK: usize = 16_384;
const CHUNK: usize = 2048;
/// While whole layers are recorded, so many tokens times layers.
const RECORDED: usize = 2048;
/// Candidates that the GPU ranks.
const MOST_CANDIDATES: usize = 64;
/// Logits from which it draws: what is noted of more does not fit into the shared memory of every GPU.
const MOST_DRAWN: usize = 1 << 18;

/// # Errors
/// Weights of this type have no kernels.
pub fn check(model: &Model) -> Result<()> {
    let dtype = model.dtype();
    match supported(dtype) {
        true => Ok(()),
        false => {
            Err(CudaError::Unsupported(format!("weights in {dtype}: hold them in bf16 or f16, or run on the CPU")))
        }
    }
}

/// Where a layer runs.
pub(super) enum Layer {
    Gpu(Box<Block>),
    /// On the CPU, between two copies; `[d]` on the GPU is what one token comes back in.
    Cpu(Buffer<f32>),
}

/// What a pass should make of its logits; see [`Logits`].
pub(super) enum Asked<'a> {
    Last(&'a mut Vec<f32>),
    All(&'a mut Vec<f32>),
    /// Outlooks; the logits of the last token stay here.
    Ranked {
        ranked: Ranked,
        outlooks: &'a mut Vec<Outlook>,
    },
}

/// A model on a GPU.
pub struct Executor {
    pub(super) gpu: Arc<Gpu>,
    pub(super) model: Arc<Model>,
    pub(super) embeddings: DeviceMatrix,
    pub(super) positions: Option<DeviceMatrix>,
    pub(super) head: Option<DeviceMatrix>,
    pub(super) final_norm: Norm,
    pub(super) layers: Vec<Layer>,
    pub(super) pieces: Vec<Piece>,
    pub(super) info: DeviceInfo,
    /// Whether many tokens are read in bf16.
    pub(super) halves: bool,
    small: bool,
    /// By how many tokens are read at once, the most bytes of workspace that takes.
    pub(super) workspace: Box<dyn Fn(usize) -> usize + Send>,
    /// {token, position}, and the host's side of it.
    pub(super) place: Buffer<u32>,
    pub(super) place_host: Pinned<u32>,
    /// `[d]`, `[V]`.
    pub(super) embedding: Buffer<f32>,
    pub(super) logits: Buffer<f32>,
    pub(super) logits_host: Pinned<f32>,
    /// The one used last at the end.
    pub(super) graphs: Vec<Graphs>,
    /// What logits come to, of one token, and one drawn from them; `next` is no token.
    pub(super) ranks: RankRow,
    pub(super) ranked: Pinned<f32>,
    pub(super) next: Buffer<u32>,
    pub(super) drawn: Pinned<u32>,
    /// Whether tokens are drawn here.
    pub(super) draws: bool,
    pub(super) scratch: Scratch<f32>,
    pub(super) scratch_halves: Scratch<bf16>,
    pub(super) recorder: Recorder,
    pub(super) token_recorder: TokenRecorder,
    /// By layer what `token_recorder` was told.
    pub(super) recorded: Vec<Depth>,
    /// The token whose record has not been shown, and when it has arrived.
    pub(super) unshown: Option<usize>,
    pub(super) arrived: Mark,
    /// When logits, or what they come to, have arrived.
    pub(super) answered: Mark,
    pub(super) copy_seconds: f32,
}

impl Executor {
    /// Uploads a model to `gpu`, of whose memory it may take so many bytes, all if none. That it can run and fits has been checked.
    ///
    /// # Errors
    /// Something else takes that memory meanwhile.
    pub fn open(model: Arc<Model>, info: &ModelInfo, gpu: &Arc<Gpu>, allowed: Option<usize>) -> Result<Self> {
        gpu.limit_memory(allowed);
        let to = Upload::new(gpu);
        let (spec, d) = (model.spec(), model.spec().hidden_size);
        let (mut layers, mut missing) = (Vec::new(), Vec::<(String, Vec<usize>)>::new());
        for (index, block) in model.blocks.iter().enumerate() {
            layers.push(match Block::upload(block, d, spec.residual_scale, &to)? {
                Uploaded::Here(block) => Layer::Gpu(block),
                Uploaded::Missing(what) => {
                    match missing.iter_mut().find(|(known, _)| *known == what) {
                        Some((_, layers)) => layers.push(index),
                        None => missing.push((what, vec![index])),
                    }
                    Layer::Cpu(to.room(d)?)
                }
            });
        }
        let entries = layers.len() * 32;
        let halves = info.weights_bytes >= LARGE && model.dtype() == Dtype::Bf16;
        let executor = Self {
            embeddings: to.matrix(&model.embeddings)?,
            positions: model.positions.as_ref().map(|positions| to.matrix(positions)).transpose()?,
            head: model.head.as_ref().map(|head| to.matrix(head)).transpose()?,
            final_norm: to.norm(&model.final_norm, 1.0)?,
            pieces: pieces(&layers),
            info: DeviceInfo {
                device: Device::Cuda,
                name: gpu.name().to_owned(),
                memory: gpu.memory()?.1,
                allowed,
                on_cpu: on_cpu(missing),
            },
            halves,
            small: info.weights_bytes < LARGE,
            place: gpu.zeros(2)?,
            place_host: gpu.pinned(2)?,
            embedding: to.room(d)?,
            logits: to.room(spec.vocab_size)?,
            logits_host: gpu.pinned(spec.vocab_size)?,
            graphs: Vec::new(),
            ranks: RankRow::new(gpu)?,
            ranked: gpu.pinned(rank_width(MOST_CANDIDATES))?,
            drawn: gpu.pinned(2)?,
            draws: draws_as_the_cpu() && spec.vocab_size <= MOST_DRAWN,
            next: gpu.upload(&[TokenId::MAX])?,
            scratch: Scratch::default(),
            scratch_halves: Scratch::default(),
            recorder: Recorder::new(gpu, 256)?,
            token_recorder: TokenRecorder::new(gpu, entries)?,
            recorded: vec![Depth::Nothing; layers.len()],
            unshown: None,
            arrived: gpu.mark()?,
            answered: gpu.mark()?,
            copy_seconds: 0.0,
            workspace: {
                let info = info.clone();
                Box::new(move |tokens| room::workspace(&info, tokens))
            },
            layers,
            model: model.clone(),
            gpu: gpu.clone(),
        };
        gpu.wait()?;
        Ok(executor)
    }

    /// Reads prompts in bf16 whatever the size of the model.
    #[cfg(test)]
    pub(super) fn read_in_halves(&mut self) {
        self.halves = true;
    }

    pub fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    pub fn place(&self) -> Place {
        Place::Gpu(self.gpu.clone(), self.gpu.memory_limit())
    }

    /// Bytes of GPU memory in use: weights, memories, snapshots, workspace.
    pub fn bytes(&self) -> usize {
        self.gpu.used()
    }

    pub fn copy_seconds(&self) -> f32 {
        self.copy_seconds
    }

    /// Whether copying all that a token leaves would take a good part of its time.
    pub fn copies_much(&self) -> bool {
        let numbers = |layer: &Layer| if let Layer::Gpu(block) = layer { block.numbers() } else { 0 };
        self.layers.iter().map(numbers).sum::<usize>() * size_of::<f32>() > MUCH
    }

    /// Tokens of a prompt worth reading at once while everything is recorded of `recorded` layers: fewer where there is little room.
    pub fn chunk(&self, recorded: usize) -> usize {
        let longest = if self.halves || self.small { LONG_CHUNK } else { CHUNK };
        let longest = match RECORDED.checked_div(recorded) {
            Some(share) => (share / 128 * 128).clamp(128, longest),
            None => longest,
        };
        // What the last prompt was read with is used again; half of the rest is for memories and snapshots.
        let room = self.gpu.room().map_or(usize::MAX, |room| room / 2 + self.worked());
        room::chunk(longest, room, &self.workspace)
    }

    /// Bytes of workspace that are there.
    pub(super) fn worked(&self) -> usize {
        self.scratch.bytes() + self.scratch_halves.bytes()
    }

    /// Makes room in `memory` for `tokens` tokens; where there is none, its numbers stay.
    ///
    /// # Errors
    /// There is no room for their keys and values.
    pub fn reserve(&mut self, memory: &mut Memory, tokens: usize) -> Result<()> {
        if memory.moves(tokens) {
            // Graphs hold the buffers that are to be replaced.
            self.graphs.clear();
        }
        match memory.reserve(tokens) {
            // And those of texts that are gone.
            Err(error) if error.is_memory() && !self.graphs.is_empty() => {
                self.graphs.clear();
                memory.reserve(tokens)
            }
            done => done,
        }
    }

    /// Empty memory for a text.
    pub fn memory(&self) -> Result<Memory> {
        let to = Upload::new(&self.gpu);
        let mut slots = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            match layer {
                Layer::Gpu(block) => slots.extend(block.slots(&to)?),
                Layer::Cpu(_) => slots.extend((0..self.model.parts(index)).map(|_| None::<Slot>)),
            }
        }
        let host = if self.info.on_cpu.is_empty() { Vec::new() } else { self.model.slots() };
        Ok(Memory::new(self.gpu.clone(), slots, host))
    }

    /// As [`Model::forward`].
    ///
    /// # Errors
    /// The GPU fails or has no memory left; `memory` is then of no use.
    pub fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        logits: Logits<'_>,
    ) -> Result<()> {
        let asked = match logits {
            Logits::Last(out) => Asked::Last(out),
            Logits::All(out) => Asked::All(out),
        };
        self.run(tokens, first, memory, hooks, asked)
    }

    fn run(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        asked: Asked<'_>,
    ) -> Result<()> {
        hooks.begin(first, tokens.len());
        self.reserve(memory, first + tokens.len())?;
        self.copy_seconds = 0.0;
        if tokens.len() > 1 {
            self.settle(hooks)?;
        }
        match tokens {
            [token] => self.step(*token, first, memory, hooks, asked)?,
            _ if self.halves => self.read::<bf16>(tokens, first, memory, hooks, asked)?,
            _ => self.read::<f32>(tokens, first, memory, hooks, asked)?,
        }
        memory.length = first + tokens.len();
        Ok(())
    }

    /// Shows what the last token has left, if it has not been shown, to the observer that was there.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn settle(&mut self, hooks: &mut Hooks<'_>) -> Result<()> {
        let Some(position) = self.unshown.take() else { return Ok(()) };
        self.gpu.wait_for(&self.arrived)?;
        let copied = Instant::now();
        let (first, rows) = hooks.begin(position, 1);
        self.token_recorder.show(hooks);
        hooks.begin(first, rows);
        self.copy_seconds = copied.elapsed().as_secs_f32();
        Ok(())
    }

    /// How many candidates of `wanted` the GPU ranks: none under a cap on the logits, which it does not know, nor with tokens outside the
    /// vocabulary.
    pub fn ranks(&self, wanted: usize) -> usize {
        let known = self.model.spec().logits_cap.is_none() && self.model.meta.is_none();
        if known { wanted.min(MOST_CANDIDATES) } else { 0 }
    }

    /// Logits of the last token of the last pass.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn read_logits(&self, from: usize, count: usize) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; count];
        self.gpu.read(&self.logits, from, &mut logits)?;
        Ok(logits)
    }

    /// As [`Executor::forward`]; returns the outlook after every token, or after the last, and what was drawn. The logits of the last token
    /// stay here, and what a single token has left to be recorded is shown once the next one has been launched, or by
    /// [`Executor::settle`].
    ///
    /// # Errors
    /// As [`Executor::forward`].
    pub fn forward_ranked(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        ranked: Ranked,
    ) -> Result<(Vec<Outlook>, Drawn)> {
        let mut outlooks = Vec::new();
        let asked = Asked::Ranked { ranked, outlooks: &mut outlooks };
        self.run(tokens, first, memory, hooks, asked)?;
        let words = self.drawn.as_slice();
        let drawn = match ranked.draw.filter(|_| self.draws) {
            None => Drawn::Nothing,
            Some(Draw { uniform: Some(_), .. }) => Drawn::Token(words[0]),
            Some(Draw { uniform: None, .. }) => {
                Drawn::Total(f64::from_bits(u64::from(words[0]) | u64::from(words[1]) << 32))
            }
        };
        Ok((outlooks, drawn))
    }

    /// Whether the embedding is normed, or of two types.
    pub(super) fn embeds_on_cpu(&self) -> bool {
        let positions = self.positions.as_ref();
        self.model.embedding_norm.is_some()
            || self.model.meta.is_some()
            || positions.is_some_and(|p| p.dtype() != self.embeddings.dtype())
    }

    /// Whether blocks on the CPU read the embedding again.
    pub(super) fn keeps_embedding(&self) -> bool {
        self.model.spec().layers.iter().any(|layer| layer.shared.is_some())
    }

    /// A layer on the CPU: x `[T, d]`, in place.
    pub(super) fn on_cpu(
        &self,
        layer: usize,
        x: &mut [f32],
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        carried: &mut Carried,
        rows: usize,
    ) {
        let spec = self.model.spec();
        let first = self.model.slot_index(layer, 0);
        let slots: &mut [StateSlot] = &mut memory.host[first..first + self.model.parts(layer)];
        let mut pass = Pass::new(&carried.embedding, spec.residual_scale, rows, spec.hidden_size);
        pass.handed = std::mem::take(&mut carried.handed);
        self.model.blocks[layer].forward(x, layer, slots, hooks, &mut pass);
        carried.handed = pass.handed;
    }

    /// d.
    pub(super) fn width(&self) -> usize {
        self.model.spec().hidden_size
    }

    pub(super) fn cap(&self, logits: &mut [f32]) {
        if let Some(cap) = self.model.spec().logits_cap {
            logits.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
    }
}

/// What layers on the CPU hand on to each other.
#[derive(Default)]
pub(super) struct Carried {
    pub(super) embedding: Vec<f32>,
    pub(super) handed: Handed,
}

/// `layers 1–3, 5: mixture of experts`.
fn on_cpu(missing: Vec<(String, Vec<usize>)>) -> Vec<String> {
    let describe = |(what, layers): (String, Vec<usize>)| {
        let runs = layers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
            [one] => one.to_string(),
            _ => format!("{}–{}", run[0], run[run.len() - 1]),
        });
        let noun = if layers.len() == 1 { "layer" } else { "layers" };
        format!("{noun} {}: {what}", runs.collect::<Vec<_>>().join(", "))
    };
    missing.into_iter().map(describe).collect()
}
