//! `s4`, `s4d`, `h3` and `hyena`: the ancestors of the selective state spaces, in a layout of our own (`assets/layouts.md`). The same mixer
//! in every layer, an MLP after each, layer norms.

use super::parts::finish;
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    Discretisation, FeedForwardSpec, H3Spec, HyenaSpec, LayerSpec, MixerSpec, MlpLayout, MlpSpec, ModelSpec, NormKind,
    NormSpec, S4Spec, SlstmSpec,
};
use statescope_kernels::activation::Activation;

/// Taps of a Hyena's filter: they are all made when a model is opened, and no tensor says how many.
const MAX_FILTER: usize = 1 << 20;

/// Diagonal plus low rank.
pub fn s4(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let system = system(keys, true, hidden_size(keys)?)?;
    model(keys, "s4", MixerSpec::S4(system))
}

/// Diagonal.
pub fn s4d(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let system = system(keys, false, hidden_size(keys)?)?;
    model(keys, "s4d", MixerSpec::S4(system))
}

pub fn h3(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let (hidden_size, head_dim) = (hidden_size(keys)?, keys.size("head_dim", 1)?);
    if !hidden_size.is_multiple_of(head_dim) {
        return Err(ConfigError::Inconsistent(format!(
            "`hidden_size` is {hidden_size}, which must be a multiple of `head_dim`, {head_dim}"
        )));
    }
    let system = system(keys, false, hidden_size / head_dim)?;
    elements("a state", &[hidden_size, head_dim, system.state_dim])?;
    let spec = H3Spec { system, head_dim, shift_dim: keys.size("shift_size", 64)? };
    elements("the shift", &[hidden_size, spec.shift_dim])?;
    model(keys, "h3", MixerSpec::H3(spec))
}

pub fn hyena(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let order = keys.size("order", 2)?;
    if order < 2 {
        return Err(keys.invalid("order", &order.into(), "2 or more: gates, with a filter between any two"));
    }
    let spec = HyenaSpec {
        channels: hidden_size(keys)?,
        order,
        length: keys.size("filter_length", 1024)?,
        short_taps: keys.size("short_filter_length", 3)?,
        features: keys.size("filter_features", 3)?,
        width: keys.size("filter_width", 64)?,
        inner_layers: keys.size("filter_inner_layers", 2)?,
        shift: keys.factor("filter_shift", 0.0)?,
    };
    if spec.features.is_multiple_of(2) || spec.features < 3 {
        let found = &spec.features.into();
        return Err(keys.invalid(
            "filter_features",
            found,
            "an odd number from 3: a position, and sines and cosines of it",
        ));
    }
    if spec.length > MAX_FILTER {
        return Err(keys.invalid("filter_length", &spec.length.into(), &format!("at most {MAX_FILTER}")));
    }
    let all = elements("the filters of a distance", &[spec.channels, order + 1])?;
    elements("the projections", &[spec.channels, all])?;
    elements("the filters", &[spec.length, all.max(spec.width).max(spec.features)])?;
    elements("the network of the filters", &[spec.width, spec.width.max(all), spec.inner_layers])?;
    let length = spec.length;
    let model = model(keys, "hyena", MixerSpec::Hyena(spec))?;
    Ok(ModelSpec { trained_context: Some(model.trained_context.unwrap_or(length)), ..model })
}

fn hidden_size(keys: Keys) -> Result<usize, ConfigError> {
    keys.size("hidden_size", 256)
}

fn system(keys: Keys, low_rank: bool, channels: usize) -> Result<S4Spec, ConfigError> {
    let key = "discretization";
    let discretisation = match (keys.text(key)?, low_rank) {
        (Some("zoh"), false) | (None, false) => Discretisation::ZeroOrderHold,
        (Some("bilinear"), _) | (None, true) => Discretisation::Bilinear,
        (Some(other), true) => return Err(keys.unsupported(key, &other.into(), "\"bilinear\"")),
        (Some(other), false) => return Err(keys.unsupported(key, &other.into(), "\"zoh\" or \"bilinear\"")),
    };
    let spec = S4Spec { channels, state_dim: keys.size("state_size", 64)?, discretisation, low_rank };
    if !spec.state_dim.is_multiple_of(2) {
        return Err(keys.invalid(
            "state_size",
            &spec.state_dim.into(),
            "an even number: half of the states are the conjugates",
        ));
    }
    elements("a state", &[spec.channels, spec.state_dim])?;
    Ok(spec)
}

fn model(keys: Keys, model_type: &str, mixer: MixerSpec) -> Result<ModelSpec, ConfigError> {
    let hidden_size = hidden_size(keys)?;
    elements("the projections", &[hidden_size, 3 * hidden_size])?;
    let mlp = MlpSpec {
        activation: Activation::Gelu,
        layout: MlpLayout::Plain,
        ..MlpSpec::swiglu(keys.size("intermediate_size", 4 * hidden_size)?, true)
    };
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    let layer = LayerSpec::new(mixer, Some(FeedForwardSpec::Mlp(mlp)));
    let layers = vec![layer; layer_count(keys, "num_hidden_layers", 6)?];
    let norm = NormSpec { kind: NormKind::Layer, eps: keys.epsilon("layer_norm_epsilon", 1e-5)? };
    let vocab_size = keys.size("vocab_size", 50_280)?;
    finish(ModelSpec::new(model_type, vocab_size, hidden_size, norm, layers), keys, true, None)
}

/// A scalar LSTM and a gated MLP in every layer.
pub fn slstm(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let channels = hidden_size(keys)?;
    let norm_eps = keys.epsilon("layer_norm_epsilon", 1e-5)?;
    let spec =
        SlstmSpec { channels, heads: keys.size("num_heads", 4)?, conv_taps: keys.size("conv_kernel", 4)?, norm_eps };
    if !channels.is_multiple_of(spec.heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`hidden_size` is {channels}, which must be a multiple of `num_heads`, {}",
            spec.heads
        )));
    }
    elements("the recurrent matrix", &[4 * channels, channels / spec.heads])?;
    let model = model(keys, "slstm", MixerSpec::Slstm(spec))?;
    let layer = |layer: LayerSpec| match layer.feed_forward {
        Some(FeedForwardSpec::Mlp(mlp)) => {
            let gated = MlpSpec { layout: MlpLayout::Gated, bias: false, ..mlp };
            LayerSpec { feed_forward: Some(FeedForwardSpec::Mlp(gated)), ..layer }
        }
        _ => layer,
    };
    Ok(ModelSpec { layers: model.layers.into_iter().map(layer).collect(), ..model })
}
