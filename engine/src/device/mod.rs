//! A model on an NVIDIA GPU (feature `cuda`). Knows the mixers' weights, not their equations: those are the kernels'.
//!
//! ```text
//! one token     place {token, position} ─▶ [ embed · blocks · norm · head ] ─▶ logits          one replayed graph, one launch for the
//! many tokens   ids ─▶ embed ─▶ blocks, rows of f32 or bf16 ─▶ norm ─▶ head ─▶ logits          record, one copy to pinned memory
//! ```
//!
//! A model of Mamba or Mamba-2 layers alone runs one token in one launch instead, where the GPU and the shapes allow it.
//! A block with anything that has no kernel runs whole on the CPU, between two copies of the residual stream; the graph is then cut there.
//! Activations of one token are f32. Those of many tokens are f32 too, but bf16 in bf16 models of 1 GiB and more, whose products run on
//! tensor cores; the residual stream, states, caches and all sums stay f32.

pub(crate) mod attention;
mod block;
mod executor;
pub(crate) mod mamba1;
pub(crate) mod mamba2;
mod memory;
mod mlp;
mod prompt;
mod record;
mod recurrent;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod tests;
mod token;
mod upload;
mod whole;

pub use executor::{Executor, check};
pub use memory::{Memory, Saved};
pub use upload::Upload;

use std::cell::RefCell;
use std::collections::HashMap;

use half::bf16;
use statescope_kernels::cuda::{At, Buffer, Element, Gpu, Input, Result, TokenLayer, TokenShape};

use memory::Slot;
use record::{Recorder, Taken};

use crate::hooks::Depth;
use crate::protocol::Point;

/// A mixer's weights on the GPU.
pub enum DeviceMixer {
    Mamba1(mamba1::Mamba1),
    Mamba2(mamba2::Mamba2),
    Attention(attention::Attention),
}

/// Where what a mixer or a feed-forward makes of one token goes: x_out = x_in + y · output_scale · residual_scale, y · output_scale to `out`.
#[derive(Clone, Copy)]
struct Added<'a> {
    from: &'a Buffer<f32>,
    to: &'a Buffer<f32>,
    output_scale: f32,
    residual_scale: f32,
}

/// A mixer's place in a layer that is nothing else.
struct TokenPart<'a> {
    norm: &'a upload::Norm,
    slot: &'a Slot,
    resid: &'a Buffer<f32>,
    output_scale: f32,
    residual_scale: f32,
}

/// One token on its way.
struct Token<'a> {
    gpu: &'a Gpu,
    /// {token, position}.
    place: &'a Buffer<u32>,
}

/// Many tokens on their way. T: what activations are held in.
struct Rows<'a, T: Element> {
    gpu: &'a Gpu,
    /// Tokens, and the position of the first.
    count: usize,
    first: usize,
    own: &'a Scratch<T>,
    wide: &'a Scratch<f32>,
    /// Where activations are in bf16: room for more of it.
    halves: Option<&'a Scratch<bf16>>,
    recorder: &'a mut Recorder,
    depth: Depth,
}

impl<T: Element> Rows<'_, T> {
    /// Room for `width` numbers a token, by name; what was there is gone.
    fn own(&self, name: &'static str, width: usize) -> Result<Buffer<T>> {
        self.own.get(self.gpu, name, self.count * width)
    }

    fn wide(&self, name: &'static str, width: usize) -> Result<Buffer<f32>> {
        self.wide.get(self.gpu, name, self.count * width)
    }

    fn records_all(&self) -> bool {
        self.depth == Depth::Everything
    }

    /// Notes a quantity for the record, if the layer is recorded as a whole.
    fn show<E: Element>(&mut self, point: Point, taken: Taken<'_, E>) -> Result<()> {
        if self.depth != Depth::Everything {
            return Ok(());
        }
        self.recorder.take_now(self.gpu, point, taken, self.count)
    }

    /// Notes how strongly the layer writes, if that alone is recorded.
    fn show_strength<E: Element>(&mut self, taken: Taken<'_, E>) -> Result<()> {
        if self.depth != Depth::Strength {
            return Ok(());
        }
        self.recorder.take_now(self.gpu, Point::Write, taken, self.count)
    }
}

/// Buffers to work in, by name: made when first asked for, and again when one has to be larger.
#[derive(Default)]
struct Scratch<T: Element>(RefCell<HashMap<&'static str, Buffer<T>>>);

impl<T: Element> Scratch<T> {
    fn get(&self, gpu: &Gpu, name: &'static str, len: usize) -> Result<Buffer<T>> {
        let mut buffers = self.0.borrow_mut();
        if let Some(buffer) = buffers.get(name).filter(|buffer| buffer.len() >= len) {
            return Ok(buffer.clone());
        }
        // The old one goes first.
        buffers.remove(name);
        let buffer = gpu.zeros(len).map_err(|error| error.naming("reading so many tokens at once"))?;
        buffers.insert(name, buffer.clone());
        Ok(buffer)
    }

    fn bytes(&self) -> usize {
        self.0.borrow().values().map(|buffer| buffer.len() * size_of::<T>()).sum()
    }
}

/// The whole of a buffer.
fn all<T: Element>(buffer: &Buffer<T>) -> At<'_, T> {
    At(buffer, 0)
}

impl DeviceMixer {
    fn slot(&self, gpu: &Gpu) -> Result<Slot> {
        match self {
            Self::Mamba1(mixer) => mixer.slot(gpu),
            Self::Mamba2(mixer) => mixer.slot(gpu),
            Self::Attention(mixer) => mixer.slot(gpu),
        }
    }

    /// One token: normed input to the residual stream.
    fn step(&self, token: &Token<'_>, input: Input<'_>, slot: &Slot, added: Added<'_>) -> Result<()> {
        match self {
            Self::Mamba1(mixer) => mixer.step(token, input, slot, added),
            Self::Mamba2(mixer) => mixer.step(token, input, slot, added),
            Self::Attention(mixer) => mixer.step(token, input, slot, added),
        }
    }

    /// As a layer of a model that runs one token in one launch.
    fn token_layer(&self, part: &TokenPart<'_>) -> Option<(TokenShape, TokenLayer)> {
        match self {
            Self::Mamba1(mixer) => mixer.token_layer(part),
            Self::Mamba2(mixer) => mixer.token_layer(part),
            Self::Attention(_) => None,
        }
    }

    /// What the last [`DeviceMixer::step`] left to be recorded.
    fn quantities(&self) -> Vec<(Point, Taken<'_, f32>)> {
        match self {
            Self::Mamba1(mixer) => mixer.quantities(),
            Self::Mamba2(mixer) => mixer.quantities(),
            Self::Attention(mixer) => mixer.quantities(),
        }
    }

    /// How strongly the last [`DeviceMixer::step`] wrote.
    fn strength(&self) -> Taken<'_, f32> {
        match self {
            Self::Mamba1(mixer) => mixer.strength(),
            Self::Mamba2(mixer) => mixer.strength(),
            Self::Attention(mixer) => mixer.strength(),
        }
    }

    /// Many tokens: normed input `[T, d]` to the residual stream.
    fn rows<T: Element>(
        &self,
        rows: &mut Rows<'_, T>,
        normed: &Buffer<T>,
        slot: &Slot,
        added: Added<'_>,
    ) -> Result<()> {
        match self {
            Self::Mamba1(mixer) => mixer.rows(rows, normed, slot, added),
            Self::Mamba2(mixer) => mixer.rows(rows, normed, slot, added),
            Self::Attention(mixer) => mixer.rows(rows, normed, slot, added),
        }
    }
}
