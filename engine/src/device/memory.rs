//! The memories of one text on the GPU. The buffers keep their addresses for as long as a text grows within them, so that a graph that was
//! captured with them stays true.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use statescope_kernels::cuda::{Buffer, CudaError, Gpu, Result};

use crate::mixer::StateSlot;
use crate::model::Model;
use crate::room::grown_cache;

/// What one mixer remembers; empty where it does not.
#[derive(Clone)]
pub(super) struct Slot {
    /// `[H, P, N]`.
    pub(super) state: Buffer<f32>,
    /// `[K−1, C]`.
    pub(super) conv: Buffer<f32>,
    /// `[capacity, H_kv, hd]` each.
    pub(super) cache: Option<(Buffer<f32>, Buffer<f32>)>,
    /// Numbers of a token in either cache.
    pub(super) kv_width: usize,
}

/// Memory of all mixers, those that run on the CPU included.
pub struct Memory {
    gpu: Arc<Gpu>,
    /// Which memory this is, and how often its buffers have been replaced: what a graph was captured for.
    pub(super) id: (u64, u64),
    /// By mixer; none of those on the CPU.
    pub(super) slots: Vec<Option<Slot>>,
    pub(super) host: Vec<StateSlot>,
    /// Tokens read, and tokens that the caches have room for.
    pub(super) length: usize,
    capacity: usize,
}

/// A copy. Keys and values are not copied: later tokens leave those before them as they are, and a text read again writes the same.
#[derive(Clone)]
pub struct Saved {
    gpu: Arc<Gpu>,
    /// State and convolution.
    slots: Vec<Option<(Buffer<f32>, Buffer<f32>)>>,
    host: Vec<StateSlot>,
    length: usize,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Saved after {} tokens", self.length)
    }
}

fn what(length: usize) -> String {
    format!("the KV cache of {length} tokens")
}

fn download(gpu: &Gpu, state: &Buffer<f32>) -> Vec<f32> {
    // A device that fails here fails again where it is reported.
    gpu.download(state).unwrap_or_default()
}

impl Memory {
    pub(super) fn new(gpu: Arc<Gpu>, slots: Vec<Option<Slot>>, host: Vec<StateSlot>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { gpu, id: (NEXT.fetch_add(1, Ordering::Relaxed), 0), slots, host, length: 0, capacity: 0 }
    }

    /// Whether there are caches that are too small for `length` tokens.
    fn grows(&self, length: usize) -> bool {
        length > self.capacity && self.slots.iter().flatten().any(|slot| slot.kv_width > 0)
    }

    /// Whether they are replaced then.
    pub(super) fn moves(&self, length: usize) -> bool {
        self.capacity > 0 && self.grows(length)
    }

    /// Makes room for `length` tokens; where there is none, all numbers stay.
    pub(super) fn reserve(&mut self, length: usize) -> Result<()> {
        if !self.grows(length) {
            return Ok(());
        }
        let widths = || self.slots.iter().flatten().map(|slot| 2 * slot.kv_width * size_of::<f32>());
        let (bytes, largest) = (widths().sum(), widths().max().unwrap_or(0));
        let capacity = grown_cache(self.capacity, length, bytes, largest, self.gpu.room()?)
            .map_err(|more| self.full(length, more))?;
        // Also if not all caches can be replaced: graphs speak of those that were.
        self.id.1 += 1;
        self.replace_caches(capacity).map_err(|error| error.naming(what(length)))?;
        self.capacity = capacity;
        Ok(())
    }

    fn full(&self, length: usize, more: usize) -> CudaError {
        let [needed, used] = [more, self.gpu.used()].map(|bytes| bytes.div_ceil(1 << 20));
        match self.gpu.memory_limit() {
            Some(limit) => CudaError::OverLimit { what: what(length), needed, used, limit: limit >> 20 },
            None => {
                let free = self.gpu.free().unwrap_or(0) >> 20;
                CudaError::OutOfMemory { what: what(length), needed, free }
            }
        }
    }

    fn replace_caches(&mut self, capacity: usize) -> Result<()> {
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.kv_width > 0) {
            let grow = |old: Option<&Buffer<f32>>| -> Result<Buffer<f32>> {
                let grown = self.gpu.zeros(capacity * slot.kv_width)?;
                old.map_or(Ok(()), |old| self.gpu.copy(old, &grown))?;
                Ok(grown)
            };
            let (keys, values) = slot.cache.as_ref().map(|(keys, values)| (keys, values)).unzip();
            slot.cache = Some((grow(keys)?, grow(values)?));
        }
        Ok(())
    }

    pub fn clear(&mut self, model: &Model) -> Result<()> {
        for slot in self.slots.iter().flatten() {
            self.gpu.clear(&slot.state)?;
            self.gpu.clear(&slot.conv)?;
        }
        if !self.host.is_empty() {
            self.host = model.slots();
        }
        self.length = 0;
        Ok(())
    }

    pub fn save(&self) -> Result<Saved> {
        let copy = |slot: &Slot| Ok((self.gpu.twin(&slot.state)?, self.gpu.twin(&slot.conv)?));
        Ok(Saved {
            gpu: self.gpu.clone(),
            slots: self.slots.iter().map(|slot| slot.as_ref().map(copy).transpose()).collect::<Result<_>>()?,
            host: self.host.iter().map(StateSlot::snapshot).collect(),
            length: self.length,
        })
    }

    pub fn restore(&mut self, saved: &Saved) -> Result<()> {
        for (slot, saved) in self.slots.iter().zip(&saved.slots) {
            if let (Some(slot), Some((state, conv))) = (slot, saved) {
                self.gpu.copy(state, &slot.state)?;
                self.gpu.copy(conv, &slot.conv)?;
            }
        }
        self.host.clone_from(&saved.host);
        self.length = saved.length;
        Ok(())
    }

    pub fn state(&self, slot: usize) -> Vec<f32> {
        match &self.slots[slot] {
            Some(slot) => download(&self.gpu, &slot.state),
            None => self.host[slot].state.clone(),
        }
    }

    pub fn kv_bytes(&self) -> usize {
        let width: usize = self.slots.iter().flatten().map(|slot| 2 * slot.kv_width).sum();
        let host: usize = self.host.iter().map(|slot| slot.kv.bytes()).sum();
        width * self.length * size_of::<f32>() + host
    }
}

impl Saved {
    pub fn state(&self, slot: usize) -> Vec<f32> {
        match &self.slots[slot] {
            Some((state, _)) => download(&self.gpu, state),
            None => self.host[slot].state.clone(),
        }
    }

    pub fn bytes(&self) -> usize {
        let device: usize = self.slots.iter().flatten().map(|(state, conv)| state.len() + conv.len()).sum();
        device * size_of::<f32>() + self.host.iter().map(StateSlot::owned_bytes).sum::<usize>()
    }
}
