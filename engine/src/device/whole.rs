//! A model of nothing but Mamba or Mamba-2 layers runs one token in one launch, where the GPU and the shapes allow it
//! ([`statescope_kernels::cuda::TokenPass`]). What each layer leaves to be recorded is the same, in the same buffers.

use statescope_kernels::cuda::{Result, TokenHead, TokenPass};

use super::executor::{Executor, Layer};
use super::memory::Memory;

impl Executor {
    /// All layers as one launch on `memory`; none where they do not go together.
    pub(super) fn token_pass(&self, memory: &Memory) -> Result<Option<TokenPass>> {
        let (mut layers, mut shared) = (Vec::new(), None);
        for (index, layer) in self.layers.iter().enumerate() {
            let slot = &memory.slots[self.model.slot_index(index, 0)];
            let (Layer::Gpu(block), Some(slot)) = (layer, slot) else { return Ok(None) };
            let Some((shape, layer)) = block.token_layer(slot) else { return Ok(None) };
            if *shared.get_or_insert(shape) != shape {
                return Ok(None);
            }
            layers.push(layer);
        }
        let Some(shape) = shared else { return Ok(None) };
        let norm = &self.final_norm;
        let head = (!norm.layer && norm.bias.is_none()).then(|| TokenHead {
            norm: norm.weight.clone(),
            eps: norm.eps,
            weight: self.head.as_ref().unwrap_or(&self.embeddings).clone(),
            logits: self.logits.clone(),
            scale: self.model.spec().logits_scale,
        });
        if self.embeds_on_cpu() || self.positions.is_some() {
            return Ok(None);
        }
        let embeddings = (&self.embeddings, self.model.spec().embedding_scale);
        TokenPass::new(&self.gpu, shape, embeddings, layers, head)
    }
}
