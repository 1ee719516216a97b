//! Where each model type keeps its tensors: the name map as data, so that a new family is a mixer file and a table here.

use super::error::{ConfigError, LoadError};
use crate::model::spec::MixerSpec;

/// Tensor names of one model type. Prefixes have no dot at the end; the tensors inside a mixer are its own business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Token embedding, `[V, d]`.
    pub embeddings: &'static str,
    /// Scale of the final norm, `[d]`.
    pub final_norm: &'static str,
    /// Output head, `[V, d]`; may be missing where it is tied to the embedding.
    pub head: &'static str,
    /// Prefix of all layers; layer i is `{layers}.{i}`.
    pub layers: &'static str,
    /// Within a layer: scale of the norm before the mixer, `[d]`.
    pub mixer_norm: &'static str,
    /// Within a layer: scale of the norm before the MLP, `[d]`.
    pub mlp_norm: &'static str,
    /// Within a layer: prefix of a state-space mixer.
    pub mamba: &'static str,
    /// Within a layer: prefix of an attention mixer.
    pub attention: &'static str,
    /// Within a layer: prefix of the gated MLP (`gate_proj`, `up_proj`, `down_proj`).
    pub mlp: &'static str,
}

impl Names {
    /// Prefix of layer `i`, such as `backbone.layers.3`.
    pub fn layer(&self, i: usize) -> String {
        format!("{}.{i}", self.layers)
    }

    /// Within a layer: prefix of this kind of mixer, such as `self_attn`.
    pub fn mixer(&self, spec: &MixerSpec) -> &'static str {
        match spec {
            MixerSpec::Mamba1(_) | MixerSpec::Mamba2(_) => self.mamba,
            MixerSpec::Attention(_) => self.attention,
        }
    }

    /// The map of a model type.
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`] for one that the loader does not accept.
    pub fn of(model_type: &str) -> Result<&'static Names, LoadError> {
        match model_type {
            "mamba" | "mamba2" => Ok(&BACKBONE),
            "llama" => Ok(&LLAMA),
            "bamba" => Ok(&BAMBA),
            other => {
                let problem = ConfigError::UnknownModelType { found: other.to_owned() };
                Err(LoadError::Config { file: "config.json".to_owned(), problem })
            }
        }
    }
}

/// `mamba`, `mamba2` and the original state-spaces files (their `embedding` is read under its newer name).
const BACKBONE: Names = Names {
    embeddings: "backbone.embeddings.weight",
    final_norm: "backbone.norm_f.weight",
    head: "lm_head.weight",
    layers: "backbone.layers",
    mixer_norm: "norm.weight",
    mlp_norm: "norm2.weight",
    mamba: "mixer",
    attention: "mixer",
    mlp: "mlp",
};

const LLAMA: Names = Names {
    embeddings: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    layers: "model.layers",
    mixer_norm: "input_layernorm.weight",
    mlp_norm: "post_attention_layernorm.weight",
    mamba: "mamba",
    attention: "self_attn",
    mlp: "mlp",
};

const BAMBA: Names = Names {
    final_norm: "model.final_layernorm.weight",
    mlp_norm: "pre_ff_layernorm.weight",
    mlp: "feed_forward",
    ..LLAMA
};

/// Other spellings of the same tensor: original state-spaces files and Codestral's consolidated file.
pub fn canonical(stored: &str) -> String {
    let name = match stored.strip_prefix("model.") {
        Some(rest) if rest.starts_with("backbone.") || rest.starts_with("lm_head.") => rest,
        _ => stored,
    };
    match name.strip_prefix("backbone.embedding.") {
        Some(rest) => format!("backbone.embeddings.{rest}"),
        None => name.to_owned(),
    }
}

/// Whether a tensor is a buffer that old files carry along and no model reads.
pub fn is_known_buffer(name: &str) -> bool {
    ["rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_type_has_names() {
        for model_type in super::super::config::SUPPORTED_MODEL_TYPES {
            assert!(Names::of(model_type).is_ok(), "{model_type}");
        }
        assert_eq!(Names::of("bamba").unwrap().layer(3), "model.layers.3");
    }

    #[test]
    fn aliases() {
        assert_eq!(canonical("model.backbone.embedding.weight"), "backbone.embeddings.weight");
        assert_eq!(canonical("backbone.embedding.weight"), "backbone.embeddings.weight");
        assert_eq!(canonical("model.lm_head.weight"), "lm_head.weight");
        assert_eq!(canonical("model.embed_tokens.weight"), "model.embed_tokens.weight");
    }
}
