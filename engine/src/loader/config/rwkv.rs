//! `rwkv` (RWKV-4), `rwkv5`, `rwkv6` (as their authors or flash-linear-attention store it) and `rwkv7` (as the latter does): time mixing and channel mixing in every layer, the embedding
//! normed.

use super::fla::Sizes;
use super::parts::finish;
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    ChannelMixLayout, ChannelMixSpec, FeedForwardSpec, LayerSpec, MixerSpec, ModelSpec, NormKind, NormSpec, Rwkv4Spec,
    Rwkv5Spec, Rwkv6Layout, Rwkv6Spec, Rwkv7Spec,
};

/// As `RwkvConfig` reads it. `rescale_every` halves the residual stream and all that is added to it, against overflow in f16: nothing
/// changes but the size of the norms' ε, and the stream here keeps its size.
pub fn rwkv(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 4096)?;
    let channels = keys.size("attention_hidden_size", hidden_size)?;
    let inner = keys.size("intermediate_size", 4 * hidden_size)?;
    elements("the channel mixing", &[hidden_size, inner])?;
    elements("the time mixing", &[hidden_size, channels])?;
    let layer =
        LayerSpec::new(MixerSpec::Rwkv4(Rwkv4Spec { channels }), Some(channel_mix(inner, ChannelMixLayout::Rwkv4)));
    let layers = vec![layer; layer_count(keys, "num_hidden_layers", 32)?];
    let norm = NormSpec { kind: NormKind::Layer, eps: keys.epsilon("layer_norm_epsilon", 1e-5)? };
    let spec = ModelSpec {
        embedding_norm: true,
        ..ModelSpec::new("rwkv", keys.size("vocab_size", 50_277)?, hidden_size, norm, layers)
    };
    let spec = finish(spec, keys, false, Some(0))?;
    Ok(ModelSpec { trained_context: Some(keys.size("context_length", 1024)?), ..spec })
}

/// What the configs of the official files of RWKV-5 and -6 have in common. `rescale_every`: as in [`rwkv`].
struct Official {
    hidden_size: usize,
    head_dim: usize,
    /// Of the norm inside each head.
    norm_eps: f32,
}

impl Official {
    fn read(keys: Keys) -> Result<Self, ConfigError> {
        let hidden_size = keys.size("hidden_size", 768)?;
        let head_dim = keys.size("head_size", 64)?;
        if !hidden_size.is_multiple_of(head_dim) || keys.size("attention_hidden_size", hidden_size)? != hidden_size {
            return Err(ConfigError::Inconsistent(format!(
                "`hidden_size` is {hidden_size}, which must be a multiple of `head_size`, {head_dim}, and `attention_hidden_size` the same"
            )));
        }
        elements("a state", &[hidden_size, head_dim])?;
        // What is read is divided by it before the norm.
        let divisor = keys.factor("head_size_divisor", 8.0)?;
        Ok(Self { hidden_size, head_dim, norm_eps: 1e-5 * divisor * divisor })
    }

    fn model(
        self,
        keys: Keys,
        name: &str,
        mixer: MixerSpec,
        layout: ChannelMixLayout,
    ) -> Result<ModelSpec, ConfigError> {
        let hidden_size = self.hidden_size;
        let inner = keys.size("intermediate_size", (hidden_size * 7 / 2 / 32 * 32).max(1))?;
        elements("the channel mixing", &[hidden_size, inner])?;
        let layer = LayerSpec::new(mixer, Some(channel_mix(inner, layout)));
        let layers = vec![layer; layer_count(keys, "num_hidden_layers", 24)?];
        let norm = NormSpec { kind: NormKind::Layer, eps: keys.epsilon("layer_norm_epsilon", 1e-5)? };
        let vocab_size = keys.size("vocab_size", 65_536)?;
        let model = ModelSpec { embedding_norm: true, ..ModelSpec::new(name, vocab_size, hidden_size, norm, layers) };
        finish(model, keys, false, Some(0))
    }
}

/// As the `Rwkv5Config` of the official files reads it; version 5.2.
pub fn rwkv5(keys: Keys) -> Result<ModelSpec, ConfigError> {
    if let Some(version) = keys.text("model_version")?.filter(|version| !["5_2", "5.2"].contains(version)) {
        return Err(keys.unsupported("model_version", &version.into(), "\"5_2\""));
    }
    let official = Official::read(keys)?;
    let Official { hidden_size, head_dim, norm_eps } = official;
    let spec = Rwkv5Spec { heads: hidden_size / head_dim, head_dim, norm_eps };
    official.model(keys, "rwkv5", MixerSpec::Rwkv5(spec), ChannelMixLayout::Rwkv4)
}

/// As the `Rwkv6Config` of the official files reads it.
fn official_rwkv6(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let official = Official::read(keys)?;
    let Official { hidden_size, head_dim, norm_eps } = official;
    let wide = hidden_size == 4096;
    let spec = Rwkv6Spec {
        heads: hidden_size / head_dim,
        key_dim: head_dim,
        head_dim,
        // Which no key says.
        mix_rank: if wide { 64 } else { 32 },
        decay_rank: if wide { 128 } else { 64 },
        norm_eps,
        layout: Rwkv6Layout::Official,
    };
    official.model(keys, "rwkv6_official", MixerSpec::Rwkv6(spec), ChannelMixLayout::Rwkv6Official)
}

/// As fla's `RWKV6Config` reads it, or the official files' with their `head_size`.
pub fn rwkv6(keys: Keys) -> Result<ModelSpec, ConfigError> {
    if keys.get("head_size").is_some() {
        return official_rwkv6(keys);
    }
    refuse_variants(keys)?;
    let hidden_size = keys.size("hidden_size", 2048)?;
    let sizes = Sizes::read(keys, hidden_size, 4, [0.5, 1.0])?;
    let eps = keys.epsilon("norm_eps", 1e-5)?;
    let spec = Rwkv6Spec {
        heads: sizes.heads,
        key_dim: sizes.key_dim,
        head_dim: sizes.head_dim,
        mix_rank: keys.size("proj_low_rank_dim", 32)?,
        decay_rank: keys.size("gate_low_rank_dim", 64)?,
        norm_eps: eps,
        layout: Rwkv6Layout::Fla,
    };
    if let Some(value) = keys.get("num_kv_heads") {
        return Err(keys.unsupported("num_kv_heads", value, "no such key"));
    }
    elements("a low-rank map", &[hidden_size, 5 * spec.mix_rank.max(spec.decay_rank)])?;
    elements("a state", &[spec.heads, spec.head_dim, spec.key_dim])?;
    let inner = match keys.optional_size("intermediate_size")? {
        Some(inner) => inner,
        None => {
            let inner = hidden_size as f64 * keys.number("hidden_ratio", 3.5)?;
            if !(1.0..=crate::loader::keys::MAX_SIZE as f64).contains(&inner) {
                return Err(ConfigError::Inconsistent(format!("`hidden_ratio` makes the channel mixing {inner} wide")));
            }
            (inner as usize).next_multiple_of(32)
        }
    };
    elements("the channel mixing", &[hidden_size, inner])?;
    let layer = LayerSpec::new(MixerSpec::Rwkv6(spec), Some(channel_mix(inner, ChannelMixLayout::Rwkv6)));
    let layers = vec![layer; layer_count(keys, "num_hidden_layers", 24)?];
    let model = ModelSpec {
        embedding_norm: keys.flag("norm_first", true)?,
        ..ModelSpec::new(
            "rwkv6",
            keys.size("vocab_size", 32_000)?,
            hidden_size,
            NormSpec { kind: NormKind::Layer, eps },
            layers,
        )
    };
    finish(model, keys, false, Some(2))
}

/// What fla's RWKV configs could say and is not implemented.
fn refuse_variants(keys: Keys) -> Result<(), ConfigError> {
    if !keys.flag("norm_bias", true)? {
        return Err(keys.unsupported("norm_bias", &false.into(), "true"));
    }
    if let Some(value) = keys.get("attn") {
        return Err(keys.unsupported("attn", value, "null"));
    }
    match keys.text("hidden_act")?.filter(|&found| found != "sqrelu") {
        None => Ok(()),
        Some(other) => Err(keys.unsupported("hidden_act", &other.into(), "\"sqrelu\"")),
    }
}

/// As fla's `RWKV7Config` reads it.
pub fn rwkv7(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 2048)?;
    refuse_variants(keys)?;
    // A list of the layers' widths, all that of the model.
    if let Some(value) = keys.get("value_dim") {
        let same = |value: &serde_json::Value| value.as_u64() == Some(hidden_size as u64);
        if !value.as_array().map_or_else(|| same(value), |list| list.iter().all(same)) {
            return Err(keys.unsupported("value_dim", value, "`hidden_size` in every layer"));
        }
    }
    let head_dim = match (keys.raw("head_dim"), keys.optional_size("head_dim")?) {
        (Some(_), None) => hidden_size / keys.size("num_heads", 1)?,
        (_, dim) => dim.unwrap_or(64),
    };
    if head_dim == 0 || !hidden_size.is_multiple_of(head_dim) {
        return Err(ConfigError::Inconsistent(format!(
            "`hidden_size` is {hidden_size}, which must be a multiple of `head_dim`, {head_dim}"
        )));
    }
    let rank = |name: &str, default| keys.size(&format!("{name}_low_rank_dim"), default);
    let eps = keys.epsilon("norm_eps", 1e-5)?;
    let spec = Rwkv7Spec {
        heads: hidden_size / head_dim,
        head_dim,
        ranks: [rank("decay", 64)?, rank("a", 64)?, rank("v", 16)?, rank("gate", 128)?],
        first: false,
        norm_eps: head_dim as f32 * eps,
        // The fused kernel adds it inside the root, PyTorch bounds the root at 1e-12.
        l2_eps: if keys.flag("fuse_norm", true)? { 1e-6 } else { 1e-24 },
    };
    for rank in spec.ranks {
        elements("a low-rank map", &[hidden_size, rank])?;
    }
    elements("a state", &[hidden_size, head_dim])?;
    let inner = match keys.optional_size("intermediate_size")? {
        Some(inner) => inner,
        None => (hidden_size * keys.size("hidden_ratio", 4)?).next_multiple_of(32),
    };
    elements("the channel mixing", &[hidden_size, inner])?;
    let layer = |index: usize| {
        let mixer = MixerSpec::Rwkv7(Rwkv7Spec { first: index == 0, ..spec.clone() });
        LayerSpec::new(mixer, Some(channel_mix(inner, ChannelMixLayout::Rwkv7)))
    };
    let layers = (0..layer_count(keys, "num_hidden_layers", 24)?).map(layer).collect();
    let norm = NormSpec { kind: NormKind::Layer, eps };
    let model = ModelSpec {
        embedding_norm: keys.flag("norm_first", true)?,
        ..ModelSpec::new("rwkv7", keys.size("vocab_size", 32_000)?, hidden_size, norm, layers)
    };
    finish(model, keys, false, Some(2))
}

fn channel_mix(inner: usize, layout: ChannelMixLayout) -> FeedForwardSpec {
    FeedForwardSpec::ChannelMix(ChannelMixSpec { inner, layout, output_scale: 1.0 })
}
