//! `granitemoehybrid` (Granite 4.0): Mamba-2 and attention, experts beside an MLP that sees every token, four multipliers.

use statescope_kernels::activation::Activation;

use super::elements;
use super::layer_count;
use super::mamba::inner_width;
use super::parts::{
    AttentionDefaults, Kind, activation, attention, finish, layer_kinds, mamba2, require_silu, rope, shared_expert,
};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    AttentionSpec, ExpertStorage, FeedForwardSpec, LayerSpec, MixerSpec, MlpLayout, MlpSpec, ModelSpec, MoeSpec,
    NormSpec, RouterSpec,
};

/// As `GraniteMoeHybridConfig` reads it.
pub fn granite(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let kinds = layer_kinds(keys, Some(layers), &[Kind::Linear, Kind::Attention])?;
    let kinds = kinds.unwrap_or_else(|| vec![Kind::Linear; layers]);
    let eps = keys.epsilon("rms_norm_eps", 1e-6)?;
    let attention = match kinds.contains(&Kind::Attention) {
        true => Some(attention_spec(keys, hidden_size)?),
        false => None,
    };
    // Of interest to attention layers alone.
    keys.get("attention_multiplier");
    let mamba = if kinds.contains(&Kind::Linear) {
        // The activation of the convolution and of the gate too.
        require_silu(keys, "hidden_act")?;
        Some(mamba2(keys, hidden_size, inner_width(keys, "mamba_expand", hidden_size)?, eps)?)
    } else {
        None
    };
    let feed_forward = feed_forward(keys, hidden_size)?;
    let layer = |kind: &Kind| {
        let mixer = match (kind, &attention, &mamba) {
            (Kind::Attention, Some(attention), _) => MixerSpec::Attention(attention.clone()),
            (_, _, Some(mamba)) => MixerSpec::Mamba2(mamba.clone()),
            _ => unreachable!("made above for the kinds that occur"),
        };
        LayerSpec::new(mixer, Some(feed_forward.clone()))
    };
    let layers = kinds.iter().map(layer).collect();
    let logits_scaling = keys.number("logits_scaling", 1.0)?;
    if logits_scaling == 0.0 {
        return Err(keys.invalid("logits_scaling", &logits_scaling.into(), "a number other than 0"));
    }
    let spec = ModelSpec {
        embedding_scale: keys.factor("embedding_multiplier", 1.0)?,
        residual_scale: keys.factor("residual_multiplier", 1.0)?,
        logits_scale: logits_scaling.recip() as f32,
        ..ModelSpec::new("granitemoehybrid", keys.size("vocab_size", 32_000)?, hidden_size, NormSpec::rms(eps), layers)
    };
    finish(spec, keys, false, Some(2))
}

fn attention_spec(keys: Keys, hidden_size: usize) -> Result<AttentionSpec, ConfigError> {
    let spec = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: None, head_dim: None })?;
    let rope = match keys.text("position_embedding_type")? {
        Some("rope") => rope(keys, &spec, None, 2048)?,
        None | Some("nope") => None,
        Some(other) => {
            return Err(keys.unsupported("position_embedding_type", &other.into(), "\"rope\" or \"nope\""));
        }
    };
    Ok(AttentionSpec { rope, scale: keys.factor("attention_multiplier", 1.0)?, ..spec })
}

fn feed_forward(keys: Keys, hidden_size: usize) -> Result<FeedForwardSpec, ConfigError> {
    let mlp = |intermediate_size: usize| -> Result<MlpSpec, ConfigError> {
        elements("the MLP", &[hidden_size, 2 * intermediate_size])?;
        Ok(MlpSpec {
            activation: activation(keys, "hidden_act", Activation::Silu)?,
            layout: MlpLayout::FusedGate,
            ..MlpSpec::swiglu(intermediate_size, false)
        })
    };
    let shared = mlp(keys.size("shared_intermediate_size", 1024)?)?;
    let experts = match keys.get("num_local_experts").and_then(|value| value.as_u64()) {
        Some(0) => return Ok(FeedForwardSpec::Mlp(shared)),
        _ => keys.size("num_local_experts", 8)?,
    };
    let expert = mlp(keys.size("intermediate_size", 11_008)?)?;
    elements("the experts", &[experts, hidden_size, 2 * expert.intermediate_size])?;
    Ok(FeedForwardSpec::Moe(MoeSpec {
        experts,
        chosen: keys.size("num_experts_per_tok", 2)?.min(experts),
        router: RouterSpec::TopKSoftmax,
        expert,
        storage: ExpertStorage::Stacked,
        shared: shared_expert(shared, false),
        latent_size: None,
    }))
}
