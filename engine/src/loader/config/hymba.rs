//! `hymba` (Dong et al. 2024, arXiv 2411.13676), as the code that comes with nvidia/Hymba-1.5B reads it: attention and Mamba-1 side by side in
//! every layer, on one in_proj and one out_proj; meta tokens before every text; attention of few layers global, of the others with a
//! window; keys and values shared between layers.
//!
//! Two points of the official code are not one thing. Its training mask (flex attention), which is also that of an uncached pass, shows a
//! token the W tokens before it, and its cached step one fewer: here it is the mask of training, W + 1 tokens with the current one. And
//! its class has room for experts, but always builds one: so do we, and refuse a file that says several.

use serde_json::Value;

use super::parts::{AttentionDefaults, attention, finish, gated_mlp, layers_in, mamba1, require_silu};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::{Keys, whole_number};
use crate::loader::rope;
use crate::model::spec::{
    AttentionSpec, DbcNorm, FeedForwardSpec, KvUse, LayerSpec, Mamba1Spec, MixerSpec, ModelSpec, NormSpec, PartSpec,
    QkvLayout,
};

/// As `HymbaConfig` reads it.
pub fn hymba(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys, "hidden_act")?;
    require_silu(keys, "mlp_hidden_act")?;
    let hidden_size = keys.size("hidden_size", 4096)?;
    let layers = layer_count(keys, "num_hidden_layers", 32)?;
    let norm = NormSpec::rms(keys.epsilon("rms_norm_eps", 1e-6)?);
    let mlp = gated_mlp(keys, hidden_size, 14_336)?;
    let meta_tokens = match keys.get("num_memory_tokens").and_then(whole_number) {
        Some(0) => 0,
        _ => keys.optional_size("num_memory_tokens")?.unwrap_or(0),
    };
    elements("the meta tokens", &[meta_tokens, hidden_size])?;

    let mamba = Mamba1Spec {
        dbc_norm: Some(DbcNorm { eps: norm.eps, learned: true }),
        out_norm: Some(norm),
        ..mamba1(keys, hidden_size)?
    };
    let plain = attention(keys, hidden_size, AttentionDefaults { heads: 32, kv_heads: Some(8), head_dim: None })?;
    if !mamba.channels.is_multiple_of(plain.heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`num_attention_heads` is {}, which must divide the inner width {} (`mamba_expand` · `hidden_size`)",
            plain.heads, mamba.channels
        )));
    }
    let attention = AttentionSpec {
        value_dim: mamba.channels / plain.heads,
        rope: frequencies(keys, plain.head_dim)?,
        layout: QkvLayout::InProj,
        out_norm: Some(norm),
        ..plain
    };
    refuse_others(keys, hidden_size, &attention, layers)?;
    elements("in_proj", &[hidden_size, attention.in_proj_rows() + 2 * mamba.channels])?;

    let windows = windows(keys, layers)?;
    let uses = kv_uses(keys, layers, &windows)?;
    let layer = |index: usize| {
        let attention = AttentionSpec {
            window: windows[index],
            sinks: if windows[index].is_some() { meta_tokens } else { 0 },
            kv: uses[index],
            ..attention.clone()
        };
        let mamba = Mamba1Spec { in_offset: attention.in_proj_rows(), ..mamba.clone() };
        // ½ W (a + b) = ½ W a + ½ W b.
        let part = |mixer| PartSpec { mixer, input_scale: 1.0, output_scale: 0.5 };
        let parts = vec![part(MixerSpec::Mamba1(mamba)), part(MixerSpec::Attention(attention))];
        LayerSpec { parts, shared: None, feed_forward: Some(FeedForwardSpec::Mlp(mlp.clone())), parallel: false }
    };
    let vocab_size = keys.size("vocab_size", 65_536)?;
    let layers = (0..layers).map(layer).collect();
    let spec = ModelSpec { meta_tokens, ..ModelSpec::new("hymba", vocab_size, hidden_size, norm, layers) };
    finish(spec, keys, false, Some(2))
}

/// Refuses what the class could also be.
fn refuse_others(keys: Keys, hidden_size: usize, attention: &AttentionSpec, layers: usize) -> Result<(), ConfigError> {
    let sizes = [
        ("attn_hidden_size", hidden_size),
        ("kq_head_dim", attention.head_dim),
        ("v_head_dim", attention.value_dim),
        ("num_mamba", 1),
    ];
    for (key, expected) in sizes {
        let Some(value) = keys.get(key) else { continue };
        // −1 and 0 leave it to the class.
        if value.as_f64().is_none_or(|x| x > 0.0) && whole_number(value) != Some(expected as u64) {
            return Err(keys.unsupported(key, value, &expected.to_string()));
        }
    }
    for key in ["memory_tokens_interspersed_every", "mamba_proj_bias", "kv_weight_reuse"] {
        let is_off = |value: &Value| value.as_bool() == Some(false) || value.as_f64().is_some_and(|x| x <= 0.0);
        if let Some(value) = keys.get(key).filter(|value| !is_off(value)) {
            return Err(keys.unsupported(key, value, "0 or false"));
        }
    }
    if let Some(kind) = keys.text("kq_norm")?.filter(|kind| *kind != "none") {
        return Err(keys.unsupported("kq_norm", &kind.into(), "\"none\""));
    }
    let Some(kinds) = keys.list("layer_type")? else { return Ok(()) };
    match kinds.iter().find(|kind| kind.as_str() != Some("h")) {
        Some(kind) => Err(keys.unsupported("layer_type", kind, &format!("\"h\" for all {layers} layers"))),
        None => Ok(()),
    }
}

/// Rotary frequencies; none without `rope`. "ntk" (bloc97 2023) raises θ once and for all, for the longest text.
fn frequencies(keys: Keys, head_dim: usize) -> Result<Option<Vec<f32>>, ConfigError> {
    if !keys.flag("rope", false)? {
        return Ok(None);
    }
    let theta = keys.number("rope_theta", 10_000.0)?;
    if theta <= 0.0 || !head_dim.is_multiple_of(2) {
        return Err(ConfigError::Inconsistent(format!(
            "a rotary embedding of heads of {head_dim} with `rope_theta` {theta} is none: expected an even size and a number above 0"
        )));
    }
    let theta = match keys.text("rope_type")? {
        None | Some("default") => theta,
        Some("ntk") => {
            const FACTOR: f64 = 2.0;
            let key = "orig_max_position_embeddings";
            let Some(trained) = keys.optional_size(key)? else {
                return Err(keys.invalid(key, &Value::Null, "a size, as `rope_type` is \"ntk\""));
            };
            let stretch =
                FACTOR * keys.size("max_position_embeddings", 262_144)? as f64 / trained as f64 - (FACTOR - 1.0);
            if stretch <= 0.0 || head_dim <= 2 {
                return Err(ConfigError::Inconsistent(format!(
                    "`rope_type` \"ntk\" makes no sense for heads of {head_dim} and `max_position_embeddings` less than half of `{key}`"
                )));
            }
            theta * stretch.powf(head_dim as f64 / (head_dim as f64 - 2.0))
        }
        Some(other) => return Err(keys.unsupported("rope_type", &other.into(), "\"default\" or \"ntk\"")),
    };
    Ok(Some(rope::plain(theta, head_dim)))
}

/// By layer the tokens in sight, the current one included; none for all.
fn windows(keys: Keys, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let Some(window) = keys.optional_size("sliding_window")? else { return Ok(vec![None; layers]) };
    let Some(global) = layers_in(keys, "global_attn_idx", layers)? else {
        return Err(keys.invalid("global_attn_idx", &Value::Null, "a list of layers, as there is a `sliding_window`"));
    };
    Ok(global.into_iter().map(|global| (!global).then_some(window + 1)).collect())
}

/// By layer whose keys and values it reads.
fn kv_uses(keys: Keys, layers: usize, windows: &[Option<usize>]) -> Result<Vec<KvUse>, ConfigError> {
    let key = "kv_reuse_group";
    let mut groups: Vec<Vec<usize>> = Vec::new();
    if let Some(list) = keys.list(key)? {
        for group in list {
            let layer = |index: &Value| whole_number(index).map(|index| index as usize).filter(|&index| index < layers);
            let members: Option<Vec<usize>> = group.as_array().and_then(|group| group.iter().map(layer).collect());
            let Some(members) = members.filter(|members| !members.is_empty() && members.is_sorted_by(|a, b| a < b))
            else {
                return Err(keys.invalid(key, group, &format!("ascending layer numbers from 0 to {}", layers - 1)));
            };
            groups.push(members);
        }
    } else if let Some(every) =
        keys.get("kv_reuse_every_i_layer").filter(|every| every.as_f64().is_none_or(|x| x > 0.0))
    {
        let Some(every) = whole_number(every).map(|every| (every as usize).clamp(1, layers)) else {
            return Err(keys.invalid("kv_reuse_every_i_layer", every, "a whole number"));
        };
        groups = (0..layers).collect::<Vec<_>>().chunks(every).map(<[usize]>::to_vec).collect();
    }
    let mut uses = vec![KvUse::Own; layers];
    for group in groups.iter().filter(|group| group.len() > 1) {
        for (index, &layer) in group.iter().enumerate() {
            if uses[layer] != KvUse::Own {
                return Err(ConfigError::Inconsistent(format!("`{key}` names layer {layer} more than once")));
            }
            if windows[layer] != windows[group[0]] {
                return Err(ConfigError::Inconsistent(format!(
                    "layer {layer} reads the keys of layer {}, which forgets at another window: not supported",
                    group[0]
                )));
            }
            uses[layer] = match index {
                0 => KvUse::Lent { layer },
                _ => KvUse::Borrowed { layer: group[0] },
            };
        }
    }
    Ok(uses)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::parse;
    use super::*;

    /// What is said of nvidia/Hymba-1.5B-Base.
    fn base() -> Value {
        let mut groups: Vec<[usize; 2]> = (1..15).step_by(2).map(|layer| [layer, layer + 1]).collect();
        groups.extend((19..31).step_by(2).map(|layer| [layer, layer + 1]));
        let mut groups: Vec<Value> = groups.into_iter().map(|group| json!(group)).collect();
        groups.push(json!([16, 17, 18]));
        json!({
            "model_type": "hymba", "vocab_size": 32001, "hidden_size": 1600, "intermediate_size": 5504, "num_hidden_layers": 32,
            "num_attention_heads": 25, "num_key_value_heads": 5, "sliding_window": 1024, "global_attn_idx": [0, 15, 31],
            "kv_reuse_group": groups, "num_memory_tokens": 128, "mamba_dt_rank": 100, "rope": true, "rope_type": "ntk",
            "orig_max_position_embeddings": 2048, "max_position_embeddings": 8192, "kq_head_dim": -1, "v_head_dim": 128, "kq_norm": "none",
            "attn_hidden_size": -1, "num_experts": 1, "tie_word_embeddings": true, "memory_tokens_interspersed_every": 0,
        })
    }

    fn refusal(changes: Value) -> String {
        let mut config = base();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        parse(&config.to_string(), "config.json").err().unwrap_or_else(|| panic!("{changes} was accepted")).to_string()
    }

    #[test]
    fn the_published_model() {
        let spec = parse(&base().to_string(), "config.json").unwrap();
        assert_eq!((spec.meta_tokens, spec.layers.len(), spec.tied_embeddings), (128, 32, true));
        let part = |layer: usize| match &spec.layers[layer].parts[..] {
            [
                PartSpec { mixer: MixerSpec::Mamba1(mamba), .. },
                PartSpec { mixer: MixerSpec::Attention(attention), .. },
            ] => (mamba.clone(), attention.clone()),
            other => panic!("{other:?}"),
        };
        let (mamba, attention) = part(0);
        assert_eq!((attention.head_dim, attention.value_dim, mamba.channels), (64, 128, 3200));
        assert_eq!((attention.window, attention.sinks, attention.kv), (None, 0, KvUse::Own));
        assert_eq!(mamba.in_offset, 1600 + 320 + 640);
        let theta = 10_000f64 * 7f64.powf(64.0 / 62.0);
        let slowest = attention.rope.unwrap()[31];
        assert!((f64::from(slowest) / theta.powf(-62.0 / 64.0) - 1.0).abs() < 1e-6, "{slowest}");
        let (mamba, attention) = part(18);
        assert_eq!((attention.window, attention.sinks, attention.kv), (Some(1025), 128, KvUse::Borrowed { layer: 16 }));
        assert_eq!(mamba.in_offset, 1600);
        assert_eq!(part(16).1.kv, KvUse::Lent { layer: 16 });
        assert_eq!(part(15).1.kv, KvUse::Own);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (changes, word) in [
            (json!({"kq_norm": "perhead-rms"}), "kq_norm"),
            (json!({"kq_head_dim": 32}), "kq_head_dim"),
            (json!({"attn_hidden_size": 800}), "attn_hidden_size"),
            (json!({"num_experts": 4}), "num_experts"),
            (json!({"num_mamba": 2}), "num_mamba"),
            (json!({"mamba_proj_bias": true}), "mamba_proj_bias"),
            (json!({"kv_weight_reuse": true}), "kv_weight_reuse"),
            (json!({"memory_tokens_interspersed_every": 64}), "memory_tokens_interspersed_every"),
            (json!({"rope_type": "dynamic_ntk"}), "dynamic_ntk"),
            (json!({"orig_max_position_embeddings": null}), "orig_max_position_embeddings"),
            (json!({"max_position_embeddings": 512}), "ntk"),
            (json!({"global_attn_idx": null}), "global_attn_idx"),
            (json!({"layer_type": ["h", "m"]}), "layer_type"),
            (json!({"mlp_hidden_act": "relu2"}), "mlp_hidden_act"),
            (json!({"num_memory_tokens": -1}), "num_memory_tokens"),
            (json!({"kv_reuse_group": [[1, 40]]}), "kv_reuse_group"),
            (json!({"kv_reuse_group": [[2, 1]]}), "ascending"),
            (json!({"kv_reuse_group": [[1, 2], [2, 3]]}), "more than once"),
            (json!({"kv_reuse_group": [[0, 1]]}), "another window"),
            (json!({"v_head_dim": 64}), "v_head_dim"),
        ] {
            let error = refusal(changes);
            assert!(error.contains(word), "{error}");
        }
    }
}
