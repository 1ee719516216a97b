//! `qwen3_next`: three gated delta rules to one gated attention, experts in every layer, norms stored as offsets from 1.

use super::parts::{
    AttentionDefaults, Kind, attention, expert, finish, gated_mlp, layer_kinds, require_silu, rope, shared_expert,
};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    AttentionSpec, DeltaLayout, DeltaRuleSpec, ExpertStorage, FeedForwardSpec, LayerSpec, MixerSpec, MlpLayout,
    MlpSpec, ModelSpec, MoeSpec, NormKind, NormSpec, RouterSpec,
};

const ROTARY_SHARE: f64 = 0.25;

/// As `Qwen3NextConfig` reads it.
pub fn qwen3_next(keys: Keys) -> Result<ModelSpec, ConfigError> {
    // The activation of the delta rule's convolution too.
    require_silu(keys, "hidden_act")?;
    let hidden_size = keys.size("hidden_size", 2048)?;
    let layers = layer_count(keys, "num_hidden_layers", 48)?;
    let interval = keys.size("full_attention_interval", 4)?;
    let kinds = layer_kinds(keys, Some(layers), &[Kind::Linear, Kind::Attention])?.unwrap_or_else(|| {
        (0..layers).map(|i| if (i + 1).is_multiple_of(interval) { Kind::Attention } else { Kind::Linear }).collect()
    });
    let norm = NormSpec { kind: NormKind::RmsFromOne, eps: keys.epsilon("rms_norm_eps", 1e-6)? };
    let defaults = AttentionDefaults { heads: 16, kv_heads: Some(2), head_dim: Some(256) };
    let plain = attention(keys, hidden_size, defaults)?;
    let rope = rope(keys, &plain, Some(ROTARY_SHARE), 32_768)?;
    let attention = AttentionSpec { rope, qk_norm: Some(norm), gated: true, ..plain };
    let delta_rule = delta_rule(keys, hidden_size, norm.eps)?;
    let mlp = gated_mlp(keys, hidden_size, 5632)?;
    let moe = moe(keys, hidden_size, &mlp)?;
    let dense = super::parts::layers_in(keys, "mlp_only_layers", layers)?.unwrap_or_else(|| vec![false; layers]);
    let step = keys.size("decoder_sparse_step", 1)?;
    let layer = |index: usize| {
        let mixer = match kinds[index] {
            Kind::Attention => MixerSpec::Attention(attention.clone()),
            _ => MixerSpec::DeltaRule(delta_rule.clone()),
        };
        let feed_forward = match &moe {
            Some(moe) if !dense[index] && (index + 1).is_multiple_of(step) => FeedForwardSpec::Moe(moe.clone()),
            _ => FeedForwardSpec::Mlp(mlp.clone()),
        };
        LayerSpec::new(mixer, Some(feed_forward))
    };
    let layers = (0..layers).map(layer).collect();
    let vocab_size = keys.size("vocab_size", 151_936)?;
    finish(ModelSpec::new("qwen3_next", vocab_size, hidden_size, norm, layers), keys, false, None)
}

fn delta_rule(keys: Keys, hidden_size: usize, norm_eps: f32) -> Result<DeltaRuleSpec, ConfigError> {
    let spec = DeltaRuleSpec {
        key_heads: keys.size("linear_num_key_heads", 16)?,
        heads: keys.size("linear_num_value_heads", 32)?,
        key_dim: keys.size("linear_key_head_dim", 128)?,
        head_dim: keys.size("linear_value_head_dim", 128)?,
        conv_taps: keys.size("linear_conv_kernel_dim", 4)?,
        norm_eps,
        layout: DeltaLayout::ByHead,
        decays: true,
        learned_beta: true,
        beta_scale: 1.0,
        gated: true,
    };
    check_delta_rule(&spec, hidden_size, ["linear_num_key_heads", "linear_num_value_heads"])?;
    Ok(spec)
}

/// Checks that the heads of keys divide those of values, and that everything can be counted. `names`: the keys of both, for messages.
pub fn check_delta_rule(spec: &DeltaRuleSpec, hidden_size: usize, names: [&str; 2]) -> Result<(), ConfigError> {
    if !spec.heads.is_multiple_of(spec.key_heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`{}` is {}, which must be a multiple of `{}`, {}",
            names[1], spec.heads, names[0], spec.key_heads
        )));
    }
    let width =
        elements("the keys", &[spec.key_heads, spec.key_dim])? + elements("the values", &[spec.heads, spec.head_dim])?;
    elements("in_proj_qkvz", &[hidden_size, 2 * width])?;
    elements("a state", &[spec.heads, spec.head_dim, spec.key_dim])?;
    Ok(())
}

fn moe(keys: Keys, hidden_size: usize, mlp: &MlpSpec) -> Result<Option<MoeSpec>, ConfigError> {
    let experts = match keys.get("num_experts").and_then(|value| value.as_u64()) {
        Some(0) => return Ok(None),
        _ => keys.size("num_experts", 512)?,
    };
    let width = keys.size("moe_intermediate_size", 512)?;
    let shared = keys.size("shared_expert_intermediate_size", 512)?;
    elements("the experts", &[experts, hidden_size, width])?;
    Ok(Some(MoeSpec {
        experts,
        chosen: keys.size("num_experts_per_tok", 10)?.min(experts),
        router: RouterSpec::SoftmaxTopK { renormalise: keys.flag("norm_topk_prob", true)? },
        expert: expert(mlp, width, MlpLayout::Gated),
        storage: ExpertStorage::Each,
        shared: shared_expert(expert(mlp, shared, MlpLayout::Gated), true),
        latent_size: None,
    }))
}
