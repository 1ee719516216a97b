//! config.json → [`ModelSpec`]. Missing keys take the defaults of the transformers config class; a key that would change the result and
//! is not implemented is an error that names it.

mod ancestors;
mod bamba;
mod falcon_h1;
mod fla;
mod gpt;
mod granite;
mod hymba;
mod jamba;
mod lfm2;
mod llama;
mod mamba;
mod nemotron;
mod original;
mod params;
mod parts;
mod qwen3_next;
mod recurrent_gemma;
mod rwkv;
mod samba;
mod xlstm;
mod zamba;

use std::cell::RefCell;

use serde_json::Value;

use super::error::{ConfigError, LoadError};
use super::keys::{Keys, json_from_python, show, whole_number};
use crate::model::spec::ModelSpec;
use crate::protocol::TokenId;

type Parser = fn(Keys) -> Result<ModelSpec, ConfigError>;

/// What `model_type` may say, and who reads the rest.
const FAMILIES: [(&str, Parser); 38] = [
    ("mamba", mamba::mamba1),
    ("mamba2", mamba::mamba2),
    ("falcon_mamba", mamba::falcon_mamba),
    ("jamba", jamba::jamba),
    ("hymba", hymba::hymba),
    ("zamba", zamba::zamba),
    ("zamba2", zamba::zamba2),
    ("bamba", bamba::bamba),
    ("granitemoehybrid", granite::granite),
    ("falcon_h1", falcon_h1::falcon_h1),
    ("nemotron_h", nemotron::nemotron),
    ("qwen3_next", qwen3_next::qwen3_next),
    ("lfm2", lfm2::lfm2),
    ("samba", samba::samba),
    ("retnet", fla::retnet),
    ("gla", fla::gla),
    ("linear_attn", fla::linear_attn),
    ("hgrn2", fla::hgrn2),
    ("delta_net", fla::delta_net),
    ("gated_deltanet", fla::gated_deltanet),
    ("rwkv", rwkv::rwkv),
    ("rwkv5", rwkv::rwkv5),
    ("rwkv6", rwkv::rwkv6),
    ("rwkv7", rwkv::rwkv7),
    ("recurrent_gemma", recurrent_gemma::recurrent_gemma),
    ("xlstm", xlstm::xlstm),
    ("s4", ancestors::s4),
    ("s4d", ancestors::s4d),
    ("h3", ancestors::h3),
    ("hyena", ancestors::hyena),
    ("slstm", ancestors::slstm),
    ("mamba3", mamba::mamba3),
    ("llama", llama::llama),
    ("mistral", llama::mistral),
    ("qwen2", llama::qwen2),
    ("qwen3", llama::qwen3),
    ("gpt_neox", gpt::gpt_neox),
    ("gpt2", gpt::gpt2),
];

/// What `model_type` may say.
pub fn supported_model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// No tensor may have more elements: far beyond any model, far from overflow.
const MAX_ELEMENTS: usize = 1 << 40;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 14;

/// Reads the text of a config.json; `file` is its name in messages.
///
/// # Errors
/// [`LoadError::Json`] and [`LoadError::Config`].
pub fn parse(text: &str, file: &str) -> Result<ModelSpec, LoadError> {
    let text = json_from_python(text.trim_start_matches('\u{feff}'));
    let value: Value =
        serde_json::from_str(&text).map_err(|source| LoadError::Json { file: file.to_owned(), source })?;
    from_value(&value, file)
}

/// Reads a config that another format says in the same words; `file` is its name in messages.
///
/// # Errors
/// [`LoadError::Config`].
pub fn from_value(value: &Value, file: &str) -> Result<ModelSpec, LoadError> {
    spec(value).map_err(|problem| LoadError::Config { file: file.to_owned(), problem })
}

/// Reads the text of the params.json beside a `consolidated.safetensors`; `shape` tells the shapes of tensors, which say what it leaves
/// out.
///
/// # Errors
/// As [`parse`].
pub fn parse_params(
    text: &str,
    file: &str,
    shape: impl Fn(&str) -> Option<Vec<usize>>,
) -> Result<ModelSpec, LoadError> {
    let value: Value =
        serde_json::from_str(text).map_err(|source| LoadError::Json { file: file.to_owned(), source })?;
    let config = |problem| LoadError::Config { file: file.to_owned(), problem };
    let map = value.as_object().ok_or_else(|| config(ConfigError::NotAnObject { found: show(&value) }))?;
    let spec = params::params(Keys::new(map, ""), shape).map_err(config)?;
    elements("the embedding", &[spec.vocab_size, spec.hidden_size]).map_err(config)?;
    Ok(spec)
}

fn spec(value: &Value) -> Result<ModelSpec, ConfigError> {
    let map = value.as_object().ok_or_else(|| ConfigError::NotAnObject { found: show(value) })?;
    let read = RefCell::default();
    let keys = Keys::new(map, "").noting(&read);
    let spec = match keys.text("model_type")? {
        Some(found) => match FAMILIES.iter().find(|(name, _)| *name == found) {
            Some((_, parse)) => parse(keys)?,
            None => return Err(ConfigError::UnknownModelType { found: found.to_owned() }),
        },
        None if keys.get("d_model").is_some() && keys.get("n_layer").is_some() => original::original(keys)?,
        None => return Err(ConfigError::NoModelType),
    };
    refuse_what_would_change_the_result(Keys::new(map, ""), |key| read.borrow().contains(key))?;
    elements("the embedding", &[spec.vocab_size, spec.hidden_size])?;
    Ok(spec)
}

/// Keys that transformers' classes or derived models act on, with the numbers that mean 'nothing special'. A family that reads one takes
/// care of it; in any other it must be off.
const NEUTRAL: [(&str, &[f64]); 46] = [
    ("quantization_config", &[]),
    ("compression_config", &[]),
    ("pretraining_tp", &[0.0, 1.0]),
    ("is_encoder_decoder", &[]),
    ("add_cross_attention", &[]),
    ("per_layer_config", &[]),
    ("residual_multiplier", &[1.0]),
    ("residual_scale", &[1.0]),
    ("embedding_multiplier", &[1.0]),
    ("scale_emb", &[1.0]),
    ("attention_multiplier", &[]),
    ("key_multiplier", &[1.0]),
    ("lm_head_multiplier", &[1.0]),
    ("logits_scaling", &[1.0]),
    ("logit_scale", &[1.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logits_soft_cap", &[0.0]),
    ("num_experts", &[0.0, 1.0]),
    ("num_local_experts", &[0.0, 1.0]),
    ("n_routed_experts", &[0.0, 1.0]),
    ("qk_norm", &[]),
    ("use_qk_norm", &[]),
    ("qk_layernorm", &[]),
    ("clip_qkv", &[]),
    ("rope_interleaved", &[]),
    ("no_rope_layers", &[]),
    ("no_rope_layer_interval", &[0.0]),
    ("norm_before_gate", &[]),
    ("mamba_norm_before_gate", &[]),
    ("mamba_rms_norm", &[]),
    ("mixer_rms_eps", &[]),
    ("ssm_multipliers", &[]),
    ("mlp_multipliers", &[]),
    ("attention_in_multiplier", &[1.0]),
    ("attention_out_multiplier", &[1.0]),
    ("ssm_in_multiplier", &[1.0]),
    ("ssm_out_multiplier", &[1.0]),
    ("d_intermediate", &[0.0]),
    ("alibi", &[]),
    ("sliding_window", &[]),
    ("window_size", &[]),
    ("use_long_context", &[]),
    ("use_mem_rope", &[]),
    ("num_nextn_predict_layers", &[]),
    ("moe_latent_size", &[]),
];

/// Switches of parts that the families always have.
const TRUE: [&str; 6] =
    ["rms_norm", "mamba_inner_layernorms", "mamba_use_mlp", "use_pos_enc", "block_use_swiglu", "attn_output_gate"];

fn refuse_what_would_change_the_result(keys: Keys, is_read: impl Fn(&str) -> bool) -> Result<(), ConfigError> {
    for (key, neutral) in NEUTRAL {
        let Some(value) = keys.get(key).filter(|_| !is_read(key)) else { continue };
        if key == "sliding_window" && !keys.flag("use_sliding_window", true)? {
            continue;
        }
        if !is_off(value) && !value.as_f64().is_some_and(|x| neutral.contains(&x)) {
            let expected = neutral.last().map_or("no such key".to_owned(), |x| format!("{x} or no such key"));
            return Err(keys.unsupported(key, value, &expected));
        }
    }
    for key in TRUE {
        if let Some(value) = keys.get(key).filter(|value| value.as_bool() != Some(true)) {
            return Err(keys.unsupported(key, value, "true"));
        }
    }
    Ok(())
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Checks that a tensor of these sizes can be counted.
fn elements(what: &str, sizes: &[usize]) -> Result<usize, ConfigError> {
    sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).filter(|&n| n <= MAX_ELEMENTS).ok_or_else(
        || {
            let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
            ConfigError::Inconsistent(format!("{what} would have {} elements, more than any model", sizes.join(" · ")))
        },
    )
}

fn layer_count(keys: Keys, key: &str, default: usize) -> Result<usize, ConfigError> {
    match keys.size(key, default)? {
        layers if layers <= MAX_LAYERS => Ok(layers),
        _ => Err(keys.invalid(key, keys.raw(key).unwrap_or(&Value::Null), &format!("at most {MAX_LAYERS}"))),
    }
}

/// `eos_token_id`: one id, several, or null for a model that never ends; negative ids stand for none.
fn end_tokens(keys: Keys, default: Option<TokenId>) -> Result<Vec<TokenId>, ConfigError> {
    let key = "eos_token_id";
    let one = |value: &Value| -> Result<Option<TokenId>, ConfigError> {
        if value.as_i64().is_some_and(|id| id < 0) {
            return Ok(None);
        }
        let id = whole_number(value).and_then(|id| TokenId::try_from(id).ok());
        id.map(Some).ok_or_else(|| keys.invalid(key, value, "a token id, a list of token ids, or null"))
    };
    match keys.raw(key) {
        None => Ok(default.into_iter().collect()),
        Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().filter_map(|value| one(value).transpose()).collect(),
        Some(value) => Ok(one(value)?.into_iter().collect()),
    }
}

/// Tokens per sequence in training, where the file says so. `trained_context` is our own key, for models without a position limit.
fn trained_context(keys: Keys) -> Result<Option<usize>, ConfigError> {
    Ok(keys.optional_size("trained_context")?.or(keys.optional_size("max_position_embeddings")?))
}

#[cfg(test)]
mod tests;
