//! `llama`: attention with rotary positions, then a gated MLP, in every layer.

use super::{
    check_attention, elements, end_tokens, head_dim, layer_count, require_silu, require_uniform_layers, trained_context,
};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::loader::rope::inverse_frequencies;
use crate::model::spec::{AttentionSpec, LayerSpec, MixerSpec, MlpSpec, ModelSpec};

/// As `LlamaConfig` reads it.
pub fn llama(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys)?;
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    require_uniform_layers(keys, layers, true)?;
    let heads = keys.size("num_attention_heads", 32)?;
    let head_dim = head_dim(keys, hidden_size, heads)?;
    let bias = keys.flag("attention_bias", false)?;
    let attention = AttentionSpec {
        heads,
        kv_heads: keys.size("num_key_value_heads", heads)?,
        head_dim,
        scale: (head_dim as f64).powf(-0.5) as f32,
        rope: Some(inverse_frequencies(keys, head_dim, None, keys.size("max_position_embeddings", 2048)?)?),
        qkv_bias: bias,
        out_bias: bias,
    };
    check_attention(&attention, hidden_size)?;
    let mlp =
        MlpSpec { intermediate_size: keys.size("intermediate_size", 11_008)?, bias: keys.flag("mlp_bias", false)? };
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    Ok(ModelSpec {
        model_type: "llama".to_owned(),
        vocab_size: keys.size("vocab_size", 32_000)?,
        hidden_size,
        norm_eps: keys.epsilon("rms_norm_eps", 1e-6)?,
        tied_embeddings: keys.flag("tie_word_embeddings", false)?,
        layers: vec![LayerSpec { mixer: MixerSpec::Attention(attention), mlp: Some(mlp) }; layers],
        trained_context: trained_context(keys)?,
        end_tokens: end_tokens(keys, 2)?,
    })
}
