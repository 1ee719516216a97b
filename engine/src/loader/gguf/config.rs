//! Metadata → [`ModelSpec`](crate::model::spec::ModelSpec), by way of the keys that config.json has for the same: one vocabulary, and the same checks.
//!
//! What the converter folds into the weights (Falcon-H1's multipliers) or splits (Granite's experts) is said here too; what it does not
//! write down (Falcon-Mamba's epsilon of δ, B and C) is the default of the transformers class.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use super::header::{Header, Value};
use super::names::{GGUF, ONE_NORM, RWKV6, RWKV7};
use crate::loader::names::Names;

/// The architectures that are read, as files name them.
pub const ARCHITECTURES: [&str; 14] = [
    "mamba",
    "mamba2",
    "jamba",
    "falcon-h1",
    "granitehybrid",
    "granite",
    "granitemoe",
    "nemotron_h",
    "nemotron_h_moe",
    "llama",
    "qwen2",
    "qwen3",
    "rwkv6",
    "rwkv7",
];

/// More layers than any model has.
const MAX_LAYERS: usize = 1 << 12;

/// What a file is, besides its [`ModelSpec`](crate::model::spec::ModelSpec).
pub struct Described {
    /// As config.json would say it.
    pub config: Json,
    pub names: &'static Names,
    /// Whether the converter stored the rows of queries and keys pair by pair.
    pub pairs: bool,
    /// By layer.
    pub kv_heads: Vec<usize>,
    pub heads: usize,
    pub experts: usize,
    /// Width of a head of RWKV; 0 in others.
    pub head_dim: usize,
    /// After so many layers RWKV-6 halves what it adds; 0 for never.
    pub rescale_every: usize,
}

/// The metadata of one architecture: `ssm.inner_size` stands for `mamba.ssm.inner_size`.
struct Keys<'a> {
    header: &'a Header<'a>,
    architecture: &'a str,
    tensors: HashSet<&'a str>,
    layers: usize,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.header.get(&format!("{}.{key}", self.architecture))
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        self.optional_size(key)?.ok_or_else(|| format!("its metadata lacks {}.{key}", self.architecture))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.size().and_then(|size| usize::try_from(size).ok()).filter(|&size| size < 1 << 32);
        size.map(Some).ok_or_else(|| format!("{}.{key} is {value}, expected a size", self.architecture))
    }

    /// One size for all layers, or one each.
    fn by_layer(&self, key: &str) -> Result<Vec<usize>, String> {
        let wrong =
            || format!("{}.{key} has to be a size, or one for each of the {} layers", self.architecture, self.layers);
        match self.get(key) {
            Some(Value::Array(array)) if array.len() == self.layers => {
                let size = |value: Value| value.size().and_then(|size| usize::try_from(size).ok());
                array
                    .iter()
                    .map(size)
                    .collect::<Option<Vec<_>>>()
                    .filter(|sizes| sizes.len() == self.layers)
                    .ok_or_else(wrong)
            }
            Some(Value::Array(_)) => Err(wrong()),
            _ => Ok(vec![self.size(key)?; self.layers]),
        }
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, String> {
        let Some(value) = self.get(key) else { return Ok(default) };
        // The file has f32: the shortest spelling that means the same is the number of the config.
        let short = |x: f64| (x as f32).to_string().parse().unwrap_or(x);
        value.number().map(short).ok_or_else(|| format!("{}.{key} is {value}, expected a number", self.architecture))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Flag(flag)) => Ok(flag),
            Some(other) => Err(format!("{}.{key} is {other}, expected true or false", self.architecture)),
        }
    }

    /// Whether any layer has this tensor.
    fn has(&self, part: &str) -> bool {
        (0..self.layers).any(|layer| self.has_in(layer, part))
    }

    fn has_in(&self, layer: usize, part: &str) -> bool {
        self.tensors.contains(format!("blk.{layer}.{part}").as_str())
    }

    /// Rows of this tensor in the first layer that has it.
    fn rows(&self, part: &str) -> Option<usize> {
        let layer = (0..self.layers).find(|&layer| self.has_in(layer, part))?;
        let shape = &self.header.tensor(&format!("blk.{layer}.{part}"))?.shape;
        shape.len().checked_sub(2).map(|axis| shape[axis])
    }
}

/// Reads the metadata.
///
/// # Errors
/// An architecture that is not supported, by name; a key that is missing or no such value.
pub fn describe(header: &Header<'_>) -> Result<Described, String> {
    let architecture = header.get("general.architecture").and_then(|value| value.text().map(str::to_owned));
    let architecture = architecture.ok_or("its metadata does not say `general.architecture`")?;
    if !ARCHITECTURES.contains(&architecture.as_str()) {
        let known = ARCHITECTURES.join(", ");
        return Err(format!("its architecture {architecture:?} is not supported: supported are {known}"));
    }
    let tensors = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut keys = Keys { header, architecture: &architecture, tensors, layers: 0 };
    keys.layers = keys.size("block_count")?;
    if !(1..=MAX_LAYERS).contains(&keys.layers) {
        return Err(format!("it says to have {} layers, expected 1 to {MAX_LAYERS}", keys.layers));
    }
    let mut config = common(&keys)?;
    let family = match architecture.as_str() {
        "mamba" => mamba(&keys)?,
        "mamba2" => mamba2(&keys)?,
        "jamba" => jamba(&keys)?,
        "falcon-h1" => falcon_h1(&keys)?,
        "nemotron_h" | "nemotron_h_moe" => nemotron(&keys)?,
        "llama" | "qwen2" | "qwen3" => decoder(&keys)?,
        "rwkv6" => rwkv6(&keys)?,
        "rwkv7" => rwkv7(&keys)?,
        _ => granite(&keys)?,
    };
    if let Json::Object(family) = family {
        config.extend(family);
    }
    let attends = !architecture.starts_with("mamba") && !architecture.starts_with("rwkv");
    Ok(Described {
        config: Json::Object(config),
        names: match architecture.as_str() {
            "nemotron_h" | "nemotron_h_moe" => &ONE_NORM,
            "rwkv6" => &RWKV6,
            "rwkv7" => &RWKV7,
            _ => &GGUF,
        },
        pairs: architecture == "llama" || architecture.starts_with("granite"),
        kv_heads: if attends { kv_heads(&keys)? } else { vec![0; keys.layers] },
        heads: if attends { keys.size("attention.head_count")? } else { 0 },
        experts: keys.optional_size("expert_count")?.unwrap_or(0),
        head_dim: keys.optional_size("wkv.head_size")?.unwrap_or(0),
        rescale_every: keys.optional_size("rescale_every_n_layers")?.unwrap_or(0),
    })
}

fn common(keys: &Keys<'_>) -> Result<Map<String, Json>, String> {
    let vocabulary = keys.header.tensor("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    let end = ["eos", "eot", "eom"].map(|end| keys.header.get(&format!("tokenizer.ggml.{end}_token_id")));
    let end: Vec<u64> = end.into_iter().flatten().filter_map(|id| id.size()).collect();
    // 2^20 is what the converter writes where there is no limit.
    let context = keys.optional_size("context_length")?.filter(|&context| context > 0 && context != 1 << 20);
    let hidden_size = keys.size("embedding_length")?;
    let common = json!({
        "hidden_size": hidden_size,
        "num_hidden_layers": keys.layers,
        "vocab_size": vocabulary,
        "tie_word_embeddings": keys.header.tensor("output.weight").is_none(),
        "eos_token_id": end,
        "max_position_embeddings": context,
    });
    let Json::Object(common) = common else { unreachable!("written as an object above") };
    Ok(common)
}

fn kv_heads(keys: &Keys<'_>) -> Result<Vec<usize>, String> {
    let key = "attention.head_count_kv";
    if keys.get(key).is_some() { keys.by_layer(key) } else { keys.by_layer("attention.head_count") }
}

/// Epsilon of the RMS norms.
fn eps(keys: &Keys<'_>) -> Result<f64, String> {
    let key = "attention.layer_norm_rms_epsilon";
    let key = if keys.get(key).is_some() { key } else { "attention.layer_norm_epsilon" };
    keys.number(key, 1e-5)
}

/// `expand` such that ⌊expand · hidden size⌋ is the inner width.
fn expand(keys: &Keys<'_>) -> Result<f64, String> {
    Ok((keys.size("ssm.inner_size")? as f64 + 0.5) / keys.size("embedding_length")?.max(1) as f64)
}

/// P of Mamba-2, whose heads are counted under `ssm.time_step_rank`.
fn head_dim(keys: &Keys<'_>) -> Result<[usize; 2], String> {
    let (inner, heads) = (keys.size("ssm.inner_size")?, keys.size("ssm.time_step_rank")?);
    match heads {
        0 => Err("its metadata has 0 heads under ssm.time_step_rank".to_owned()),
        _ => Ok([heads, inner / heads]),
    }
}

fn mamba(keys: &Keys<'_>) -> Result<Json, String> {
    let norms = keys.flag("ssm.dt_b_c_rms", false)?;
    Ok(json!({
        "model_type": if norms { "falcon_mamba" } else { "mamba" },
        "intermediate_size": keys.size("ssm.inner_size")?,
        "state_size": keys.size("ssm.state_size")?,
        "time_step_rank": keys.size("ssm.time_step_rank")?,
        "conv_kernel": keys.size("ssm.conv_kernel")?,
        "layer_norm_epsilon": eps(keys)?,
        "use_bias": keys.has("ssm_in.bias"),
        "use_conv_bias": keys.has("ssm_conv1d.bias"),
    }))
}

fn mamba2(keys: &Keys<'_>) -> Result<Json, String> {
    let [heads, head_dim] = head_dim(keys)?;
    Ok(json!({
        "model_type": "mamba2",
        "num_heads": heads,
        "head_dim": head_dim,
        "state_size": keys.size("ssm.state_size")?,
        "n_groups": keys.optional_size("ssm.group_count")?.unwrap_or(1),
        "conv_kernel": keys.size("ssm.conv_kernel")?,
        "layer_norm_epsilon": eps(keys)?,
        "expand": expand(keys)?,
        "use_bias": keys.has("ssm_in.bias"),
        "use_conv_bias": keys.has("ssm_conv1d.bias"),
    }))
}

/// Mamba-2 as the hybrids spell it.
fn mamba2_part(keys: &Keys<'_>) -> Result<Json, String> {
    let [heads, head_dim] = head_dim(keys)?;
    Ok(json!({
        "mamba_n_heads": heads,
        "mamba_d_head": head_dim,
        "mamba_d_state": keys.size("ssm.state_size")?,
        "mamba_n_groups": keys.optional_size("ssm.group_count")?.unwrap_or(1),
        "mamba_d_conv": keys.size("ssm.conv_kernel")?,
        "mamba_expand": expand(keys)?,
        "mamba_proj_bias": keys.has("ssm_in.bias"),
        "mamba_conv_bias": keys.has("ssm_conv1d.bias"),
    }))
}

/// Both objects in one.
fn joined(first: Json, second: Json) -> Json {
    match (first, second) {
        (Json::Object(mut all), Json::Object(more)) => {
            all.extend(more);
            Json::Object(all)
        }
        (first, _) => first,
    }
}

/// Attention; the number of key-value heads of the layers that have any.
fn attention(keys: &Keys<'_>) -> Result<Json, String> {
    let heads = keys.size("attention.head_count")?;
    let key_length = keys.optional_size("attention.key_length")?;
    if let (Some(keys), Some(values)) = (key_length, keys.optional_size("attention.value_length")?)
        && keys != values
    {
        return Err(format!("its heads have keys of {keys} and values of {values} numbers, which is not supported"));
    }
    let rope = match keys.get("rope.scaling.type").and_then(|kind| kind.text().map(str::to_owned)).as_deref() {
        None | Some("none") => json!({ "rope_type": "default" }),
        Some(kind) => json!({ "rope_type": kind, "factor": keys.number("rope.scaling.factor", 1.0)? }),
    };
    let theta = json!({ "rope_theta": keys.number("rope.freq_base", 10_000.0)? });
    Ok(json!({
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads(keys)?.into_iter().max().filter(|&heads| heads > 0),
        "head_dim": key_length,
        "rope_parameters": joined(rope, theta),
        "attention_bias": keys.has("attn_q.bias"),
        "sliding_window": keys.optional_size("attention.sliding_window")?.filter(|&window| window > 0),
        "rms_norm_eps": eps(keys)?,
    }))
}

fn decoder(keys: &Keys<'_>) -> Result<Json, String> {
    let own = json!({
        "model_type": keys.architecture,
        "intermediate_size": keys.size("feed_forward_length")?,
        "mlp_bias": keys.has("ffn_up.bias"),
        "num_experts": keys.optional_size("expert_count")?,
    });
    let mut config = joined(attention(keys)?, own);
    if keys.architecture.starts_with("qwen") {
        config["attention_bias"] = json!(false);
    } else if config["head_dim"].is_null() {
        config["head_dim"] = json!(keys.optional_size("rope.dimension_count")?);
    }
    Ok(config)
}

/// As the official files of RWKV-6 spell it.
fn rwkv6(keys: &Keys<'_>) -> Result<Json, String> {
    Ok(json!({
        "model_type": "rwkv6",
        "head_size": keys.size("wkv.head_size")?,
        "intermediate_size": keys.size("feed_forward_length")?,
        "layer_norm_epsilon": eps(keys)?,
    }))
}

fn rwkv7(keys: &Keys<'_>) -> Result<Json, String> {
    Ok(json!({
        "model_type": "rwkv7",
        "head_dim": keys.size("wkv.head_size")?,
        "intermediate_size": keys.size("feed_forward_length")?,
        "norm_eps": eps(keys)?,
        "decay_low_rank_dim": keys.size("attention.decay_lora_rank")?,
        "a_low_rank_dim": keys.size("attention.iclr_lora_rank")?,
        "v_low_rank_dim": keys.size("attention.value_residual_mix_lora_rank")?,
        "gate_low_rank_dim": keys.size("attention.gate_lora_rank")?,
        // As llama.cpp bounds the norm of κ.
        "fuse_norm": false,
    }))
}

fn jamba(keys: &Keys<'_>) -> Result<Json, String> {
    let attends: Vec<bool> = kv_heads(keys)?.into_iter().map(|heads| heads > 0).collect();
    let routed: Vec<bool> = (0..keys.layers).map(|layer| keys.has_in(layer, "ffn_gate_inp.weight")).collect();
    let ([period, offset], [expert_period, expert_offset]) = (rhythm(&attends)?, rhythm(&routed)?);
    let own = json!({
        "model_type": "jamba",
        "attn_layer_period": period,
        "attn_layer_offset": offset,
        "expert_layer_period": expert_period,
        "expert_layer_offset": expert_offset,
        "intermediate_size": keys.size("feed_forward_length")?,
        "num_experts": keys.optional_size("expert_count")?.unwrap_or(1).max(1),
        "num_experts_per_tok": keys.optional_size("expert_used_count")?.unwrap_or(1).max(1),
        "mamba_d_state": keys.size("ssm.state_size")?,
        "mamba_dt_rank": keys.size("ssm.time_step_rank")?,
        "mamba_d_conv": keys.size("ssm.conv_kernel")?,
        "mamba_expand": expand(keys)?,
        "mamba_proj_bias": keys.has("ssm_in.bias"),
        "mamba_conv_bias": keys.has("ssm_conv1d.bias"),
    });
    Ok(joined(attention(keys)?, own))
}

/// Period and offset of the layers that are so; beyond all layers where none is.
fn rhythm(layers: &[bool]) -> Result<[usize; 2], String> {
    let chosen: Vec<usize> = (0..layers.len()).filter(|&layer| layers[layer]).collect();
    let (period, offset) = match chosen[..] {
        [] => (layers.len() + 1, layers.len()),
        [only] => (layers.len().max(only + 1), only),
        [first, second, ..] => (second - first, first),
    };
    let regular = (0..layers.len()).all(|layer| layers[layer] == (layer % period == offset));
    regular
        .then_some([period, offset])
        .ok_or_else(|| format!("layers {chosen:?} are attention or hold experts, expected an even rhythm as Jamba has"))
}

fn falcon_h1(keys: &Keys<'_>) -> Result<Json, String> {
    let own = json!({
        "model_type": "falcon_h1",
        "intermediate_size": keys.size("feed_forward_length")?,
        "mlp_bias": keys.has("ffn_up.bias"),
        "mamba_d_ssm": keys.size("ssm.inner_size")?,
        "mamba_rms_norm": keys.has("ssm_norm.weight"),
        "mamba_norm_before_gate": false,
        "projectors_bias": keys.has("ssm_out.bias"),
    });
    Ok(joined(joined(attention(keys)?, mamba2_part(keys)?), own))
}

fn granite(keys: &Keys<'_>) -> Result<Json, String> {
    let hybrid = keys.architecture == "granitehybrid";
    let kinds: Vec<&str> =
        kv_heads(keys)?.into_iter().map(|heads| if heads > 0 || !hybrid { "attention" } else { "mamba" }).collect();
    let (heads, hidden) = (keys.size("attention.head_count")?.max(1), keys.size("embedding_length")?);
    let width = keys.optional_size("attention.key_length")?.unwrap_or(hidden / heads);
    // llama.cpp takes 0 for the usual scale.
    let scale = Some(keys.number("attention.scale", 0.0)?).filter(|&scale| scale != 0.0);
    let experts = keys.optional_size("expert_count")?.unwrap_or(0);
    let shared = if experts > 0 { "ffn_up_shexp.weight" } else { "ffn_up.weight" };
    let own = json!({
        "model_type": "granitemoehybrid",
        "layer_types": kinds,
        "position_embedding_type": if keys.flag("rope.scaling.finetuned", true)? { "rope" } else { "nope" },
        "attention_multiplier": scale.unwrap_or_else(|| (width.max(1) as f64).powf(-0.5)),
        "embedding_multiplier": keys.number("embedding_scale", 1.0)?,
        "residual_multiplier": keys.number("residual_scale", 1.0)?,
        "logits_scaling": keys.number("logit_scale", 1.0)?,
        "num_local_experts": experts,
        "num_experts_per_tok": keys.optional_size("expert_used_count")?.unwrap_or(1).max(1),
        // The converter writes the width of experts as that of all, even where there are none.
        "intermediate_size": keys.rows("ffn_up_exps.weight").or(keys.rows("ffn_up.weight")),
        "shared_intermediate_size": keys.rows(shared),
    });
    let mamba = if keys.has("ssm_in.weight") { mamba2_part(keys)? } else { json!({}) };
    Ok(joined(joined(attention(keys)?, mamba), own))
}

fn nemotron(keys: &Keys<'_>) -> Result<Json, String> {
    let [heads, head_dim] = head_dim(keys)?;
    // By tensors: the metadata cannot tell a layer of experts from an MLP, nor, in files with both, an MLP from a state space.
    let kind = |layer: usize| {
        let kinds = [
            ("ssm_in.weight", "mamba"),
            ("attn_q.weight", "attention"),
            ("ffn_gate_inp.weight", "moe"),
            ("ffn_up.weight", "mlp"),
        ];
        let found = kinds.iter().find(|(part, _)| keys.has_in(layer, part));
        found.map(|(_, kind)| *kind).ok_or_else(|| format!("its layer {layer} has no tensors that such a model has"))
    };
    let kinds = (0..keys.layers).map(kind).collect::<Result<Vec<_>, _>>()?;
    let own = json!({
        "model_type": "nemotron_h",
        "layers_block_type": kinds,
        "layer_norm_epsilon": eps(keys)?,
        "intermediate_size": keys.rows("ffn_up.weight"),
        "mlp_bias": keys.has("ffn_up.bias"),
        "mamba_num_heads": heads,
        "mamba_head_dim": head_dim,
        "ssm_state_size": keys.size("ssm.state_size")?,
        "n_groups": keys.optional_size("ssm.group_count")?.unwrap_or(1),
        "conv_kernel": keys.size("ssm.conv_kernel")?,
        "use_bias": keys.has("ssm_in.bias"),
        "use_conv_bias": keys.has("ssm_conv1d.bias"),
        "n_routed_experts": keys.optional_size("expert_count")?.filter(|&experts| experts > 0),
        "num_experts_per_tok": keys.optional_size("expert_used_count")?.filter(|&used| used > 0),
        "n_group": keys.optional_size("expert_group_count")?.unwrap_or(1).max(1),
        "topk_group": keys.optional_size("expert_group_used_count")?.unwrap_or(1).max(1),
        "norm_topk_prob": keys.flag("expert_weights_norm", false)?,
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0)?,
        "moe_intermediate_size": keys.rows("ffn_up_exps.weight"),
        "moe_shared_expert_intermediate_size": keys.rows("ffn_up_shexp.weight"),
        "moe_latent_size": keys.optional_size("moe_latent_size")?.filter(|&size| size > 0),
        "num_nextn_predict_layers": 0,
    });
    if keys.optional_size("nextn_predict_layers")?.is_some_and(|layers| layers > 0) {
        return Err("it has layers that predict several tokens at once: convert it with `--no-mtp`".to_owned());
    }
    Ok(joined(attention(keys)?, own))
}
