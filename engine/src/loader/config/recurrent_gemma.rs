//! `recurrent_gemma`: two recurrent blocks to one attention with a window (Griffin), a gated MLP after each, norms stored as offsets
//! from 1, bounded logits.

use super::parts::{AttentionDefaults, Kind, activation, attention, finish, layer_kinds, rope};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    AttentionSpec, FeedForwardSpec, LayerSpec, MixerSpec, MlpSpec, ModelSpec, NormKind, NormSpec, RgLruSpec,
};
use statescope_kernels::activation::Activation;

const ROTARY_SHARE: f64 = 0.5;

/// As `RecurrentGemmaConfig` reads it.
pub fn recurrent_gemma(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 2560)?;
    let layers = layer_count(keys, "num_hidden_layers", 26)?;
    let plain = attention(keys, hidden_size, AttentionDefaults { heads: 10, kv_heads: None, head_dim: None })?;
    let share = keys.number("partial_rotary_factor", ROTARY_SHARE)?;
    let window = keys.size("attention_window_size", keys.size("sliding_window", 2048)?)?;
    let attention =
        AttentionSpec { rope: rope(keys, &plain, Some(share), 8192)?, window: Some(window), out_bias: true, ..plain };
    let channels = keys.size("lru_width", hidden_size)?;
    let unit = RgLruSpec { channels, gate_heads: attention.heads, conv_taps: keys.size("conv1d_width", 4)? };
    if !channels.is_multiple_of(unit.gate_heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`lru_width` is {channels}, which must be a multiple of `num_attention_heads`, {}",
            unit.gate_heads
        )));
    }
    elements("the recurrent block", &[hidden_size, channels])?;
    // The file says twice the width.
    let width = keys.size("intermediate_size", 3 * hidden_size)? / 2;
    if width == 0 {
        return Err(keys.invalid("intermediate_size", &1.into(), "a whole number from 2"));
    }
    elements("the MLP", &[hidden_size, width])?;
    let mlp = MlpSpec {
        activation: activation(keys, "hidden_activation", Activation::GeluTanh)?,
        ..MlpSpec::swiglu(width, true)
    };
    if mlp.activation != Activation::GeluTanh {
        let found = keys.text("hidden_activation")?.unwrap_or_default();
        return Err(keys.unsupported("hidden_activation", &found.into(), "\"gelu_pytorch_tanh\""));
    }
    let layer = |&attends: &bool| {
        let mixer = if attends { MixerSpec::Attention(attention.clone()) } else { MixerSpec::RgLru(unit.clone()) };
        LayerSpec::new(mixer, Some(FeedForwardSpec::Mlp(mlp.clone())))
    };
    let norm = NormSpec { kind: NormKind::RmsFromOne, eps: keys.epsilon("rms_norm_eps", 1e-6)? };
    let cap = keys.factor("logits_soft_cap", 30.0)?;
    if cap <= 0.0 {
        return Err(keys.invalid("logits_soft_cap", &f64::from(cap).into(), "a number above 0"));
    }
    let spec = ModelSpec {
        // The model was trained with the root in bfloat16.
        embedding_scale: half::bf16::from_f64((hidden_size as f64).sqrt()).to_f32(),
        logits_cap: Some(cap),
        ..ModelSpec::new(
            "recurrent_gemma",
            keys.size("vocab_size", 256_000)?,
            hidden_size,
            norm,
            kinds(keys, layers)?.iter().map(layer).collect(),
        )
    };
    finish(spec, keys, true, Some(1))
}

/// Which layers attend: a list of all layers, or one of a few that repeats.
fn kinds(keys: Keys, layers: usize) -> Result<Vec<bool>, ConfigError> {
    if let Some(list) = keys.list("block_types")? {
        let attends = |value: &serde_json::Value| match value.as_str() {
            Some("recurrent") => Ok(false),
            Some("attention") => Ok(true),
            _ => Err(keys.unsupported("block_types", value, "\"recurrent\" or \"attention\"")),
        };
        let attends: Vec<bool> = list.iter().map(attends).collect::<Result<_, _>>()?;
        if attends.is_empty() {
            return Err(ConfigError::Inconsistent("`block_types` is empty: expected the kinds of layers".to_owned()));
        }
        return Ok(attends.into_iter().cycle().take(layers).collect());
    }
    let listed = layer_kinds(keys, Some(layers), &[Kind::Linear, Kind::Attention, Kind::SlidingAttention])?;
    Ok(match listed {
        Some(kinds) => kinds.into_iter().map(|kind| kind != Kind::Linear).collect(),
        None => (0..layers).map(|layer| layer % 3 == 2).collect(),
    })
}
