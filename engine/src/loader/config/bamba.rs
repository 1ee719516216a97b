//! `bamba`: Mamba-2 in most layers, attention in some, a gated MLP in all.

use serde_json::Value;

use super::{
    attention_layers, check_attention, check_mamba2, elements, end_tokens, head_dim, layer_count, require_silu,
    trained_context,
};
use crate::loader::error::ConfigError;
use crate::loader::keys::{Keys, whole_number};
use crate::loader::rope::inverse_frequencies;
use crate::model::spec::{AttentionSpec, LayerSpec, Mamba2Spec, MixerSpec, MlpSpec, ModelSpec};

/// The class overwrites a `partial_rotary_factor` outside `rope_parameters` with this.
const ROTARY_SHARE: f64 = 0.5;

/// As `BambaConfig` reads it.
pub fn bamba(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys)?;
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let attends = which_attend(keys, layers)?;
    let norm_eps = keys.epsilon("rms_norm_eps", 1e-5)?;

    // A hybrid without attention layers, or without Mamba layers, need not have sensible sizes for them.
    let attention = if attends.contains(&true) { Some(attention(keys, hidden_size)?) } else { None };
    let mamba = if attends.contains(&false) { Some(mamba(keys, hidden_size, norm_eps)?) } else { None };
    let mlp =
        MlpSpec { intermediate_size: keys.size("intermediate_size", 14_336)?, bias: keys.flag("mlp_bias", false)? };
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    let mixer = |attends: bool| match (attends, &attention, &mamba) {
        (true, Some(attention), _) => MixerSpec::Attention(attention.clone()),
        (false, _, Some(mamba)) => MixerSpec::Mamba2(mamba.clone()),
        _ => unreachable!("made above for the kinds that occur"),
    };
    Ok(ModelSpec {
        model_type: "bamba".to_owned(),
        vocab_size: keys.size("vocab_size", 128_000)?,
        hidden_size,
        norm_eps,
        tied_embeddings: keys.flag("tie_word_embeddings", false)?,
        layers: attends.iter().map(|&attends| LayerSpec { mixer: mixer(attends), mlp: Some(mlp.clone()) }).collect(),
        trained_context: trained_context(keys)?,
        end_tokens: end_tokens(keys, 2)?,
    })
}

fn attention(keys: Keys, hidden_size: usize) -> Result<AttentionSpec, ConfigError> {
    let heads = keys.size("num_attention_heads", 32)?;
    let head_dim = head_dim(keys, hidden_size, heads)?;
    // A missing key is the class's 8; an explicit null means as many as heads.
    let default_kv_heads = if keys.raw("num_key_value_heads").is_some() { heads } else { 8 };
    let bias = keys.flag("attention_bias", false)?;
    let positions = keys.size("max_position_embeddings", 262_144)?;
    let spec = AttentionSpec {
        heads,
        kv_heads: keys.size("num_key_value_heads", default_kv_heads)?,
        head_dim,
        scale: (head_dim as f64).powf(-0.5) as f32,
        rope: Some(inverse_frequencies(keys, head_dim, Some(ROTARY_SHARE), positions)?),
        qkv_bias: bias,
        out_bias: bias,
    };
    check_attention(&spec, hidden_size)?;
    Ok(spec)
}

fn mamba(keys: Keys, hidden_size: usize, norm_eps: f32) -> Result<Mamba2Spec, ConfigError> {
    let inner = super::mamba::inner_width(keys, "mamba_expand", hidden_size)?;
    let heads = keys.size("mamba_n_heads", 128)?;
    if !inner.is_multiple_of(heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`mamba_n_heads` is {heads}, which must divide the inner width {inner} (`mamba_expand` · `hidden_size`)"
        )));
    }
    let head_dim = match keys.get("mamba_d_head").and_then(Value::as_str) {
        Some("auto") => inner / heads,
        _ => keys.size("mamba_d_head", inner / heads)?,
    };
    let spec = Mamba2Spec {
        heads,
        head_dim,
        state_dim: keys.size("mamba_d_state", 256)?,
        groups: keys.size("mamba_n_groups", 1)?,
        conv_taps: keys.size("mamba_d_conv", 4)?,
        proj_bias: keys.flag("mamba_proj_bias", false)?,
        conv_bias: keys.flag("mamba_conv_bias", true)?,
        delta_limit: keys.interval("time_step_limit")?,
        norm_eps,
    };
    check_mamba2(&spec, hidden_size, inner, ["mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state"])?;
    Ok(spec)
}

/// `attn_layer_indices`, or the kinds by layer; both must say the same.
fn which_attend(keys: Keys, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let by_kind = attention_layers(keys, layers)?;
    let key = "attn_layer_indices";
    let Some(indices) = keys.list(key)? else { return Ok(by_kind.unwrap_or_else(|| vec![false; layers])) };
    let mut by_index = vec![false; layers];
    for index in indices {
        match whole_number(index).and_then(|i| by_index.get_mut(usize::try_from(i).ok()?)) {
            Some(attends) => *attends = true,
            None => return Err(keys.invalid(key, index, &format!("layer numbers from 0 to {}", layers - 1))),
        }
    }
    if by_kind.is_some_and(|by_kind| by_kind != by_index) {
        return Err(ConfigError::Inconsistent(
            "`attn_layer_indices` and the layer kinds name different attention layers: they must agree".to_owned(),
        ));
    }
    Ok(by_index)
}
