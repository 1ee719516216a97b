//! `xlstm`: xLSTM-7B, a matrix LSTM and a gated MLP in every layer, bounded logits.

use super::parts::finish;
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{FeedForwardSpec, LayerSpec, MixerSpec, MlpLayout, MlpSpec, MlstmSpec, ModelSpec, NormSpec};

/// As `xLSTMConfig` reads it.
pub fn xlstm(keys: Keys) -> Result<ModelSpec, ConfigError> {
    for (key, only) in [("use_bias", false), ("add_out_norm", true)] {
        let found = keys.flag(key, only)?;
        if found != only {
            return Err(keys.unsupported(key, &found.into(), &only.to_string()));
        }
    }
    let fused = match keys.text("weight_mode")? {
        None | Some("single") => false,
        Some("fused") => true,
        Some(other) => return Err(keys.unsupported("weight_mode", &other.into(), "\"single\" or \"fused\"")),
    };
    let hidden_size = match keys.optional_size("hidden_size")? {
        Some(size) => size,
        None => keys.size("embedding_dim", 4096)?,
    };
    let layers = match keys.optional_size("num_hidden_layers")? {
        Some(_) => layer_count(keys, "num_hidden_layers", 32)?,
        None => layer_count(keys, "num_blocks", 32)?,
    };
    let heads = keys.size("num_heads", 8)?;
    let width = |key: &str, default: f64| -> Result<usize, ConfigError> {
        let factor = keys.number(key, default)?;
        let all = (hidden_size as f64 * factor) as usize;
        if factor <= 64.0 && all > 0 && all.is_multiple_of(heads) {
            return Ok(all / heads);
        }
        Err(ConfigError::Inconsistent(format!(
            "`hidden_size` · `{key}` is {all}, which must be a multiple of `num_heads`, {heads}"
        )))
    };
    let norm = NormSpec::rms(keys.epsilon("norm_eps", 1e-6)?);
    let spec = MlstmSpec {
        heads,
        key_dim: width("qk_dim_factor", 0.5)?,
        head_dim: width("v_dim_factor", 1.0)?,
        gate_cap: cap(keys, "gate_soft_cap", 15.0)?,
        fused,
        eps: keys.epsilon("eps", 1e-6)?,
        norm_eps: norm.eps,
    };
    elements("a state", &[spec.heads, spec.head_dim, spec.key_dim])?;
    let multiple = keys.size("ffn_round_up_to_multiple_of", 64)?;
    let factor = keys.number("ffn_proj_factor", 2.667)?;
    if !(0.0..=1024.0).contains(&factor) || hidden_size as f64 * factor < 1.0 {
        return Err(keys.invalid("ffn_proj_factor", &factor.into(), "a number above 0"));
    }
    // As the class rounds: up, but only from a whole number above the multiple.
    let inner = ((hidden_size as f64 * factor + (multiple - 1) as f64) / multiple as f64) as usize * multiple;
    let mlp = MlpSpec {
        layout: if fused { MlpLayout::FusedGate } else { MlpLayout::Gated },
        ..MlpSpec::swiglu(inner.max(1), false)
    };
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    let layer = LayerSpec::new(MixerSpec::Mlstm(spec), Some(FeedForwardSpec::Mlp(mlp)));
    let spec = ModelSpec {
        logits_cap: Some(cap(keys, "output_logit_soft_cap", 30.0)?),
        ..ModelSpec::new("xlstm", keys.size("vocab_size", 50_304)?, hidden_size, norm, vec![layer; layers])
    };
    finish(spec, keys, false, Some(2))
}

/// A bound above 0.
fn cap(keys: Keys, key: &str, default: f64) -> Result<f32, ConfigError> {
    match keys.factor(key, default)? {
        cap if cap > 0.0 => Ok(cap),
        cap => Err(keys.invalid(key, &f64::from(cap).into(), "a number above 0")),
    }
}
