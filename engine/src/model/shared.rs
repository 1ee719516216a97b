//! Zamba's shared transformer block: stored once, used before several layers, each use with adapters and a projection of its own
//! (Glorioso et al. 2024, arXiv 2405.16712 and 2411.15242).

use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;

use super::feed_forward::{Adapter, Mlp};
use super::norm::Norm;
use super::spec::{NormSpec, SharedSpec};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::names::Names;
use crate::loader::weights::Scope;
use crate::mixer::attention::{QkvAdapters, SoftmaxAttention};
use crate::mixer::{Mixer, StateSlot};
use crate::protocol::Point;

/// One use of a shared block.
pub struct SharedUse {
    /// Over `[x; x₀]`, `[2d]`.
    norm: Norm,
    pub attention: SoftmaxAttention,
    mlp_norm: Norm,
    mlp: Mlp,
    /// `[d, d]`, this use's own.
    linear: Matrix,
}

impl SharedUse {
    /// `layer`: the layer that uses the block; `stored`: the one that holds it.
    pub fn load(
        spec: &SharedSpec,
        norm: NormSpec,
        width: usize,
        layer: &Scope<'_>,
        stored: &Scope<'_>,
        names: &Names,
    ) -> Result<Self, LoadError> {
        let block = stored.scope(names.shared);
        let attention = SoftmaxAttention::load(&spec.attention, 2 * width, width, &block.scope(names.attention))?;
        let adapters = match spec.attention_rank {
            None => None,
            Some(rank) => {
                Some(QkvAdapters::load(&spec.attention, 2 * width, rank, spec.usage, &block.scope(names.attention))?)
            }
        };
        let mlp_scope = block.scope(names.mlp);
        let mlp = Mlp::load(&spec.mlp, width, &mlp_scope)?;
        let adapter = match spec.mlp_rank {
            None => None,
            Some(rank) => {
                let scope = mlp_scope.scope(&format!("gate_up_proj_adapter_list.{}", spec.usage));
                Some(Adapter::load(width, rank, 2 * spec.mlp.intermediate_size, &scope)?)
            }
        };
        Ok(Self {
            norm: Norm::load(norm, names.mixer_norm, 2 * width, &block)?,
            attention: attention.with_adapters(adapters),
            mlp_norm: Norm::load(norm, names.mlp_norm, width, &block)?,
            mlp: mlp.with_adapter(adapter),
            linear: layer.matrix("linear.weight", width, width)?,
        })
    }

    /// What joins the input of the layer's mixer: from the residual stream x and the embedding, both `[T, d]`, to `[T, d]`.
    pub fn forward(&self, x: &[f32], embedding: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>) -> Vec<f32> {
        let width = self.linear.cols();
        let pairs = x.chunks_exact(width).zip(embedding.chunks_exact(width));
        let mut both: Vec<f32> = pairs.flat_map(|(x, e)| x.iter().chain(e)).copied().collect();
        self.norm.apply(&mut both);
        let (mut mixed, mut made) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        self.attention.prefill(&both, slot, hooks, &mut mixed);
        hooks.pass(Point::Out, &mut mixed);
        self.mlp_norm.apply(&mut mixed);
        self.mlp.forward(&mixed, &mut made);
        linear(&self.linear, None, &made, &mut mixed);
        mixed
    }
}
