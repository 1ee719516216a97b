//! The config that state-spaces/mamba itself writes: no `model_type`, the mixer's keyword arguments in `ssm_cfg`.

use serde_json::Value;

use super::mamba::{check_mamba1, dt_rank, inner_width};
use super::parts::check_mamba2;
use super::{end_tokens, layer_count, trained_context};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{GateNorm, LayerSpec, Mamba1Spec, Mamba2Spec, MixerSpec, ModelSpec, NormSpec};

/// mamba_ssm builds all its norms with this.
const NORM_EPS: f32 = 1e-5;

/// Arguments that only matter for initialisation or speed.
const IRRELEVANT: [&str; 10] = [
    "layer",
    "dt_min",
    "dt_max",
    "dt_init",
    "dt_scale",
    "dt_init_floor",
    "use_fast_path",
    "use_mem_eff_path",
    "chunk_size",
    "A_init_range",
];
const MAMBA1: [&str; 6] = ["d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias"];
const MAMBA2: [&str; 8] = ["d_state", "d_conv", "expand", "headdim", "ngroups", "dt_limit", "conv_bias", "bias"];

/// As `mamba_ssm.models.config_mamba.MambaConfig` reads it.
pub fn original(keys: Keys) -> Result<ModelSpec, ConfigError> {
    for key in ["attn_layer_idx", "d_intermediate"] {
        if let Some(value) =
            keys.get(key).filter(|value| value.as_array().map_or(value.as_f64() != Some(0.0), |l| !l.is_empty()))
        {
            return Err(keys.unsupported(key, value, if key == "d_intermediate" { "0" } else { "an empty list" }));
        }
    }
    let hidden_size = keys.size("d_model", 2560)?;
    let empty = serde_json::Map::new();
    let ssm = keys.object("ssm_cfg", "ssm_cfg.")?.unwrap_or(Keys::new(&empty, "ssm_cfg."));
    let (model_type, mixer) = match ssm.text("layer")? {
        None | Some("Mamba1") => ("mamba", MixerSpec::Mamba1(mamba1(ssm, hidden_size)?)),
        Some("Mamba2") => ("mamba2", MixerSpec::Mamba2(mamba2(ssm, hidden_size)?)),
        Some(other) => return Err(ssm.unsupported("layer", &other.into(), "\"Mamba1\" or \"Mamba2\"")),
    };
    let multiple = match keys.get("pad_vocab_size_multiple").and_then(Value::as_u64) {
        Some(0) => 1,
        _ => keys.size("pad_vocab_size_multiple", 8)?,
    };
    let vocab_size = keys.size("vocab_size", 50_277)?.next_multiple_of(multiple);
    let layers = vec![LayerSpec::new(mixer, None); layer_count(keys, "n_layer", 64)?];
    Ok(ModelSpec {
        tied_embeddings: keys.flag("tie_embeddings", true)?,
        trained_context: trained_context(keys)?,
        end_tokens: end_tokens(keys, Some(0))?,
        ..ModelSpec::new(model_type, vocab_size, hidden_size, NormSpec::rms(NORM_EPS), layers)
    })
}

fn mamba1(ssm: Keys, hidden_size: usize) -> Result<Mamba1Spec, ConfigError> {
    refuse_others(ssm, &MAMBA1)?;
    let spec = Mamba1Spec {
        channels: inner_width(ssm, "expand", hidden_size)?,
        state_dim: ssm.size("d_state", 16)?,
        dt_rank: dt_rank(ssm, "dt_rank", hidden_size)?,
        conv_taps: ssm.size("d_conv", 4)?,
        proj_bias: ssm.flag("bias", false)?,
        conv_bias: ssm.flag("conv_bias", true)?,
        dbc_norm: None,
        heads: None,
        in_offset: 0,
        out_norm: None,
    };
    check_mamba1(&spec, hidden_size)?;
    Ok(spec)
}

fn mamba2(ssm: Keys, hidden_size: usize) -> Result<Mamba2Spec, ConfigError> {
    refuse_others(ssm, &MAMBA2)?;
    let inner = inner_width(ssm, "expand", hidden_size)?;
    let (head_dim, bias) = (ssm.size("headdim", 64)?, ssm.flag("bias", false)?);
    if !inner.is_multiple_of(head_dim) {
        return Err(ConfigError::Inconsistent(format!(
            "`ssm_cfg.headdim` is {head_dim}, which must divide the inner width {inner} (`ssm_cfg.expand` · `d_model`)"
        )));
    }
    let spec = Mamba2Spec {
        heads: inner / head_dim,
        head_dim,
        state_dim: ssm.size("d_state", 128)?,
        groups: ssm.size("ngroups", 1)?,
        conv_taps: ssm.size("d_conv", 4)?,
        proj_bias: bias,
        out_bias: bias,
        conv_bias: ssm.flag("conv_bias", true)?,
        multipliers: [1.0; 5],
        norm: GateNorm::GateFirst,
        delta_limit: ssm.interval("dt_limit")?,
        norm_eps: NORM_EPS,
    };
    check_mamba2(&spec, hidden_size, inner, ["heads", "ssm_cfg.headdim", "ssm_cfg.ngroups", "ssm_cfg.d_state"])?;
    Ok(spec)
}

/// Any further argument must have the value that mamba_ssm has by default.
fn refuse_others(ssm: Keys, known: &[&str]) -> Result<(), ConfigError> {
    for (key, value) in ssm.iter() {
        let default = match key.as_str() {
            "rmsnorm" => Value::Bool(true),
            "D_has_hdim" | "norm_before_gate" => Value::Bool(false),
            "d_ssm" | "conv_init" => Value::Null,
            key if IRRELEVANT.contains(&key) || known.contains(&key) => continue,
            _ => return Err(ssm.unsupported(key, value, "no such key")),
        };
        if *value != default && key != "conv_init" {
            return Err(ssm.unsupported(key, value, &default.to_string()));
        }
    }
    Ok(())
}
