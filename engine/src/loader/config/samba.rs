//! `samba` (as flash-linear-attention stores it): Mamba-1 and sliding-window attention in turn, a gated MLP after each.

use super::mamba::{check_mamba1, dt_rank, inner_width};
use super::parts::{check_attention, finish, layers_in, require_silu};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::loader::rope;
use crate::model::spec::{
    AttentionSpec, FeedForwardSpec, LayerSpec, Mamba1Spec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
};

/// As fla's `SambaConfig` reads it.
pub fn samba(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys, "hidden_act")?;
    let hidden_size = keys.size("hidden_size", 2304)?;
    let layers = layer_count(keys, "num_hidden_layers", 18)?;
    let empty = serde_json::Map::new();
    let attn = keys.object("attn", "attn.")?.unwrap_or(Keys::new(&empty, "attn."));
    let attends = layers_in(attn, "layers", layers)?.unwrap_or_else(|| (0..layers).map(|i| i % 2 == 1).collect());
    let window = match attn.raw("window_size") {
        None => Some(2048),
        Some(_) => attn.optional_size("window_size")?,
    };
    let attention = attention(attn, hidden_size, window)?;
    let mamba = Mamba1Spec {
        channels: match keys.optional_size("intermediate_size")? {
            Some(channels) => channels,
            None => inner_width(keys, "expand", hidden_size)?,
        },
        state_dim: keys.size("state_size", 16)?,
        dt_rank: dt_rank(keys, "time_step_rank", hidden_size)?,
        conv_taps: keys.size("conv_kernel", 4)?,
        proj_bias: keys.flag("use_bias", false)?,
        conv_bias: keys.flag("use_conv_bias", true)?,
        dbc_norm: None,
        heads: None,
        in_offset: 0,
        out_norm: None,
    };
    check_mamba1(&mamba, hidden_size)?;
    let mlp = MlpSpec::swiglu(mlp_width(keys, hidden_size)?, false);
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    let layer = |&attends: &bool| {
        let mixer = if attends { MixerSpec::Attention(attention.clone()) } else { MixerSpec::Mamba1(mamba.clone()) };
        LayerSpec::new(mixer, Some(FeedForwardSpec::Mlp(mlp.clone())))
    };
    let layers = attends.iter().map(layer).collect();
    let norm = NormSpec::rms(keys.epsilon("norm_eps", 1e-5)?);
    finish(ModelSpec::new("samba", keys.size("vocab_size", 32_000)?, hidden_size, norm, layers), keys, false, Some(2))
}

/// The object `attn` of fla's hybrids: heads and rotary base.
pub fn attention(attn: Keys, hidden_size: usize, window: Option<usize>) -> Result<AttentionSpec, ConfigError> {
    let heads = attn.size("num_heads", 18)?;
    let kv_heads = attn.size("num_kv_heads", heads)?;
    if !hidden_size.is_multiple_of(heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`attn.num_heads` is {heads}, which must divide `hidden_size`, {hidden_size}"
        )));
    }
    let theta = attn.number("rope_theta", 10_000.0)?;
    if theta <= 0.0 {
        return Err(attn.invalid("rope_theta", &theta.into(), "a number above 0"));
    }
    let bias = attn.flag("qkv_bias", false)?;
    let plain = AttentionSpec::new(heads, kv_heads, hidden_size / heads);
    let rope = Some(rope::plain(theta, plain.head_dim));
    let spec = AttentionSpec { qkv_bias: bias, window, rope, ..plain };
    check_attention(&spec, hidden_size)?;
    Ok(spec)
}

/// Two thirds of `hidden_ratio` · d, rounded up to a multiple of 256; `intermediate_size` is the mixer's.
fn mlp_width(keys: Keys, hidden_size: usize) -> Result<usize, ConfigError> {
    Ok((hidden_size * keys.size("hidden_ratio", 4)? * 2 / 3).next_multiple_of(256))
}
