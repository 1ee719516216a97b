//! Where a model computes. The CPU is the reference; a GPU (feature `cuda`) runs the same model with its own kernels, and what has none
//! there on the CPU, between two copies.

use std::sync::Arc;

use statescope_kernels::par;
use statescope_kernels::reduce::{SoftmaxSummary, summarise_softmax, top_k};

#[cfg(feature = "cuda")]
use crate::device::{self, Executor};
use crate::hooks::Hooks;
use crate::mixer::StateSlot;
use crate::model::{Logits, Model};
use crate::place::Place;
use crate::protocol::{DeviceInfo, ModelInfo, TokenId};
use crate::room::Needed;

/// Why a device cannot do it, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DeviceError {
    message: String,
    /// For want of memory, so that less of it might do.
    memory: bool,
}

impl DeviceError {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), memory: false }
    }

    /// There is no memory for something.
    pub fn memory(message: impl Into<String>) -> Self {
        Self { message: message.into(), memory: true }
    }

    pub fn is_memory(&self) -> bool {
        self.memory
    }
}

#[cfg(feature = "cuda")]
impl From<statescope_kernels::cuda::CudaError> for DeviceError {
    fn from(error: statescope_kernels::cuda::CudaError) -> Self {
        Self { message: error.to_string(), memory: error.is_memory() }
    }
}

/// A model, and what computes it.
pub struct Runner {
    model: Arc<Model>,
    /// Logits of all tokens of a pass, from one pass to the next: fresh memory of that size takes long to clear.
    logits: Vec<f32>,
    #[cfg(feature = "cuda")]
    gpu: Option<Box<Executor>>,
    /// Tokens that [`Runner::reserve`] finds room for.
    #[cfg(test)]
    pub(crate) room: usize,
}

/// The memories of all mixers of one text, where they are computed.
pub enum Memory {
    /// One slot a mixer.
    Host(Vec<StateSlot>),
    #[cfg(feature = "cuda")]
    Device(device::Memory),
}

/// A copy of a [`Memory`] that later steps do not change.
#[derive(Clone, Debug)]
pub enum Saved {
    Host(Vec<StateSlot>),
    #[cfg(feature = "cuda")]
    Device(device::Saved),
}

/// What the logits after a token come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// ln Σ eˣ.
    pub log_sum_exp: f32,
    pub entropy_bits: f32,
    /// The logit of the token that was read next, if one was.
    pub next_logit: Option<f32>,
    /// Most likely first, with their logits.
    pub candidates: Vec<(TokenId, f32)>,
}

/// What a device should rank: so many candidates, after every token or after the last.
#[derive(Clone, Copy, Debug)]
pub struct Ranked {
    pub candidates: usize,
    pub every: bool,
    pub draw: Option<Draw>,
}

/// How a device should draw the token after the last from all of the first `limit` logits: see [`crate::sampler::Sampling::sample`].
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    pub temperature: f32,
    /// In [0, 1). Without it nothing is drawn: the sum of all weights is wanted.
    pub uniform: Option<f64>,
    pub limit: usize,
}

/// What became of a [`Draw`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Drawn {
    /// Nothing was asked for, or the device does not draw as the CPU does.
    #[default]
    Nothing,
    Token(TokenId),
    /// Σ e^{(logit − largest) / temperature}.
    Total(f64),
}

/// The GPU that `Device::Cuda` means, by name.
///
/// # Errors
/// Why there is none: this build, the driver or the machine.
pub fn find_gpu() -> Result<String, DeviceError> {
    #[cfg(feature = "cuda")]
    return Ok(statescope_kernels::cuda::find(0)?);
    #[cfg(not(feature = "cuda"))]
    Err(DeviceError::new(
        "this build has no CUDA support; run on the CPU, or build with --features cuda and NVIDIA's nvcc",
    ))
}

impl Runner {
    /// On the CPU.
    pub fn cpu(model: Arc<Model>) -> Self {
        Self {
            model,
            logits: Vec::new(),
            #[cfg(feature = "cuda")]
            gpu: None,
            #[cfg(test)]
            room: usize::MAX,
        }
    }

    /// That a model can run in `place` and fits there, if what runs there now is gone by then.
    ///
    /// # Errors
    /// Why not.
    pub fn check(model: &Model, place: &Place, info: &ModelInfo) -> Result<(), DeviceError> {
        #[cfg(feature = "cuda")]
        if matches!(place, Place::Gpu(..)) {
            device::check(model)?;
        }
        let _ = model;
        place.check(&info.name, Needed::of(info))
    }

    /// In `place`; weights are uploaded there. `info` is told what it turned out to be.
    ///
    /// # Errors
    /// It cannot run there, or does not fit into the memory; nothing is uploaded then.
    pub fn open(model: Arc<Model>, place: &Place, info: &mut ModelInfo) -> Result<Self, DeviceError> {
        Self::check(&model, place, info)?;
        match place {
            Place::Cpu => {
                info.device = DeviceInfo::default();
                Ok(Self::cpu(model))
            }
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu, allowed) => {
                let gpu = Executor::open(model.clone(), info, gpu, *allowed)?;
                info.device = gpu.info();
                Ok(Self { gpu: Some(Box::new(gpu)), ..Self::cpu(model) })
            }
        }
    }

    /// Where it computes.
    pub fn place(&self) -> Place {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return gpu.place();
        }
        Place::Cpu
    }

    /// Makes room in `memory` for `tokens` tokens; where there is none, all stays as it was.
    ///
    /// # Errors
    /// There is no room for their keys and values.
    pub fn reserve(&mut self, memory: &mut Memory, tokens: usize) -> Result<(), DeviceError> {
        #[cfg(test)]
        if tokens > self.room {
            return Err(DeviceError::memory(format!("{tokens} tokens need more than there is")));
        }
        match memory {
            Memory::Host(_) => {
                let _ = tokens;
            }
            #[cfg(feature = "cuda")]
            Memory::Device(memory) => {
                if let Some(gpu) = &mut self.gpu {
                    gpu.reserve(memory, tokens)?;
                }
            }
        }
        Ok(())
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Empty memory for a text.
    pub fn memory(&self) -> Result<Memory, DeviceError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return Ok(Memory::Device(gpu.memory()?));
        }
        Ok(Memory::Host(self.model.slots()))
    }

    /// Whether every recorded quantity of a token is copied over, and all of them are more than that is worth.
    pub fn copies_much(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.gpu.as_ref().is_some_and(|gpu| gpu.copies_much());
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Tokens of a prompt worth reading at once while everything is recorded of `recorded` layers.
    pub fn chunk(&self, recorded: usize) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return gpu.chunk(recorded);
        }
        let _ = recorded;
        crate::history::chunk(self.model().parameters())
    }

    /// Bytes of GPU memory in use now: weights, memories, snapshots, workspace.
    pub fn device_bytes(&self) -> usize {
        #[cfg(feature = "cuda")]
        return self.gpu.as_ref().map_or(0, |gpu| gpu.bytes());
        #[cfg(not(feature = "cuda"))]
        0
    }

    /// Seconds that the last pass spent on copying what was recorded.
    pub fn copy_seconds(&self) -> f32 {
        #[cfg(feature = "cuda")]
        return self.gpu.as_ref().map_or(0.0, |gpu| gpu.copy_seconds());
        #[cfg(not(feature = "cuda"))]
        0.0
    }

    /// How many candidates the device ranks of `wanted`, so that their logits need not be copied to choose a token among them; 0 where it
    /// ranks none, as on the CPU.
    pub fn ranks(&self, wanted: usize) -> usize {
        #[cfg(feature = "cuda")]
        return self.gpu.as_ref().map_or(0, |gpu| gpu.ranks(wanted));
        #[cfg(not(feature = "cuda"))]
        {
            let _ = wanted;
            0
        }
    }

    /// As [`Runner::forward`], on a device that [`ranks`](Runner::ranks); the logits of the last token stay there, for [`Runner::logits`] and
    /// [`Runner::logit`]. Returns the outlook after every token, or after the last alone, and what was drawn. What a single token leaves to be
    /// recorded is shown by the next call, or by [`Runner::settle`].
    ///
    /// # Errors
    /// As [`Runner::forward`]; this one ranks nothing.
    pub fn forward_there(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        ranked: Ranked,
    ) -> Result<(Vec<Outlook>, Drawn), DeviceError> {
        #[cfg(feature = "cuda")]
        if let (Memory::Device(memory), Some(gpu)) = (&mut *memory, &mut self.gpu) {
            return Ok(gpu.forward_ranked(tokens, first, memory, hooks, ranked)?);
        }
        let _ = (tokens, first, memory, hooks, ranked);
        Err(DeviceError::new("the CPU keeps no logits"))
    }

    /// Shows what the last [`Runner::forward_there`] has left to be recorded, if that has not been done, to the observer that was there.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn settle(&mut self, hooks: &mut Hooks<'_>) -> Result<(), DeviceError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &mut self.gpu {
            gpu.settle(hooks)?;
        }
        let _ = hooks;
        Ok(())
    }

    /// The logits `[V]` that the last [`Runner::forward_there`] left on the device.
    ///
    /// # Errors
    /// The GPU fails, or there is none.
    pub fn logits(&self) -> Result<Vec<f32>, DeviceError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return Ok(gpu.read_logits(0, self.model.spec().vocab_size)?);
        }
        Err(DeviceError::new("the CPU keeps no logits"))
    }

    /// One of [`Runner::logits`].
    ///
    /// # Errors
    /// As there.
    pub fn logit(&self, token: TokenId) -> Result<f32, DeviceError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return Ok(gpu.read_logits(token as usize, 1)?[0]);
        }
        let _ = token;
        Err(DeviceError::new("the CPU keeps no logits"))
    }

    /// As [`Runner::forward`]; returns the outlook after every token, with `candidates` tokens ranked, and the logits `[V]` of the last.
    ///
    /// # Errors
    /// As [`Runner::forward`].
    pub fn forward_ranked(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        candidates: usize,
    ) -> Result<(Vec<Outlook>, Vec<f32>), DeviceError> {
        let (mut all, vocab) = (std::mem::take(&mut self.logits), self.model.spec().vocab_size);
        self.forward(tokens, first, memory, hooks, Logits::All(&mut all))?;
        // Nothing foretells the meta tokens, nor what comes after them.
        let meta = self.model.spec().meta_tokens;
        let mut outlooks = vec![Outlook::default(); tokens.len()];
        par::for_each_chunk(&mut outlooks, 1, all.len(), |row, outlook| {
            let next = tokens.get(row + 1).copied().filter(|_| first + row + 1 > meta);
            outlook[0] = Outlook::of(&all[row * vocab..(row + 1) * vocab], next, candidates);
        });
        let last = all[all.len() - vocab..].to_vec();
        self.logits = all;
        Ok((outlooks, last))
    }

    /// As [`Model::forward`].
    ///
    /// # Errors
    /// The GPU fails, or has no memory left.
    pub fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        logits: Logits<'_>,
    ) -> Result<(), DeviceError> {
        match memory {
            Memory::Host(slots) => self.model.forward(tokens, first, slots, hooks, logits),
            #[cfg(feature = "cuda")]
            Memory::Device(memory) => {
                let Some(gpu) = &mut self.gpu else { return Err(DeviceError::new("the memory is of a GPU")) };
                gpu.forward(tokens, first, memory, hooks, logits)?;
            }
        }
        Ok(())
    }
}

impl Outlook {
    fn of(logits: &[f32], next: Option<TokenId>, candidates: usize) -> Self {
        let SoftmaxSummary { log_sum_exp, entropy_bits } = summarise_softmax(logits);
        let next_logit = next.map(|token| logits[token as usize]);
        Self { log_sum_exp, entropy_bits, next_logit, candidates: top_k(logits, candidates) }
    }
}

impl Memory {
    /// Back to the state before any token.
    pub fn clear(&mut self, model: &Model) -> Result<(), DeviceError> {
        match self {
            Self::Host(slots) => *slots = model.slots(),
            #[cfg(feature = "cuda")]
            Self::Device(memory) => memory.clear(model)?,
        }
        Ok(())
    }

    pub fn save(&self) -> Result<Saved, DeviceError> {
        Ok(match self {
            Self::Host(slots) => Saved::Host(slots.iter().map(StateSlot::snapshot).collect()),
            #[cfg(feature = "cuda")]
            Self::Device(memory) => Saved::Device(memory.save()?),
        })
    }

    /// Puts back what was saved of this same memory.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), DeviceError> {
        match (self, saved) {
            (Self::Host(slots), Saved::Host(saved)) => slots.clone_from(saved),
            #[cfg(feature = "cuda")]
            (Self::Device(memory), Saved::Device(saved)) => memory.restore(saved)?,
            #[cfg(feature = "cuda")]
            _ => return Err(DeviceError::new("what was saved is of another device")),
        }
        Ok(())
    }

    /// The slots of a model that runs on the CPU; none elsewhere.
    pub fn slots(&self) -> &[StateSlot] {
        match self {
            Self::Host(slots) => slots,
            #[cfg(feature = "cuda")]
            Self::Device(_) => &[],
        }
    }

    /// The recurrent state of a mixer, empty if it has none.
    pub fn state(&self, slot: usize) -> Vec<f32> {
        match self {
            Self::Host(slots) => slots[slot].state.clone(),
            #[cfg(feature = "cuda")]
            Self::Device(memory) => memory.state(slot),
        }
    }

    /// Bytes of keys and values of the text so far.
    pub fn kv_bytes(&self) -> usize {
        match self {
            Self::Host(slots) => slots.iter().map(|s| s.kv.bytes()).sum(),
            #[cfg(feature = "cuda")]
            Self::Device(memory) => memory.kv_bytes(),
        }
    }
}

impl Saved {
    /// As [`Memory::state`].
    pub fn state(&self, slot: usize) -> Vec<f32> {
        match self {
            Self::Host(slots) => slots[slot].state.clone(),
            #[cfg(feature = "cuda")]
            Self::Device(saved) => saved.state(slot),
        }
    }

    /// Bytes that it takes for itself.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(slots) => slots.iter().map(StateSlot::owned_bytes).sum(),
            #[cfg(feature = "cuda")]
            Self::Device(saved) => saved.bytes(),
        }
    }
}
