//! `lfm2`: double-gated short convolutions, attention in some layers, a gated MLP in all.

use super::parts::{AttentionDefaults, Kind, attention, finish, layer_kinds, layers_in, rope};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    AttentionSpec, FeedForwardSpec, LayerSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec, ShortConvSpec,
};

/// As `Lfm2Config` reads it.
pub fn lfm2(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 2560)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let attends = match layer_kinds(keys, Some(layers), &[Kind::ShortConv, Kind::Attention])? {
        Some(kinds) => kinds.iter().map(|&kind| kind == Kind::Attention).collect(),
        // Without any list every layer attends.
        None => layers_in(keys, "full_attn_idxs", layers)?.unwrap_or_else(|| vec![true; layers]),
    };
    let norm = NormSpec::rms(keys.epsilon("norm_eps", 1e-5)?);
    let plain = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: Some(8), head_dim: None })?;
    let rope = match keys.raw("rope_theta").is_none() && keys.raw("rope_parameters").is_none() {
        // The class's own base differs from everybody else's.
        true => Some(super::super::rope::plain(1e6, plain.head_dim)),
        false => rope(keys, &plain, None, 128_000)?,
    };
    let attention = AttentionSpec { rope, qk_norm: Some(norm), ..plain };
    let conv = ShortConvSpec {
        channels: hidden_size,
        taps: keys.size("conv_L_cache", 3)?,
        bias: keys.flag("conv_bias", false)?,
    };
    let mlp = MlpSpec::swiglu(mlp_width(keys)?, false);
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    let layer = |&attends: &bool| {
        let mixer = if attends { MixerSpec::Attention(attention.clone()) } else { MixerSpec::ShortConv(conv.clone()) };
        LayerSpec::new(mixer, Some(FeedForwardSpec::Mlp(mlp.clone())))
    };
    let layers = attends.iter().map(layer).collect();
    let vocab_size = keys.size("vocab_size", 65_536)?;
    // Old files spell the key without `word`.
    let tied = keys.flag("tie_embedding", true)?;
    finish(ModelSpec::new("lfm2", vocab_size, hidden_size, norm, layers), keys, tied, Some(2))
}

/// Two thirds of the given width, scaled and rounded up, where the file asks for it.
fn mlp_width(keys: Keys) -> Result<usize, ConfigError> {
    let key = if keys.get("block_ff_dim").is_some() { "block_ff_dim" } else { "intermediate_size" };
    let width = keys.size(key, 12_288)?;
    if !keys.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(width);
    }
    let multiple = keys.size("block_multiple_of", 256)?;
    let scaled = match keys.get("block_ffn_dim_multiplier") {
        None if keys.raw("block_ffn_dim_multiplier").is_some() => 2 * width / 3,
        _ => (keys.number("block_ffn_dim_multiplier", 1.0)? * (2 * width / 3) as f64) as usize,
    };
    if (1..=crate::loader::keys::MAX_SIZE).contains(&scaled) {
        return Ok(scaled.next_multiple_of(multiple));
    }
    Err(ConfigError::Inconsistent(format!("`block_ffn_dim_multiplier` makes the MLP {scaled} wide")))
}
