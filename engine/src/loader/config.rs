//! config.json → [`ModelSpec`]. Missing keys take the defaults of the transformers config class; a key that would change the result and
//! is not implemented is an error that names it.

mod bamba;
mod llama;
mod mamba;
mod original;

use serde_json::Value;

use super::error::{ConfigError, LoadError};
use super::keys::{Keys, json_from_python, show, whole_number};
use crate::model::spec::{AttentionSpec, Mamba2Spec, ModelSpec};
use crate::protocol::TokenId;

/// What `model_type` may say.
pub const SUPPORTED_MODEL_TYPES: [&str; 4] = ["mamba", "mamba2", "llama", "bamba"];

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
    spec(&value).map_err(|problem| LoadError::Config { file: file.to_owned(), problem })
}

fn spec(value: &Value) -> Result<ModelSpec, ConfigError> {
    let map = value.as_object().ok_or_else(|| ConfigError::NotAnObject { found: show(value) })?;
    let keys = Keys::new(map, "");
    let spec = match keys.text("model_type")? {
        Some("mamba") => mamba::mamba1(keys)?,
        Some("mamba2") => mamba::mamba2(keys)?,
        Some("llama") => llama::llama(keys)?,
        Some("bamba") => bamba::bamba(keys)?,
        Some(other) => return Err(ConfigError::UnknownModelType { found: other.to_owned() }),
        None if keys.get("d_model").is_some() && keys.get("n_layer").is_some() => original::original(keys)?,
        None => return Err(ConfigError::NoModelType),
    };
    refuse_what_would_change_the_result(keys)?;
    elements("the embedding", &[spec.vocab_size, spec.hidden_size])?;
    Ok(spec)
}

/// Keys of related architectures that transformers' own classes or derived models act on, with the numbers that mean 'nothing special'.
const NEUTRAL: [(&str, &[f64]); 31] = [
    ("quantization_config", &[]),
    ("compression_config", &[]),
    ("pretraining_tp", &[0.0, 1.0]),
    ("is_encoder_decoder", &[]),
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
    ("d_intermediate", &[0.0]),
    ("alibi", &[]),
];

fn refuse_what_would_change_the_result(keys: Keys) -> Result<(), ConfigError> {
    for (key, neutral) in NEUTRAL {
        let Some(value) = keys.get(key) else { continue };
        if !is_off(value) && !value.as_f64().is_some_and(|x| neutral.contains(&x)) {
            let expected = neutral.last().map_or("no such key".to_owned(), |x| format!("{x} or no such key"));
            return Err(keys.unsupported(key, value, &expected));
        }
    }
    if let Some(value) = keys.get("sliding_window").filter(|value| !is_off(value))
        && keys.flag("use_sliding_window", true)?
    {
        return Err(keys.unsupported("sliding_window", value, "null"));
    }
    if let Some(value) = keys.get("rms_norm").filter(|value| value.as_bool() != Some(true)) {
        return Err(keys.unsupported("rms_norm", value, "true"));
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

/// SiLU under either of its names is the one activation implemented.
fn require_silu(keys: Keys) -> Result<(), ConfigError> {
    match keys.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(keys.unsupported("hidden_act", &other.into(), "\"silu\"")),
    }
}

/// `eos_token_id`: one id, several, or null for a model that never ends; negative ids stand for none.
fn end_tokens(keys: Keys, default: TokenId) -> Result<Vec<TokenId>, ConfigError> {
    let key = "eos_token_id";
    let one = |value: &Value| -> Result<Option<TokenId>, ConfigError> {
        if value.as_i64().is_some_and(|id| id < 0) {
            return Ok(None);
        }
        let id = whole_number(value).and_then(|id| TokenId::try_from(id).ok());
        id.map(Some).ok_or_else(|| keys.invalid(key, value, "a token id, a list of token ids, or null"))
    };
    match keys.raw(key) {
        None => Ok(vec![default]),
        Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().filter_map(|value| one(value).transpose()).collect(),
        Some(value) => Ok(one(value)?.into_iter().collect()),
    }
}

/// Tokens per sequence in training, where the file says so. `trained_context` is our own key, for models without a position limit.
fn trained_context(keys: Keys) -> Result<Option<usize>, ConfigError> {
    Ok(keys.optional_size("trained_context")?.or(keys.optional_size("max_position_embeddings")?))
}

/// Checks the sizes of a Mamba-2 mixer against the inner width E = expand · hidden_size, which H · P must make. `names` are the keys
/// of heads, head dim, groups and state size, for messages.
fn check_mamba2(spec: &Mamba2Spec, hidden_size: usize, inner: usize, names: [&str; 4]) -> Result<(), ConfigError> {
    let [heads, head_dim, groups, state] = names;
    if spec.heads.checked_mul(spec.head_dim) != Some(inner) {
        return Err(ConfigError::Inconsistent(format!(
            "`{heads}` · `{head_dim}` is {} · {}, which must equal the inner width {inner} (expand · hidden size)",
            spec.heads, spec.head_dim
        )));
    }
    if !spec.heads.is_multiple_of(spec.groups) {
        return Err(ConfigError::Inconsistent(format!(
            "`{heads}` is {}, which must be a multiple of `{groups}`, {}",
            spec.heads, spec.groups
        )));
    }
    let group_width = elements("one of B and C", &[spec.groups, spec.state_dim])?;
    elements("in_proj", &[hidden_size, 2 * inner + 2 * group_width + spec.heads])?;
    elements(&format!("a state of `{heads}` · `{head_dim}` · `{state}`"), &[inner, spec.state_dim])?;
    Ok(())
}

/// Checks that the KV heads divide the heads and that the projections can be counted.
fn check_attention(spec: &AttentionSpec, hidden_size: usize) -> Result<(), ConfigError> {
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`num_attention_heads` is {}, which must be a multiple of `num_key_value_heads`, {}",
            spec.heads, spec.kv_heads
        )));
    }
    elements("q_proj", &[hidden_size, spec.heads, spec.head_dim]).map(drop)
}

/// `head_dim`, or hidden_size / num_attention_heads, which must divide.
fn head_dim(keys: Keys, hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    let head_dim = match keys.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(ConfigError::Inconsistent(format!(
                "`hidden_size` is {hidden_size}, which must be a multiple of `num_attention_heads`, {heads}, as there is no `head_dim`"
            )));
        }
    };
    if head_dim <= MAX_HEAD_DIM {
        return Ok(head_dim);
    }
    Err(ConfigError::Inconsistent(format!(
        "`head_dim` is {head_dim}, more than any model: expected at most {MAX_HEAD_DIM}"
    )))
}

/// Which layers attend, from `layer_types` or `layers_block_type` in either spelling; none where the file has neither.
fn attention_layers(keys: Keys, layers: usize) -> Result<Option<Vec<bool>>, ConfigError> {
    for key in ["layers_block_type", "layer_types"] {
        let Some(list) = keys.list(key)? else { continue };
        let kinds = list.iter().map(|kind| match kind.as_str() {
            Some("mamba" | "mamba2" | "linear_attention") => Ok(false),
            Some("attention" | "full_attention") => Ok(true),
            _ => Err(keys.unsupported(key, kind, "\"mamba\" or \"attention\" for each layer")),
        });
        let kinds: Vec<bool> = kinds.collect::<Result<_, _>>()?;
        if kinds.len() != layers {
            return Err(ConfigError::Inconsistent(format!(
                "`{key}` has {} entries, which must be as many as the {layers} layers of `num_hidden_layers`",
                kinds.len()
            )));
        }
        return Ok(Some(kinds));
    }
    Ok(None)
}

/// For the families whose layers are all alike: `layer_types`, where given, must say so.
fn require_uniform_layers(keys: Keys, layers: usize, attention: bool) -> Result<(), ConfigError> {
    match attention_layers(keys, layers)? {
        Some(kinds) if kinds.iter().any(|&kind| kind != attention) => Err(ConfigError::Inconsistent(
            "`layer_types` names layers that this `model_type` does not have: expected all alike".to_owned(),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
