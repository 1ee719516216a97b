//! `mamba` and `mamba2`: one state-space mixer a layer, no MLP.

use super::{check_mamba2, elements, end_tokens, layer_count, require_silu, require_uniform_layers, trained_context};
use crate::loader::error::ConfigError;
use crate::loader::keys::{Keys, MAX_SIZE};
use crate::model::spec::{LayerSpec, Mamba1Spec, Mamba2Spec, MixerSpec, ModelSpec};

/// As `MambaConfig` reads it.
pub fn mamba1(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 768)?;
    let channels = match keys.optional_size("intermediate_size")? {
        Some(channels) => channels,
        None => inner_width(keys, "expand", hidden_size)?,
    };
    let mixer = Mamba1Spec {
        channels,
        state_dim: keys.size("state_size", 16)?,
        dt_rank: dt_rank(keys, "time_step_rank", hidden_size)?,
        conv_taps: keys.size("conv_kernel", 4)?,
        proj_bias: keys.flag("use_bias", false)?,
        conv_bias: keys.flag("use_conv_bias", true)?,
    };
    check_mamba1(&mixer, hidden_size)?;
    backbone(keys, "mamba", hidden_size, [50_280, 32], (true, 0), MixerSpec::Mamba1(mixer))
}

/// As `Mamba2Config` reads it.
pub fn mamba2(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 4096)?;
    let mixer = Mamba2Spec {
        heads: keys.size("num_heads", 128)?,
        head_dim: keys.size("head_dim", 64)?,
        state_dim: keys.size("state_size", 128)?,
        groups: keys.size("n_groups", 8)?,
        conv_taps: keys.size("conv_kernel", 4)?,
        proj_bias: keys.flag("use_bias", false)?,
        conv_bias: keys.flag("use_conv_bias", true)?,
        delta_limit: keys.interval("time_step_limit")?,
        norm_eps: keys.epsilon("layer_norm_epsilon", 1e-5)?,
    };
    let inner = inner_width(keys, "expand", hidden_size)?;
    check_mamba2(&mixer, hidden_size, inner, ["num_heads", "head_dim", "n_groups", "state_size"])?;
    backbone(keys, "mamba2", hidden_size, [32_768, 64], (false, 2), MixerSpec::Mamba2(mixer))
}

/// What both share. `sizes` are the default vocabulary and depth, `tied_end` the default tying and end token.
fn backbone(
    keys: Keys,
    model_type: &str,
    hidden_size: usize,
    sizes: [usize; 2],
    tied_end: (bool, u32),
    mixer: MixerSpec,
) -> Result<ModelSpec, ConfigError> {
    require_silu(keys)?;
    let layers = layer_count(keys, "num_hidden_layers", sizes[1])?;
    require_uniform_layers(keys, layers, false)?;
    Ok(ModelSpec {
        model_type: model_type.to_owned(),
        vocab_size: keys.size("vocab_size", sizes[0])?,
        hidden_size,
        norm_eps: keys.epsilon("layer_norm_epsilon", 1e-5)?,
        tied_embeddings: keys.flag("tie_word_embeddings", tied_end.0)?,
        layers: vec![LayerSpec { mixer, mlp: None }; layers],
        trained_context: trained_context(keys)?,
        end_tokens: end_tokens(keys, tied_end.1)?,
    })
}

/// E = ⌊expand · hidden size⌋; `expand` may be a fraction.
pub fn inner_width(keys: Keys, key: &str, hidden_size: usize) -> Result<usize, ConfigError> {
    let width = keys.number(key, 2.0)? * hidden_size as f64;
    if (1.0..=MAX_SIZE as f64).contains(&width) {
        return Ok(width as usize);
    }
    Err(ConfigError::Inconsistent(format!(
        "`{key}` times the hidden size is {width}: expected an inner width from 1 to {MAX_SIZE}"
    )))
}

/// R: a number, or "auto" for ⌈d/16⌉.
pub fn dt_rank(keys: Keys, key: &str, hidden_size: usize) -> Result<usize, ConfigError> {
    match keys.get(key).and_then(|value| value.as_str()) {
        Some("auto") => Ok(hidden_size.div_ceil(16)),
        _ => keys.size(key, hidden_size.div_ceil(16)),
    }
}

/// Checks that the tensors of a Mamba-1 mixer can be counted.
pub fn check_mamba1(spec: &Mamba1Spec, hidden_size: usize) -> Result<(), ConfigError> {
    elements("in_proj", &[hidden_size, 2 * spec.channels])?;
    elements("x_proj", &[spec.channels, spec.dt_rank + 2 * spec.state_dim])?;
    elements("conv1d", &[spec.channels, spec.conv_taps]).map(drop)
}
