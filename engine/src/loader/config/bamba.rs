//! `bamba`: Mamba-2 in most layers, attention in some, a gated MLP in all.

use super::layer_count;
use super::mamba::inner_width;
use super::parts::{
    AttentionDefaults, Kind, attention, finish, gated_mlp, layer_kinds, layers_in, mamba2, require_silu, rope,
};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{AttentionSpec, FeedForwardSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec};

/// The class overwrites a `partial_rotary_factor` outside `rope_parameters` with this.
const ROTARY_SHARE: f64 = 0.5;

/// As `BambaConfig` reads it.
pub fn bamba(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys, "hidden_act")?;
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let attends = which_attend(keys, layers)?;
    let norm_eps = keys.epsilon("rms_norm_eps", 1e-5)?;
    let mlp = gated_mlp(keys, hidden_size, 14_336)?;
    // A hybrid without attention layers, or without Mamba layers, need not have sensible sizes for them.
    let attention = if attends.contains(&true) { Some(attention_spec(keys, hidden_size)?) } else { None };
    let mamba = match attends.contains(&false) {
        true => Some(mamba2(keys, hidden_size, inner_width(keys, "mamba_expand", hidden_size)?, norm_eps)?),
        false => None,
    };
    let mixer = |attends: bool| match (attends, &attention, &mamba) {
        (true, Some(attention), _) => MixerSpec::Attention(attention.clone()),
        (false, _, Some(mamba)) => MixerSpec::Mamba2(mamba.clone()),
        _ => unreachable!("made above for the kinds that occur"),
    };
    let layers = attends
        .iter()
        .map(|&attends| LayerSpec::new(mixer(attends), Some(FeedForwardSpec::Mlp(mlp.clone()))))
        .collect();
    let vocab_size = keys.size("vocab_size", 128_000)?;
    finish(ModelSpec::new("bamba", vocab_size, hidden_size, NormSpec::rms(norm_eps), layers), keys, false, Some(2))
}

fn attention_spec(keys: Keys, hidden_size: usize) -> Result<AttentionSpec, ConfigError> {
    let defaults = AttentionDefaults { heads: 32, kv_heads: Some(8), head_dim: None };
    let spec = attention(keys, hidden_size, defaults)?;
    Ok(AttentionSpec { rope: rope(keys, &spec, Some(ROTARY_SHARE), 262_144)?, ..spec })
}

/// `attn_layer_indices`, or the kinds by layer; both must say the same.
fn which_attend(keys: Keys, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let kinds = layer_kinds(keys, Some(layers), &[Kind::Linear, Kind::Attention])?;
    let by_kind: Option<Vec<bool>> = kinds.map(|kinds| kinds.iter().map(|&kind| kind == Kind::Attention).collect());
    let Some(by_index) = layers_in(keys, "attn_layer_indices", layers)? else {
        return Ok(by_kind.unwrap_or_else(|| vec![false; layers]));
    };
    if by_kind.is_some_and(|by_kind| by_kind != by_index) {
        return Err(ConfigError::Inconsistent(
            "`attn_layer_indices` and the layer kinds name different attention layers: they must agree".to_owned(),
        ));
    }
    Ok(by_index)
}
