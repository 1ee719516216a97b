//! `mamba`, `falcon_mamba` and `mamba2`: one state-space mixer a layer, no MLP.

use super::parts::{Kind, check_mamba2, finish, require_silu, require_uniform_layers};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::{Keys, MAX_SIZE};
use crate::model::spec::{
    DbcNorm, GateNorm, LayerSpec, Mamba1Spec, Mamba2Spec, Mamba3Spec, MixerSpec, ModelSpec, NormSpec,
};

/// As `MambaConfig` reads it.
pub fn mamba1(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let mixer = mamba1_mixer(keys)?;
    backbone(keys, "mamba", [768, 50_280, 32], (true, 0), MixerSpec::Mamba1(mixer))
}

/// As `FalconMambaConfig` reads it: Mamba-1 with norms of δ, B and C that have no scales.
pub fn falcon_mamba(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let dbc_norm = Some(DbcNorm { eps: keys.epsilon("mixer_rms_eps", 1e-6)?, learned: false });
    let mixer = Mamba1Spec { dbc_norm, ..mamba1_mixer(keys)? };
    backbone(keys, "falcon_mamba", [768, 50_280, 32], (true, 0), MixerSpec::Mamba1(mixer))
}

fn mamba1_mixer(keys: Keys) -> Result<Mamba1Spec, ConfigError> {
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
        dbc_norm: None,
        heads: None,
        in_offset: 0,
        out_norm: None,
    };
    check_mamba1(&mixer, hidden_size)?;
    Ok(mixer)
}

/// As `Mamba2Config` reads it.
pub fn mamba2(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 4096)?;
    // Published files carry this key, which no Mamba-2 class acts on: the gate always comes first.
    keys.get("norm_before_gate");
    let bias = keys.flag("use_bias", false)?;
    let mixer = Mamba2Spec {
        heads: keys.size("num_heads", 128)?,
        head_dim: keys.size("head_dim", 64)?,
        state_dim: keys.size("state_size", 128)?,
        groups: keys.size("n_groups", 8)?,
        conv_taps: keys.size("conv_kernel", 4)?,
        proj_bias: bias,
        out_bias: bias,
        conv_bias: keys.flag("use_conv_bias", true)?,
        multipliers: [1.0; 5],
        norm: GateNorm::GateFirst,
        delta_limit: keys.interval("time_step_limit")?,
        norm_eps: keys.epsilon("layer_norm_epsilon", 1e-5)?,
    };
    let inner = inner_width(keys, "expand", hidden_size)?;
    check_mamba2(&mixer, hidden_size, inner, ["num_heads", "head_dim", "n_groups", "state_size"])?;
    backbone(keys, "mamba2", [4096, 32_768, 64], (false, 2), MixerSpec::Mamba2(mixer))
}

/// As flash-linear-attention's `Mamba3Config` reads it.
pub fn mamba3(keys: Keys) -> Result<ModelSpec, ConfigError> {
    if keys.flag("use_bias", false)? {
        return Err(keys.unsupported("use_bias", &true.into(), "false"));
    }
    let (hidden_size, head_dim) = (keys.size("hidden_size", 2048)?, keys.size("head_dim", 64)?);
    let inner = inner_width(keys, "expand", hidden_size)?;
    let (groups, state_dim) = (keys.size("n_groups", 1)?, keys.size("state_size", 128)?);
    if !inner.is_multiple_of(head_dim) || !(inner / head_dim).is_multiple_of(groups) {
        return Err(ConfigError::Inconsistent(format!(
            "`expand` · `hidden_size` is {inner}, which must be a multiple of `head_dim`, {head_dim}, and the heads of `n_groups`, {groups}"
        )));
    }
    let share = keys.number("rope_fraction", 0.5)?;
    let turned = state_dim as f64 * share;
    if !(share <= 1.0 && turned >= 2.0) {
        return Err(keys.invalid("rope_fraction", &share.into(), "at most 1, and at least two of the state's entries"));
    }
    let mimo = keys.flag("is_mimo", false)?;
    let ranks = keys.size("mimo_rank", 4)?;
    if mimo && !state_dim.is_multiple_of(2) {
        return Err(keys.invalid("state_size", &state_dim.into(), "an even number: halves of it are turned together"));
    }
    let norm_eps = keys.epsilon("norm_eps", 1e-5)?;
    let spec = Mamba3Spec {
        heads: inner / head_dim,
        head_dim,
        state_dim,
        groups,
        angles: turned as usize / 2,
        floor: keys.epsilon("A_floor", 1e-4)?,
        ranks: mimo.then_some(ranks),
        output_norm: keys.flag("is_outproj_norm", false)?,
        norm_eps,
    };
    elements("B and C", &[spec.rank(), groups, state_dim])?;
    elements(
        "in_proj",
        &[hidden_size, 2 * inner + 2 * spec.rank() * groups * state_dim + 3 * spec.heads + spec.angles],
    )?;
    elements("a state", &[inner, state_dim])?;
    elements("the keys of a token", &[spec.heads, 3 * spec.rank(), state_dim])?;
    let layers = layer_count(keys, "num_hidden_layers", 48)?;
    let norm = NormSpec::rms(norm_eps);
    let layers = vec![LayerSpec::new(MixerSpec::Mamba3(spec), None); layers];
    let vocab_size = keys.size("vocab_size", 32_000)?;
    finish(ModelSpec::new("mamba3", vocab_size, hidden_size, norm, layers), keys, false, Some(2))
}

/// What they share. `sizes` are the default width, vocabulary and depth, `tied_end` the default tying and end token.
fn backbone(
    keys: Keys,
    model_type: &str,
    sizes: [usize; 3],
    tied_end: (bool, u32),
    mixer: MixerSpec,
) -> Result<ModelSpec, ConfigError> {
    require_silu(keys, "hidden_act")?;
    let layers = layer_count(keys, "num_hidden_layers", sizes[2])?;
    require_uniform_layers(keys, layers, Kind::Linear)?;
    let norm = NormSpec::rms(keys.epsilon("layer_norm_epsilon", 1e-5)?);
    let (vocab_size, hidden_size) = (keys.size("vocab_size", sizes[1])?, keys.size("hidden_size", sizes[0])?);
    let layers = vec![LayerSpec::new(mixer, None); layers];
    finish(ModelSpec::new(model_type, vocab_size, hidden_size, norm, layers), keys, tied_end.0, Some(tied_end.1))
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
