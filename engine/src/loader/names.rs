//! Where each model type keeps its tensors: the name map as data, so that a new family is a mixer file and a table here.

use super::error::{ConfigError, LoadError};
use crate::model::spec::MixerSpec;

/// Tensor names of one model type. Prefixes have no dot at the end. Norms are prefixes too: of `weight`, and of a layer norm's `bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Token embedding, `[V, d]`.
    pub embeddings: &'static str,
    /// Meta tokens, `[count, d]`.
    pub meta: &'static str,
    /// Learned positions, `[P, d]`.
    pub positions: &'static str,
    /// Norm of the embedding, `[d]`.
    pub embedding_norm: &'static str,
    /// Final norm, `[d]`.
    pub final_norm: &'static str,
    /// Output head, `[V, d]`; may be missing where it is tied to the embedding.
    pub head: &'static str,
    /// Prefix of all layers; layer i is `{layers}.{i}`. All that follows is within a layer.
    pub layers: &'static str,
    /// The norm before the mixer, `[d]`.
    pub mixer_norm: &'static str,
    /// The norm before the MLP, `[d]`.
    pub mlp_norm: &'static str,
    /// A state-space mixer.
    pub mamba: &'static str,
    /// Attention; within a shared block too.
    pub attention: &'static str,
    /// Linear attention, a recurrence of RWKV, Griffin or xLSTM, an ancestor.
    pub recurrence: &'static str,
    /// A gated delta rule.
    pub delta_rule: &'static str,
    /// A short convolution.
    pub short_conv: &'static str,
    /// The MLP; within a shared block too.
    pub mlp: &'static str,
    /// Router and experts.
    pub moe: &'static str,
    /// The expert that every token goes to.
    pub shared_expert: &'static str,
    /// The shared transformer block, in the layer that stores it.
    pub shared: &'static str,
    /// The layer's own mixer and norm where a shared block stands before them.
    pub beside_shared: &'static str,
    /// First parts of names inside mixers and MLPs that this family spells differently: (ours, stored).
    pub renames: &'static [(&'static str, &'static str)],
    /// Whether the matrices of a layer are stored `[in, out]`.
    pub transposed: bool,
    /// Whether what stands for `A_log` is A = −exp(A_log) already.
    pub holds_rates: bool,
}

impl Names {
    /// Prefix of layer `i`, such as `backbone.layers.3`.
    pub fn layer(&self, i: usize) -> String {
        format!("{}.{i}", self.layers)
    }

    /// Within a layer: prefix of this kind of mixer, such as `self_attn`.
    pub fn mixer(&self, spec: &MixerSpec) -> &'static str {
        match spec {
            MixerSpec::Mamba1(_) | MixerSpec::Mamba2(_) | MixerSpec::Mamba3(_) => self.mamba,
            MixerSpec::Attention(_) => self.attention,
            MixerSpec::DeltaRule(_) => self.delta_rule,
            MixerSpec::ShortConv(_) => self.short_conv,
            MixerSpec::LinearAttention(_)
            | MixerSpec::Rwkv4(_)
            | MixerSpec::Rwkv5(_)
            | MixerSpec::Rwkv6(_)
            | MixerSpec::Rwkv7(_)
            | MixerSpec::RgLru(_)
            | MixerSpec::Mlstm(_)
            | MixerSpec::Slstm(_)
            | MixerSpec::S4(_)
            | MixerSpec::H3(_)
            | MixerSpec::Hyena(_) => self.recurrence,
        }
    }

    /// This family's spelling of a name inside a layer.
    pub fn stored(&self, name: &str) -> String {
        let spelled = self.renames.iter().find_map(|(ours, stored)| {
            let rest = name.strip_prefix(ours)?;
            (rest.is_empty() || rest.starts_with('.')).then(|| format!("{stored}{rest}"))
        });
        spelled.unwrap_or_else(|| name.to_owned())
    }

    /// The map of a model type.
    ///
    /// # Errors
    /// [`ConfigError::UnknownModelType`] for one that the loader does not accept.
    pub fn of(model_type: &str) -> Result<&'static Names, LoadError> {
        match model_type {
            "mamba" | "mamba2" | "mamba3" | "falcon_mamba" => Ok(&BACKBONE),
            "llama" | "mistral" | "qwen2" | "qwen3" => Ok(&LLAMA),
            "bamba" | "falcon_h1" => Ok(&BAMBA),
            "jamba" => Ok(&JAMBA),
            "hymba" => Ok(&HYMBA),
            "zamba" => Ok(&ZAMBA),
            "zamba2" => Ok(&ZAMBA2),
            "granitemoehybrid" => Ok(&GRANITE),
            "nemotron_h" => Ok(&NEMOTRON),
            "qwen3_next" => Ok(&QWEN3_NEXT),
            "lfm2" => Ok(&LFM2),
            "samba" => Ok(&SAMBA),
            "retnet" | "gla" | "linear_attn" | "hgrn2" | "delta_net" | "gated_deltanet" => Ok(&FLA),
            "rwkv" | "rwkv5" => Ok(&RWKV),
            "rwkv6" | "rwkv7" => Ok(&RWKV7),
            "rwkv6_official" => Ok(&RWKV6),
            "recurrent_gemma" => Ok(&RECURRENT_GEMMA),
            "xlstm" => Ok(&XLSTM),
            "s4" | "s4d" | "h3" | "hyena" => Ok(&ANCESTORS),
            "slstm" => Ok(&SLSTM),
            "gpt_neox" => Ok(&GPT_NEOX),
            "gpt2" => Ok(&GPT2),
            other => {
                let problem = ConfigError::UnknownModelType { found: other.to_owned() };
                Err(LoadError::Config { file: "config.json".to_owned(), problem })
            }
        }
    }
}

pub const LLAMA: Names = Names {
    embeddings: "model.embed_tokens.weight",
    meta: "",
    positions: "",
    embedding_norm: "",
    final_norm: "model.norm",
    head: "lm_head.weight",
    layers: "model.layers",
    mixer_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    mamba: "mamba",
    attention: "self_attn",
    recurrence: "",
    delta_rule: "linear_attn",
    short_conv: "conv",
    mlp: "mlp",
    moe: "mlp",
    shared_expert: "mlp.shared_expert",
    shared: "",
    beside_shared: "",
    renames: &[],
    transposed: false,
    holds_rates: false,
};

/// `mamba`, `mamba2`, `falcon_mamba` and the original state-spaces files (their `embedding` is read under its newer name).
const BACKBONE: Names = Names {
    embeddings: "backbone.embeddings.weight",
    final_norm: "backbone.norm_f",
    layers: "backbone.layers",
    mixer_norm: "norm",
    mlp_norm: "norm2",
    mamba: "mixer",
    attention: "mixer",
    ..LLAMA
};

const BAMBA: Names =
    Names { final_norm: "model.final_layernorm", mlp_norm: "pre_ff_layernorm", mlp: "feed_forward", ..LLAMA };

const JAMBA: Names = Names { moe: "feed_forward", ..BAMBA };

/// Both mixers of a layer read one `in_proj` and one `out_proj`.
const HYMBA: Names = Names {
    meta: "model.memory_tokens",
    final_norm: "model.final_layernorm",
    mlp_norm: "pre_moe_layernorm",
    attention: "mamba",
    mlp: "moe.experts.0",
    renames: &[
        ("o_proj", "out_proj"),
        ("x_proj", "x_proj.0"),
        ("dt_proj", "dt_proj.0"),
        ("A_log", "A_log.0"),
        ("D", "D.0"),
        ("b_layernorm", "B_layernorm"),
        ("c_layernorm", "C_layernorm"),
        ("attention_norm", "pre_avg_layernorm1"),
        ("mamba_norm", "pre_avg_layernorm2"),
    ],
    ..LLAMA
};

const ZAMBA: Names = Names { shared: "shared_transf", beside_shared: "mamba_decoder", ..BAMBA };

const ZAMBA2: Names = Names { shared: "shared_transformer", ..ZAMBA };

const GRANITE: Names = Names {
    mlp: "shared_mlp",
    moe: "block_sparse_moe",
    shared_expert: "shared_mlp",
    renames: &[("gate_up_proj", "input_linear"), ("down_proj", "output_linear"), ("router", "router.layer")],
    ..LLAMA
};

/// Every layer has one norm and one `mixer`, be it an MLP.
const NEMOTRON: Names = Names {
    mlp_norm: "norm",
    mlp: "mixer",
    moe: "mixer",
    shared_expert: "mixer.shared_experts",
    renames: &[("router", "gate")],
    ..BACKBONE
};

const QWEN3_NEXT: Names = Names { renames: &[("router", "gate")], ..LLAMA };

const LFM2: Names = Names {
    final_norm: "model.embedding_norm",
    mixer_norm: "operator_norm",
    mlp_norm: "ffn_norm",
    mlp: "feed_forward",
    renames: &[
        ("gate_proj", "w1"),
        ("up_proj", "w3"),
        ("down_proj", "w2"),
        ("o_proj", "out_proj"),
        ("q_norm", "q_layernorm"),
        ("k_norm", "k_layernorm"),
        ("conv1d", "conv"),
    ],
    ..LLAMA
};

const SAMBA: Names = Names { mixer_norm: "mixer_norm", mlp_norm: "mlp_norm", ..BACKBONE };

/// flash-linear-attention: whatever mixes is `attn`.
const FLA: Names = Names {
    embeddings: "model.embeddings.weight",
    mixer_norm: "attn_norm",
    mlp_norm: "mlp_norm",
    attention: "attn",
    recurrence: "attn",
    delta_rule: "attn",
    ..LLAMA
};

const RWKV: Names = Names {
    embeddings: "rwkv.embeddings.weight",
    embedding_norm: "rwkv.blocks.0.pre_ln",
    final_norm: "rwkv.ln_out",
    head: "head.weight",
    layers: "rwkv.blocks",
    mixer_norm: "ln1",
    mlp_norm: "ln2",
    recurrence: "attention",
    mlp: "feed_forward",
    ..LLAMA
};

/// RWKV-6 as its authors store it.
const RWKV6: Names = Names {
    renames: &[
        ("bonus", "time_faaaa"),
        ("r_proj.linear", "receptance"),
        ("k_proj.linear", "key"),
        ("v_proj.linear", "value"),
        ("g_proj.linear", "gate"),
        ("o_proj", "output"),
        ("g_norm", "ln_x"),
        ("key.mu", "time_maa_k"),
        ("receptance.mu", "time_maa_r"),
        ("key.linear", "key"),
        ("receptance.linear", "receptance"),
    ],
    ..RWKV
};

/// RWKV-6 and RWKV-7 as flash-linear-attention stores them.
const RWKV7: Names = Names { embedding_norm: "model.layers.0.pre_norm", mlp_norm: "ffn_norm", mlp: "ffn", ..FLA };

const RECURRENT_GEMMA: Names = Names {
    final_norm: "model.final_norm",
    mixer_norm: "temporal_pre_norm",
    mlp_norm: "channel_pre_norm",
    attention: "temporal_block",
    recurrence: "temporal_block",
    mlp: "mlp_block",
    ..LLAMA
};

const XLSTM: Names = Names {
    embeddings: "backbone.embeddings.weight",
    final_norm: "backbone.out_norm",
    layers: "backbone.blocks",
    mixer_norm: "norm_mlstm",
    mlp_norm: "norm_ffn",
    recurrence: "mlstm_layer",
    mlp: "ffn",
    renames: &[
        ("gate_proj", "proj_up_gate"),
        ("up_proj", "proj_up"),
        ("down_proj", "proj_down"),
        ("gate_up_proj", "proj_up_gate_z"),
    ],
    ..LLAMA
};

/// Our own layout, `assets/layouts.md`.
const ANCESTORS: Names =
    Names { recurrence: "mixer", renames: &[("up_proj", "fc1"), ("down_proj", "fc2")], ..BACKBONE };

/// The same with a gated MLP.
const SLSTM: Names = Names { renames: &[], ..ANCESTORS };

const GPT_NEOX: Names = Names {
    embeddings: "gpt_neox.embed_in.weight",
    final_norm: "gpt_neox.final_layer_norm",
    layers: "gpt_neox.layers",
    attention: "attention",
    renames: &[
        ("qkv_proj", "query_key_value"),
        ("o_proj", "dense"),
        ("up_proj", "dense_h_to_4h"),
        ("down_proj", "dense_4h_to_h"),
    ],
    ..LLAMA
};

const GPT2: Names = Names {
    embeddings: "transformer.wte.weight",
    positions: "transformer.wpe.weight",
    final_norm: "transformer.ln_f",
    layers: "transformer.h",
    mixer_norm: "ln_1",
    mlp_norm: "ln_2",
    attention: "attn",
    renames: &[("qkv_proj", "c_attn"), ("o_proj", "c_proj"), ("up_proj", "c_fc"), ("down_proj", "c_proj")],
    transposed: true,
    ..LLAMA
};

/// Other spellings of the same tensor: original state-spaces files, Codestral's consolidated file, GPT-NeoX's head, RWKV's authors.
pub fn canonical(stored: &str) -> String {
    if let Some(name) = of_rwkv_authors(stored) {
        return name;
    }
    let name = match stored.strip_prefix("model.") {
        Some(rest) if rest.starts_with("backbone.") || rest.starts_with("lm_head.") => rest,
        _ => stored,
    };
    if let Some(rest) = name.strip_prefix("embed_out.") {
        return format!("lm_head.{rest}");
    }
    match name.strip_prefix("backbone.embedding.") {
        Some(rest) => format!("backbone.embeddings.{rest}"),
        None => name.to_owned(),
    }
}

/// What the Hugging Face files of RWKV-4, -5 and -6 call a tensor of their authors' files; none of any other.
fn of_rwkv_authors(stored: &str) -> Option<String> {
    if let Some(rest) = stored.strip_prefix("emb.") {
        return Some(format!("rwkv.embeddings.{rest}"));
    }
    if stored.starts_with("ln_out.") {
        return Some(format!("rwkv.{stored}"));
    }
    let (layer, name) = stored.strip_prefix("blocks.")?.split_once('.')?;
    let (part, rest) = name.split_once('.')?;
    let part = match part {
        "att" => "attention",
        "ffn" => "feed_forward",
        "ln0" => "pre_ln",
        other => other,
    };
    let rest = match rest {
        "time_mix_k" => "time_mix_key",
        "time_mix_v" => "time_mix_value",
        "time_mix_r" => "time_mix_receptance",
        "time_mix_g" => "time_mix_gate",
        other => other,
    };
    Some(format!("rwkv.blocks.{layer}.{part}.{rest}"))
}

/// Whether a tensor is a buffer that old files carry along and no model reads.
pub fn is_known_buffer(name: &str) -> bool {
    let buffers =
        ["rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".attn.bias", ".attn.masked_bias"];
    // Heads for several tokens at once (`mtp.`) are for training and speculation.
    name.starts_with("mtp.") || buffers.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_type_has_names() {
        for model_type in super::super::config::supported_model_types() {
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
        assert_eq!(canonical("emb.weight"), "rwkv.embeddings.weight");
        assert_eq!(canonical("blocks.0.ln0.bias"), "rwkv.blocks.0.pre_ln.bias");
        assert_eq!(canonical("blocks.7.att.time_mix_g"), "rwkv.blocks.7.attention.time_mix_gate");
        assert_eq!(canonical("blocks.7.ffn.key.weight"), "rwkv.blocks.7.feed_forward.key.weight");
    }
}
