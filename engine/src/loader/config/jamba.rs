//! `jamba`: Mamba-1 with normed δ, B and C, attention without positions in one layer of eight, experts in every other.

use super::parts::{AttentionDefaults, attention, finish, gated_mlp, is_periodic, mamba1, require_silu};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    DbcNorm, ExpertStorage, FeedForwardSpec, LayerSpec, Mamba1Spec, MixerSpec, MlpLayout, ModelSpec, MoeSpec, NormSpec,
    RouterSpec,
};

/// As `JambaConfig` reads it.
pub fn jamba(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys, "hidden_act")?;
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let eps = keys.epsilon("rms_norm_eps", 1e-6)?;
    let attention = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: Some(8), head_dim: None })?;
    let mamba = Mamba1Spec { dbc_norm: Some(DbcNorm { eps, learned: true }), ..mamba1(keys, hidden_size)? };
    let mlp = gated_mlp(keys, hidden_size, 14_336)?;
    let experts = keys.size("num_experts", 16)?;
    elements("the experts", &[experts, hidden_size, mlp.intermediate_size])?;
    let moe = MoeSpec {
        experts,
        chosen: keys.size("num_experts_per_tok", 2)?.min(experts),
        router: RouterSpec::SoftmaxTopK { renormalise: false },
        expert: super::parts::expert(&mlp, mlp.intermediate_size, MlpLayout::Gated),
        storage: ExpertStorage::Each,
        shared: None,
        latent_size: None,
    };
    let layer = |index: usize| -> Result<LayerSpec, ConfigError> {
        let mixer = match is_periodic(keys, "attn_layer", [8, 4], index)? {
            true => MixerSpec::Attention(attention.clone()),
            false => MixerSpec::Mamba1(mamba.clone()),
        };
        let routed = is_periodic(keys, "expert_layer", [2, 1], index)? && experts > 1;
        let feed_forward = if routed { FeedForwardSpec::Moe(moe.clone()) } else { FeedForwardSpec::Mlp(mlp.clone()) };
        Ok(LayerSpec::new(mixer, Some(feed_forward)))
    };
    let layers = (0..layers).map(layer).collect::<Result<_, _>>()?;
    let vocab_size = keys.size("vocab_size", 65_536)?;
    finish(ModelSpec::new("jamba", vocab_size, hidden_size, NormSpec::rms(eps), layers), keys, false, Some(2))
}
