//! `llama`, `mistral`, `qwen2`, `qwen3`: attention with rotary positions, then a gated MLP, in every layer.

use super::layer_count;
use super::parts::{AttentionDefaults, Kind, attention, finish, gated_mlp, layer_kinds, require_uniform_layers, rope};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{AttentionSpec, FeedForwardSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec};

/// As `LlamaConfig` reads it.
pub fn llama(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    require_uniform_layers(keys, layers, Kind::Attention)?;
    let plain = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: None, head_dim: None })?;
    let attention = AttentionSpec { rope: rope(keys, &plain, None, 2048)?, ..plain };
    let spec = decoder(keys, "llama", [32_000, hidden_size, 11_008], vec![attention; layers])?;
    finish(spec, keys, false, Some(2))
}

/// As `MistralConfig` reads it: a window in every layer; `null` for none, 4,096 where the key is missing.
pub fn mistral(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let window = match keys.raw("sliding_window") {
        None => Some(4096),
        Some(_) => keys.optional_size("sliding_window")?,
    };
    let plain = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: Some(8), head_dim: None })?;
    let (qkv_bias, out_bias) = (false, false);
    let attention = AttentionSpec { rope: rope(keys, &plain, None, 131_072)?, window, qkv_bias, out_bias, ..plain };
    let spec = decoder(keys, "mistral", [32_000, hidden_size, 14_336], vec![attention; layers])?;
    finish(spec, keys, false, Some(2))
}

/// As `Qwen2Config` reads it: biases on q, k and v whatever the file says.
pub fn qwen2(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 4096)?;
    let plain = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: Some(32), head_dim: None })?;
    let attention = AttentionSpec { rope: rope(keys, &plain, None, 32_768)?, qkv_bias: true, out_bias: false, ..plain };
    let spec = decoder(keys, "qwen2", [151_936, hidden_size, 22_016], windowed(keys, &attention)?)?;
    finish(spec, keys, false, None)
}

/// As `Qwen3Config` reads it: q and k are normed over the head.
pub fn qwen3(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 4096)?;
    let plain = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: Some(32), head_dim: Some(128) })?;
    let qk_norm = Some(NormSpec::rms(keys.epsilon("rms_norm_eps", 1e-6)?));
    let attention = AttentionSpec { rope: rope(keys, &plain, None, 32_768)?, qk_norm, ..plain };
    let spec = decoder(keys, "qwen3", [151_936, hidden_size, 22_016], windowed(keys, &attention)?)?;
    finish(spec, keys, false, None)
}

/// Which layers have a window: those that `layer_types` names, else the ones from `max_window_layers` on, if any have.
fn windowed(keys: Keys, attention: &AttentionSpec) -> Result<Vec<AttentionSpec>, ConfigError> {
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let used = keys.flag("use_sliding_window", false)?;
    let window = keys.optional_size("sliding_window")?.filter(|_| used);
    let first = match keys.get("max_window_layers").and_then(|value| value.as_u64()) {
        Some(first) => first as usize,
        None => keys.size("max_window_layers", 28)?,
    };
    let slides: Vec<bool> = match layer_kinds(keys, Some(layers), &[Kind::Attention, Kind::SlidingAttention])? {
        Some(kinds) => kinds.iter().map(|&kind| kind == Kind::SlidingAttention).collect(),
        None => (0..layers).map(|layer| window.is_some() && layer >= first).collect(),
    };
    if slides.contains(&true) && window.is_none() {
        return Err(ConfigError::Inconsistent(
            "`layer_types` names sliding layers, which need `use_sliding_window` and `sliding_window`".to_owned(),
        ));
    }
    let spec = |slides: bool| AttentionSpec { window: window.filter(|_| slides), ..attention.clone() };
    Ok(slides.into_iter().map(spec).collect())
}

/// `sizes`: default vocabulary, hidden size, default width of the MLP.
fn decoder(
    keys: Keys,
    model_type: &str,
    sizes: [usize; 3],
    layers: Vec<AttentionSpec>,
) -> Result<ModelSpec, ConfigError> {
    let [vocab_size, hidden_size, intermediate_size] = sizes;
    let mlp = gated_mlp(keys, hidden_size, intermediate_size)?;
    let layer = |attention| LayerSpec::new(MixerSpec::Attention(attention), Some(FeedForwardSpec::Mlp(mlp.clone())));
    let norm = NormSpec::rms(keys.epsilon("rms_norm_eps", 1e-6)?);
    let layers = layers.into_iter().map(layer).collect();
    Ok(ModelSpec::new(model_type, keys.size("vocab_size", vocab_size)?, hidden_size, norm, layers))
}
