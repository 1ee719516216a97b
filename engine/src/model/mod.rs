//! The only model: embed → blocks → norm → head. What differs between architectures is the mixers and the feed-forward of a block, and
//! the names of their tensors.

pub(crate) mod block;
mod channel_mix;
pub mod feed_forward;
pub mod moe;
pub mod norm;
pub mod shared;
pub mod spec;

use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;

use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::names::Names;
use crate::loader::weights::Weights;
use crate::mixer::{Mixer, StateSlot};
use crate::protocol::{LayerInfo, TokenId};
use block::{Block, Pass};
use feed_forward::{add, scale};
use norm::Norm;
use spec::ModelSpec;

/// A model's weights, ready to run. Its memory is outside, in one [`StateSlot`] a mixer.
pub struct Model {
    pub(crate) spec: ModelSpec,
    /// `[V, d]`.
    pub(crate) embeddings: Matrix,
    /// `[meta tokens, d]`; embedded as they are, under the ids after the vocabulary.
    pub(crate) meta: Option<Matrix>,
    /// `[P, d]`, added by position.
    pub(crate) positions: Option<Matrix>,
    pub(crate) embedding_norm: Option<Norm>,
    pub(crate) blocks: Vec<Block>,
    /// By layer: index of its first mixer among all mixers.
    pub(crate) first_slots: Vec<usize>,
    pub(crate) final_norm: Norm,
    /// `[V, d]`; none when tied to the embeddings.
    pub(crate) head: Option<Matrix>,
}

/// Which logits a pass should make.
pub enum Logits<'a> {
    /// Of the last token only, `[V]`.
    Last(&'a mut Vec<f32>),
    /// Of every token, `[T, V]`.
    All(&'a mut Vec<f32>),
}

impl Model {
    /// Builds the model tensor by tensor. `progress` is told the share done and may say stop by returning false.
    ///
    /// # Errors
    /// A tensor is missing, has the wrong shape or holds NaN; or the load was cancelled.
    pub fn load(spec: ModelSpec, weights: &Weights, mut progress: impl FnMut(f32) -> bool) -> Result<Self, LoadError> {
        let names = weights.own_names().map_or_else(|| Names::of(&spec.model_type), Ok)?;
        let (d, vocab) = (spec.hidden_size, spec.vocab_size);
        let root = weights.scope(String::new());
        let steps = spec.layers.len() as f32 + 2.0;
        let mut done = |layers: usize| if progress(layers as f32 / steps) { Ok(()) } else { Err(LoadError::Cancelled) };
        done(0)?;
        let embeddings = root.matrix(names.embeddings, vocab, d)?;
        let meta = match spec.meta_tokens {
            0 => None,
            count => Some(root.matrix(names.meta, count, d)?),
        };
        let positions = match spec.learned_positions {
            Some(count) => Some(root.matrix(names.positions, count, d)?),
            None => None,
        };
        let embedding_norm = match spec.embedding_norm {
            true => Some(Norm::load(spec.norm, names.embedding_norm, d, &root)?),
            false => None,
        };
        let (mut blocks, mut first_slots, mut slots) = (Vec::with_capacity(spec.layers.len()), Vec::new(), 0);
        for index in 0..spec.layers.len() {
            done(index + 1)?;
            let block = Block::load(&spec, index, weights, names)?;
            first_slots.push(slots);
            slots += block.parts();
            blocks.push(block);
        }
        done(spec.layers.len() + 1)?;
        let final_norm = Norm::load(spec.norm, names.final_norm, d, &root)?;
        // A head in the file counts even where the config says tied.
        let head =
            (!spec.tied_embeddings || root.has(names.head)).then(|| root.matrix(names.head, vocab, d)).transpose()?;
        done(spec.layers.len() + 2)?;
        weights.require_all_read()?;
        Ok(Self { spec, embeddings, meta, positions, embedding_norm, blocks, first_slots, final_norm, head })
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    pub fn layer_count(&self) -> usize {
        self.blocks.len()
    }

    /// Mixers of a layer, at least one: what stands for none has kind [`crate::protocol::MixerKind::FeedForward`].
    pub fn parts(&self, layer: usize) -> usize {
        self.blocks[layer].parts()
    }

    /// [`Model::parts`] of all layers.
    pub fn part_counts(&self) -> Vec<usize> {
        self.blocks.iter().map(Block::parts).collect()
    }

    pub fn mixer(&self, layer: usize, part: usize) -> &dyn Mixer {
        self.blocks[layer].mixer(part)
    }

    /// Where the memory of a mixer stands among [`Model::slots`].
    pub fn slot_index(&self, layer: usize, part: usize) -> usize {
        self.first_slots[layer] + part
    }

    pub fn layer_info(&self) -> Vec<LayerInfo> {
        let info = |(block, spec): (&Block, &spec::LayerSpec)| LayerInfo {
            parts: (0..block.parts()).map(|part| block.mixer(part).geometry()).collect(),
            feed_forward: spec.feed_forward.as_ref().map(Into::into),
            parameters: block.parameters(),
        };
        self.blocks.iter().zip(&self.spec.layers).map(info).collect()
    }

    /// Numbers stored for all layers, without embeddings and head.
    pub fn parameters(&self) -> u64 {
        self.blocks.iter().map(Block::parameters).sum()
    }

    /// The dtype of the largest part, the matrices.
    pub fn dtype(&self) -> statescope_kernels::matrix::Dtype {
        self.embeddings.dtype()
    }

    /// Whether the output head is the embedding matrix.
    pub fn is_tied(&self) -> bool {
        self.head.is_none()
    }

    /// Empty memory for one sequence: one slot a mixer.
    pub fn slots(&self) -> Vec<StateSlot> {
        self.blocks.iter().flat_map(|block| block.slots(self.spec.hidden_size)).collect()
    }

    /// Reads `tokens`, of which the first stands at absolute position `first`, and advances `slots` by them.
    ///
    /// # Panics
    /// A token is neither of the vocabulary nor a meta token, or stands beyond the learned positions; the session checks before.
    pub fn forward(
        &self,
        tokens: &[TokenId],
        first: usize,
        slots: &mut [StateSlot],
        hooks: &mut Hooks<'_>,
        logits: Logits<'_>,
    ) {
        let (d, rows) = (self.spec.hidden_size, tokens.len());
        hooks.begin(first, rows);
        let mut x = self.embed(tokens, first);
        let embedding = if self.spec.layers.iter().any(|l| l.shared.is_some()) { x.clone() } else { Vec::new() };
        let mut pass = Pass::new(&embedding, self.spec.residual_scale, rows, d);
        for (layer, block) in self.blocks.iter().enumerate() {
            let slots = &mut slots[self.first_slots[layer]..][..block.parts()];
            block.forward(&mut x, layer, slots, hooks, &mut pass);
        }
        let (from, out) = match logits {
            Logits::Last(out) => ((rows - 1) * d, out),
            Logits::All(out) => (0, out),
        };
        let mut normed = vec![0.0; x.len() - from];
        self.final_norm.forward(&x[from..], &mut normed);
        out.resize(normed.len() / d * self.spec.vocab_size, 0.0);
        linear(self.head.as_ref().unwrap_or(&self.embeddings), None, &normed, out);
        scale(out, self.spec.logits_scale);
        if let Some(cap) = self.spec.logits_cap {
            out.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
    }

    /// `[T, d]`.
    pub(crate) fn embed(&self, tokens: &[TokenId], first: usize) -> Vec<f32> {
        let d = self.spec.hidden_size;
        let mut x = vec![0.0; tokens.len() * d];
        for (row, token) in x.chunks_exact_mut(d).zip(tokens) {
            match (&self.meta, (*token as usize).checked_sub(self.spec.vocab_size)) {
                (Some(meta), Some(index)) => meta.copy_row(index, row),
                _ => self.embeddings.copy_row(*token as usize, row),
            }
        }
        scale(&mut x, self.spec.embedding_scale);
        if let Some(norm) = &self.embedding_norm {
            norm.apply(&mut x);
        }
        if let Some(table) = &self.positions {
            let mut position = vec![0.0; d];
            for (t, row) in x.chunks_exact_mut(d).enumerate() {
                table.copy_row(first + t, &mut position);
                add(row, &position);
            }
        }
        x
    }
}
