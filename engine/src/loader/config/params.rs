//! params.json of Codestral Mamba's consolidated weights: few keys, the rest is read off the tensors.

use super::parts::check_mamba2;
use super::{end_tokens, layer_count, trained_context};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{GateNorm, LayerSpec, Mamba2Spec, MixerSpec, ModelSpec, NormSpec};

/// mamba_ssm builds all its norms with this.
const NORM_EPS: f32 = 1e-5;

/// A Mamba-2 as Mistral stores it. `shape` tells the shapes of tensors.
pub fn params(keys: Keys, shape: impl Fn(&str) -> Option<Vec<usize>>) -> Result<ModelSpec, ConfigError> {
    let groups = keys.optional_size("n_groups")?;
    let first = |name: &str| shape(&format!("backbone.layers.0.mixer.{name}")).filter(|shape| !shape.is_empty());
    let (Some(groups), Some(heads), Some(inner), Some(conv)) =
        (groups, first("D"), first("norm.weight"), first("conv1d.weight"))
    else {
        return Err(ConfigError::NoModelType);
    };
    let hidden_size = keys.size("dim", 4096)?;
    let (heads, inner) = (heads[0].max(1), inner[0]);
    let spec = Mamba2Spec {
        heads,
        head_dim: inner / heads,
        state_dim: conv[0].saturating_sub(inner) / (2 * groups),
        groups,
        conv_taps: conv.last().copied().unwrap_or(4),
        proj_bias: first("in_proj.bias").is_some(),
        out_bias: first("out_proj.bias").is_some(),
        conv_bias: first("conv1d.bias").is_some(),
        delta_limit: (0.0, f32::INFINITY),
        norm: GateNorm::GateFirst,
        norm_eps: NORM_EPS,
        multipliers: [1.0; 5],
    };
    check_mamba2(&spec, hidden_size, inner, ["heads", "head_dim", "n_groups", "d_state"])?;
    let multiple = keys.size("pad_vocab_size_multiple", 1)?;
    let vocab_size = keys.size("vocab_size", 32_768)?.next_multiple_of(multiple);
    let layers = vec![LayerSpec::new(MixerSpec::Mamba2(spec), None); layer_count(keys, "n_layers", 64)?];
    Ok(ModelSpec {
        tied_embeddings: keys.flag("tie_embeddings", false)?,
        trained_context: trained_context(keys)?,
        end_tokens: end_tokens(keys, Some(2))?,
        ..ModelSpec::new("mamba2", vocab_size, hidden_size, NormSpec::rms(NORM_EPS), layers)
    })
}
