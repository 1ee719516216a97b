//! `gpt_neox` (Pythia) and `gpt2`: layer norms with biases, a plain MLP.

use statescope_kernels::activation::Activation;

use super::parts::{activation, check_attention, finish, head_dim, rope};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::{Keys, whole_number};
use crate::model::spec::{
    AttentionSpec, FeedForwardSpec, LayerSpec, MixerSpec, MlpLayout, MlpSpec, ModelSpec, NormKind, NormSpec, QkvLayout,
};

/// As `GPTNeoXConfig` reads it: rotary positions on a quarter of the head, MLP beside the attention.
pub fn gpt_neox(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 6144)?;
    let layers = layer_count(keys, "num_hidden_layers", 44)?;
    let heads = keys.size("num_attention_heads", 64)?;
    let bias = keys.flag("attention_bias", true)?;
    let plain = AttentionSpec {
        qkv_bias: bias,
        out_bias: bias,
        layout: QkvLayout::ByHead,
        ..AttentionSpec::new(heads, heads, head_dim(keys, hidden_size, heads)?)
    };
    check_attention(&plain, hidden_size)?;
    let share = keys.number("rotary_pct", 0.25)?;
    let attention = AttentionSpec { rope: rope(keys, &plain, Some(share), 2048)?, ..plain };
    let mlp = MlpSpec {
        activation: activation(keys, "hidden_act", Activation::Gelu)?,
        layout: MlpLayout::Plain,
        ..MlpSpec::swiglu(keys.size("intermediate_size", 24_576)?, true)
    };
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    let layer = LayerSpec {
        parallel: keys.flag("use_parallel_residual", true)?,
        ..LayerSpec::new(MixerSpec::Attention(attention), Some(FeedForwardSpec::Mlp(mlp)))
    };
    let norm = NormSpec { kind: NormKind::Layer, eps: keys.epsilon("layer_norm_eps", 1e-5)? };
    let vocab_size = keys.size("vocab_size", 50_432)?;
    finish(ModelSpec::new("gpt_neox", vocab_size, hidden_size, norm, vec![layer; layers]), keys, false, Some(2))
}

/// As `GPT2Config` reads it: learned positions, matrices stored `[in, out]`.
pub fn gpt2(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("n_embd", 768)?;
    let layers = layer_count(keys, "n_layer", 12)?;
    let heads = keys.size("n_head", 12)?;
    if !hidden_size.is_multiple_of(heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`n_head` is {heads}, which must divide `n_embd`, {hidden_size}"
        )));
    }
    let plain = AttentionSpec {
        qkv_bias: true,
        out_bias: true,
        layout: QkvLayout::ByKind,
        ..AttentionSpec::new(heads, heads, hidden_size / heads)
    };
    check_attention(&plain, hidden_size)?;
    let scale = if keys.flag("scale_attn_weights", true)? { plain.scale } else { 1.0 };
    let by_layer = keys.flag("scale_attn_by_inverse_layer_idx", false)?;
    let mlp = MlpSpec {
        activation: activation(keys, "activation_function", Activation::GeluTanh)?,
        layout: MlpLayout::Plain,
        ..MlpSpec::swiglu(keys.size("n_inner", 4 * hidden_size)?, true)
    };
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    let layer = |index: usize| {
        let scale = if by_layer { scale / (index + 1) as f32 } else { scale };
        let attention = MixerSpec::Attention(AttentionSpec { scale, ..plain.clone() });
        LayerSpec::new(attention, Some(FeedForwardSpec::Mlp(mlp.clone())))
    };
    let positions = keys.size("n_positions", 1024)?;
    if let Some(value) = keys.get("n_ctx").filter(|value| whole_number(value) != Some(positions as u64)) {
        return Err(keys.unsupported("n_ctx", value, "as many as `n_positions`"));
    }
    let norm = NormSpec { kind: NormKind::Layer, eps: keys.epsilon("layer_norm_epsilon", 1e-5)? };
    let layers = (0..layers).map(layer).collect();
    let spec = ModelSpec {
        learned_positions: Some(positions),
        ..ModelSpec::new("gpt2", keys.size("vocab_size", 50_257)?, hidden_size, norm, layers)
    };
    let spec = finish(spec, keys, true, Some(50_256))?;
    Ok(ModelSpec { trained_context: spec.trained_context.or(Some(positions)), ..spec })
}
