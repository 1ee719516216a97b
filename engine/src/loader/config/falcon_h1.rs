//! `falcon_h1`: Mamba-2 and attention side by side in every layer, then a gated MLP; a dozen multipliers.

use super::layer_count;
use super::mamba::inner_width;
use super::parts::{AttentionDefaults, attention, finish, gated_mlp, mamba2, require_silu, rope};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    AttentionSpec, FeedForwardSpec, GateNorm, LayerSpec, Mamba2Spec, MixerSpec, MlpSpec, ModelSpec, NormSpec, PartSpec,
};

/// As `FalconH1Config` reads it.
pub fn falcon_h1(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys, "hidden_act")?;
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let eps = keys.epsilon("rms_norm_eps", 1e-5)?;
    let [gate_scale, output_scale] = keys.factors("mlp_multipliers")?;
    let mlp = MlpSpec { gate_scale, output_scale, ..gated_mlp(keys, hidden_size, 14_336)? };
    let parts = vec![
        PartSpec {
            mixer: MixerSpec::Mamba2(mamba(keys, hidden_size, eps)?),
            input_scale: keys.factor("ssm_in_multiplier", 1.0)?,
            output_scale: keys.factor("ssm_out_multiplier", 1.0)?,
        },
        PartSpec {
            mixer: MixerSpec::Attention(attention_spec(keys, hidden_size)?),
            input_scale: keys.factor("attention_in_multiplier", 1.0)?,
            output_scale: keys.factor("attention_out_multiplier", 1.0)?,
        },
    ];
    let layer = LayerSpec { parts, shared: None, feed_forward: Some(FeedForwardSpec::Mlp(mlp)), parallel: false };
    let vocab_size = keys.size("vocab_size", 128_000)?;
    let spec = ModelSpec {
        embedding_scale: keys.factor("embedding_multiplier", 1.0)?,
        logits_scale: keys.factor("lm_head_multiplier", 1.0)?,
        ..ModelSpec::new("falcon_h1", vocab_size, hidden_size, NormSpec::rms(eps), vec![layer; layers])
    };
    finish(spec, keys, false, Some(2))
}

fn mamba(keys: Keys, hidden_size: usize, eps: f32) -> Result<Mamba2Spec, ConfigError> {
    // A null means expand · d; a missing key is the class's 1024.
    let inner = match keys.raw("mamba_d_ssm") {
        None => 1024,
        Some(_) => match keys.optional_size("mamba_d_ssm")? {
            Some(inner) => inner,
            None => inner_width(keys, "mamba_expand", hidden_size)?,
        },
    };
    let norm = match (keys.flag("mamba_rms_norm", false)?, keys.flag("mamba_norm_before_gate", true)?) {
        (false, _) => GateNorm::GateOnly,
        (true, false) => GateNorm::GateFirst,
        (true, true) => GateNorm::NormFirst,
    };
    let out_bias = keys.flag("projectors_bias", false)?;
    Ok(Mamba2Spec {
        norm,
        out_bias,
        multipliers: keys.factors("ssm_multipliers")?,
        ..mamba2(keys, hidden_size, inner, eps)?
    })
}

fn attention_spec(keys: Keys, hidden_size: usize) -> Result<AttentionSpec, ConfigError> {
    let spec = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: Some(8), head_dim: None })?;
    Ok(AttentionSpec { rope: rope(keys, &spec, None, 8192)?, key_scale: keys.factor("key_multiplier", 1.0)?, ..spec })
}
