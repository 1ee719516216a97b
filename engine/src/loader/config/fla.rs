//! Models of flash-linear-attention: `retnet`, `gla`, `linear_attn`, `hgrn2`, `delta_net`, `gated_deltanet`. One linear mixer in every
//! layer, softmax attention in those that `attn` names, a gated MLP after each.

use super::parts::{finish, layers_in};
use super::qwen3_next::check_delta_rule;
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::loader::rope;
use crate::model::spec::{
    DeltaLayout, DeltaRuleSpec, FeatureMap, FeedForwardSpec, LayerSpec, LinearAttentionSpec, LinearDecay, MixerSpec,
    MlpSpec, ModelSpec, NormSpec,
};

/// GLA's low-rank decay, which its config cannot change.
const GATE_RANK: usize = 16;
const GATE_NORMALISER: f32 = 16.0;
const ROPE_THETA: f64 = 10_000.0;
/// HGRN2's norm is fused with the projection behind it, which ignores `norm_eps`.
const FUSED_NORM_EPS: f32 = 1e-5;

/// As `RetNetConfig` reads it.
pub fn retnet(keys: Keys) -> Result<ModelSpec, ConfigError> {
    refuse_feature_map(keys)?;
    // fla's model does not hand it on to its layers.
    require(keys, "use_short_conv", false)?;
    let hidden_size = keys.size("hidden_size", 2048)?;
    let sizes = Sizes::read(keys, hidden_size, 8, [1.0, 2.0])?;
    let mixer = MixerSpec::LinearAttention(LinearAttentionSpec {
        rope: Some(rope::plain(ROPE_THETA, sizes.key_dim)),
        decay: LinearDecay::Retention,
        gated: keys.flag("use_output_gate", true)?,
        ..sizes.spec(keys)?
    });
    if sizes.key_dim % 2 == 1 {
        return Err(ConfigError::Inconsistent(format!(
            "the heads have keys of {} dims (`hidden_size` · `expand_k` / `num_heads`), which must be even to be turned",
            sizes.key_dim
        )));
    }
    model(keys, "retnet", hidden_size, 24, 2, |_| mixer.clone())
}

/// As `GLAConfig` reads it.
pub fn gla(keys: Keys) -> Result<ModelSpec, ConfigError> {
    refuse_feature_map(keys)?;
    require(keys, "use_gk", true)?;
    require(keys, "use_gv", false)?;
    let hidden_size = keys.size("hidden_size", 2048)?;
    let sizes = Sizes::read(keys, hidden_size, 4, [0.5, 1.0])?;
    let floor = keys.get("clamp_min").map(|_| keys.factor("clamp_min", 0.0)).transpose()?;
    let mixer = MixerSpec::LinearAttention(LinearAttentionSpec {
        decay: LinearDecay::LowRank { rank: GATE_RANK, normaliser: GATE_NORMALISER, floor },
        conv_taps: convolution(keys)?,
        gated: keys.flag("use_output_gate", true)?,
        ..sizes.spec(keys)?
    });
    model(keys, "gla", hidden_size, 24, 4, |_| mixer.clone())
}

/// As `LinearAttentionConfig` reads it.
pub fn linear_attn(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require(keys, "tie_feature_map_qk", false)?;
    let hidden_size = keys.size("hidden_size", 2048)?;
    let sizes = Sizes::read(keys, hidden_size, 4, [1.0, 1.0])?;
    let feature_map = match keys.text("feature_map")? {
        None | Some("elementwise_product") => FeatureMap::Hadamard,
        Some("elu") => FeatureMap::EluPlusOne,
        Some("relu") => FeatureMap::Relu,
        Some("identity") => FeatureMap::Identity,
        Some(other) => {
            let expected = "\"elementwise_product\", \"elu\", \"relu\" or \"identity\"";
            return Err(keys.unsupported("feature_map", &other.into(), expected));
        }
    };
    let mixer = MixerSpec::LinearAttention(LinearAttentionSpec {
        feature_map,
        sum_to_one: [keys.flag("norm_q", false)?, keys.flag("norm_k", false)?],
        normalised: keys.flag("norm_feature_map", false)?,
        ..sizes.spec(keys)?
    });
    model(keys, "linear_attn", hidden_size, 24, 4, |_| mixer.clone())
}

/// As `HGRN2Config` reads it.
pub fn hgrn2(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require(keys, "use_short_conv", false)?;
    let hidden_size = keys.size("hidden_size", 2048)?;
    let heads = match (keys.raw("expand_ratio"), keys.optional_size("expand_ratio")?) {
        (Some(_), None) => keys.size("num_heads", 1)?,
        (_, ratio) => hidden_size / ratio.unwrap_or(128).min(hidden_size),
    };
    let key_dim = keys.size("expand_ratio", hidden_size / heads)?;
    if heads * key_dim != hidden_size {
        return Err(ConfigError::Inconsistent(format!(
            "`hidden_size` is {hidden_size}, which must be a multiple of `expand_ratio`, {key_dim}"
        )));
    }
    let layers = layer_count(keys, "num_hidden_layers", 24)?;
    let bounds = keys.flag("use_lower_bound", true)?.then_some(layers);
    let sizes = Sizes { heads, kv_heads: heads, key_dim, head_dim: hidden_size / heads };
    let plain = LinearAttentionSpec { norm_whole: true, norm_eps: FUSED_NORM_EPS, ..sizes.spec(keys)? };
    model(keys, "hgrn2", hidden_size, 24, 4, |layer| {
        let decay = LinearDecay::Bounded { layer, layers: bounds };
        MixerSpec::LinearAttention(LinearAttentionSpec { decay, ..plain.clone() })
    })
}

/// As `DeltaNetConfig` reads it.
pub fn delta_net(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require(keys, "use_short_conv", true)?;
    for (key, only) in [("qk_norm", "l2"), ("qk_activation", "silu")] {
        if let Some(other) = keys.text(key)?.filter(|&found| found != only) {
            return Err(keys.unsupported(key, &other.into(), &format!("\"{only}\"")));
        }
    }
    let hidden_size = keys.size("hidden_size", 2048)?;
    let sizes = Sizes::read(keys, hidden_size, 16, [1.0, 1.0])?;
    let mixer = MixerSpec::DeltaRule(DeltaRuleSpec {
        key_heads: sizes.heads,
        heads: sizes.heads,
        key_dim: sizes.key_dim,
        head_dim: sizes.head_dim,
        conv_taps: keys.size("conv_size", 4)?,
        norm_eps: keys.epsilon("norm_eps", 1e-6)?,
        layout: DeltaLayout::Separate,
        decays: false,
        learned_beta: keys.flag("use_beta", true)?,
        beta_scale: beta_scale(keys)?,
        gated: keys.flag("use_gate", false)?,
    });
    model(keys, "delta_net", hidden_size, 24, 4, |_| mixer.clone())
}

/// As `GatedDeltaNetConfig` reads it.
pub fn gated_deltanet(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require(keys, "use_short_conv", true)?;
    if let Some(other) = keys.text("output_gate_activation")?.filter(|found| !["swish", "silu"].contains(found)) {
        return Err(keys.unsupported("output_gate_activation", &other.into(), "\"swish\""));
    }
    let hidden_size = keys.size("hidden_size", 2048)?;
    let key_heads = keys.size("num_heads", 6)?;
    let key_dim = keys.size("head_dim", 256)?;
    let spec = DeltaRuleSpec {
        key_heads,
        heads: keys.size("num_v_heads", key_heads)?,
        key_dim,
        head_dim: scaled(keys, "expand_v", 2.0, key_dim, "head_dim")?,
        conv_taps: keys.size("conv_size", 4)?,
        norm_eps: keys.epsilon("norm_eps", 1e-6)?,
        layout: DeltaLayout::Separate,
        decays: true,
        learned_beta: true,
        beta_scale: beta_scale(keys)?,
        gated: keys.flag("use_gate", true)?,
    };
    check_delta_rule(&spec, hidden_size, ["num_heads", "num_v_heads"])?;
    model(keys, "gated_deltanet", hidden_size, 21, 4, |_| MixerSpec::DeltaRule(spec.clone()))
}

fn beta_scale(keys: Keys) -> Result<f32, ConfigError> {
    Ok(if keys.flag("allow_neg_eigval", false)? { 2.0 } else { 1.0 })
}

/// `conv_size` where there are convolutions.
fn convolution(keys: Keys) -> Result<Option<usize>, ConfigError> {
    let taps = keys.size("conv_size", 4)?;
    Ok(keys.flag("use_short_conv", false)?.then_some(taps))
}

/// A switch that can stand in one position only.
fn require(keys: Keys, key: &str, only: bool) -> Result<(), ConfigError> {
    match keys.flag(key, only)? {
        found if found == only => Ok(()),
        found => Err(keys.unsupported(key, &found.into(), &only.to_string())),
    }
}

fn refuse_feature_map(keys: Keys) -> Result<(), ConfigError> {
    match keys.get("feature_map") {
        None => Ok(()),
        Some(value) => Err(keys.unsupported("feature_map", value, "null")),
    }
}

/// The factor at `key` times `of`, which must come out whole.
fn scaled(keys: Keys, key: &str, default: f64, of: usize, name: &str) -> Result<usize, ConfigError> {
    let factor = keys.number(key, default)?;
    let product = of as f64 * factor;
    if product >= 1.0 && product <= crate::loader::keys::MAX_SIZE as f64 && (product - product.round()).abs() < 1e-6 {
        return Ok(product.round() as usize);
    }
    Err(ConfigError::Inconsistent(format!("`{name}` · `{key}` is {product}, which must be a whole number above 0")))
}

/// Heads and their widths.
pub struct Sizes {
    pub heads: usize,
    kv_heads: usize,
    pub key_dim: usize,
    pub head_dim: usize,
}

impl Sizes {
    /// `expand`: the defaults of `expand_k` and `expand_v`.
    pub fn read(keys: Keys, hidden_size: usize, heads: usize, expand: [f64; 2]) -> Result<Self, ConfigError> {
        let heads = keys.size("num_heads", heads)?;
        let kv_heads = keys.size("num_kv_heads", heads)?;
        let width = |key: &str, default: f64| -> Result<usize, ConfigError> {
            let all = scaled(keys, key, default, hidden_size, "hidden_size")?;
            if all.is_multiple_of(heads) && heads.is_multiple_of(kv_heads) {
                return Ok(all / heads);
            }
            Err(ConfigError::Inconsistent(format!(
                "`num_heads` is {heads}, which must divide `hidden_size` · `{key}`, {all}, and be a multiple of `num_kv_heads`, {kv_heads}"
            )))
        };
        let [key_dim, head_dim] = [width("expand_k", expand[0])?, width("expand_v", expand[1])?];
        Ok(Self { heads, kv_heads, key_dim, head_dim })
    }

    /// Linear attention that does nothing special, in these sizes.
    fn spec(&self, keys: Keys) -> Result<LinearAttentionSpec, ConfigError> {
        elements("a state", &[self.heads, self.head_dim, self.key_dim])?;
        Ok(LinearAttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            key_dim: self.key_dim,
            head_dim: self.head_dim,
            decay: LinearDecay::None,
            feature_map: FeatureMap::Identity,
            sum_to_one: [false; 2],
            normalised: false,
            rope: None,
            conv_taps: None,
            gated: false,
            norm_whole: false,
            norm_eps: keys.epsilon("norm_eps", 1e-6)?,
        })
    }
}

/// What is around the mixers. `mixer` makes that of a layer.
fn model(
    keys: Keys,
    model_type: &str,
    hidden_size: usize,
    layers: usize,
    hidden_ratio: usize,
    mixer: impl Fn(usize) -> MixerSpec,
) -> Result<ModelSpec, ConfigError> {
    if let Some(other) = keys.text("hidden_act")?.filter(|found| !["swish", "silu"].contains(found)) {
        return Err(keys.unsupported("hidden_act", &other.into(), "\"swish\""));
    }
    require(keys, "elementwise_affine", true)?;
    require(keys, "use_output_norm", true)?;
    if let Some(value) = keys.get("attnres_block_size") {
        return Err(keys.unsupported("attnres_block_size", value, "null"));
    }
    let layers = layer_count(keys, "num_hidden_layers", layers)?;
    let (attention, attends) = match keys.object("attn", "attn.")? {
        None => (None, vec![false; layers]),
        Some(attn) => {
            let window = attn.optional_size("window_size")?;
            let attends = layers_in(attn, "layers", layers)?.unwrap_or_else(|| vec![false; layers]);
            (Some(super::samba::attention(attn, hidden_size, window)?), attends)
        }
    };
    let width = match keys.optional_size("intermediate_size")? {
        Some(width) => width,
        None => (hidden_size * keys.size("hidden_ratio", hidden_ratio)? * 2 / 3).next_multiple_of(256),
    };
    elements("the MLP", &[hidden_size, width])?;
    let layer = |index: usize| {
        let mixer = match &attention {
            Some(attention) if attends[index] => MixerSpec::Attention(attention.clone()),
            _ => mixer(index),
        };
        LayerSpec::new(mixer, Some(FeedForwardSpec::Mlp(MlpSpec::swiglu(width, false))))
    };
    let norm = NormSpec::rms(keys.epsilon("norm_eps", 1e-6)?);
    let layers = (0..layers).map(layer).collect();
    let vocab_size = keys.size("vocab_size", 32_000)?;
    finish(ModelSpec::new(model_type, vocab_size, hidden_size, norm, layers), keys, false, Some(2))
}
