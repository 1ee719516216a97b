//! Every model that loads: its plan, its trace, its parity.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{case, failure, golden, json, list, run, succeed, trace};
use crate::support::{Golden, goldens};

/// Drawn matrices must be the mixer, as the laws have it.
const PICTURE: f32 = 1e-5;
/// Tokens of a trace.
const TOKENS: usize = 13;

/// All folders with a model and what the official implementation made of it.
fn folders() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(goldens()).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.join("golden.safetensors").is_file()).collect();
    folders.sort();
    assert!(folders.len() >= 50, "{folders:?}");
    folders
}

fn info(model: &Path) -> Value {
    json(&succeed(&["info", "--model", model.to_str().unwrap(), "--json"]))
}

/// The metadata of a trace.
fn metadata(file: &Path) -> Value {
    let bytes = std::fs::read(file).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["statescope"]).unwrap()
}

/// Sizes that a mixer's JSON gives to the axes of its tensors; none where the axis is another's business.
fn size(axis: &str, part: &Value, info: &Value) -> Option<u64> {
    let of = |key: &str| part[key].as_u64();
    match axis {
        "token" | "query_token" | "key_token" => Some(TOKENS as u64 + info["meta_tokens"].as_u64().unwrap()),
        "hidden" => info["hidden_size"].as_u64(),
        "vocabulary" => info["vocab_size"].as_u64(),
        "head" | "channel" => of("heads"),
        "kv_head" | "key_head" | "group" => of("groups"),
        "state" | "key_dim" => of("state_dim"),
        // Half of them stand for all with their conjugates; H3 with heads has as many for each channel of the key.
        "complex_state" => of("state_dim").map(|states| states / 2 / of("head_dim").unwrap()),
        "head_dim" => of("head_dim"),
        "rank" => of("rank"),
        "inner_gate" => of("rank").map(|filters| filters - 1),
        "figure" => Some(3),
        other => panic!("unknown axis {other}"),
    }
}

/// Everything that can be traced of every model: names, axes, sizes, finite values, matrices that are the mixer.
#[test]
fn every_quantity_of_every_model_is_traced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("t.safetensors");
    let tokens = list(&crate::support::ids(TOKENS, 30));
    for model in folders() {
        let (name, about) = (model.display(), info(&model));
        let args = ["--tokens", &tokens, "--probe", "all", "--out", out.to_str().unwrap()];
        succeed(&[&["trace", "--model", model.to_str().unwrap()], &args[..]].concat());
        let (trace, metadata) = (Golden::read(&out), metadata(&out));
        let tensors = metadata["tensors"].as_object().unwrap();
        assert_eq!(metadata["layers"], about["layers"], "{name}");
        for (tensor, described) in tensors.iter().filter(|(tensor, _)| *tensor != "tokens") {
            // layers.{i}.{point} or layers.{i}.{part}.{point}
            let path: Vec<&str> = tensor.split('.').collect();
            let number = |at: usize| path.get(at).and_then(|text| text.parse::<usize>().ok());
            let (layer, part) = (number(1).unwrap_or_default(), number(2));
            let parts = about["layers"][layer]["parts"].as_array().unwrap();
            let point = *path.last().unwrap();
            assert_eq!(part.is_some(), parts.len() > 1 && point != "resid" && point != "logits", "{name}: {tensor}");
            let part = &parts[part.unwrap_or_default()];

            let shape = trace.shape(tensor);
            let axes: Vec<&str> = described["axes"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
            let sizes: Vec<usize> = axes.iter().map(|axis| size(axis, part, &about).unwrap() as usize).collect();
            // At most 16 heads say how far they look.
            let sizes = match point {
                "reach" => [sizes[0], sizes[1].min(16), 3].to_vec(),
                _ => sizes,
            };
            assert_eq!(shape, sizes, "{name}: {tensor} {axes:?}");
            let values = trace.floats(tensor);
            assert!(values.iter().all(|value| value.is_finite()), "{name}: {tensor} is not finite");
            if point == "mixing_error" {
                let error = values.iter().fold(0.0f32, |worst, error| worst.max(*error));
                assert!(error <= PICTURE, "{name}: {tensor} is {error:e}");
            }
        }
        for (layer, about) in about["layers"].as_array().unwrap().iter().enumerate() {
            assert!(trace.has(&format!("layers.{layer}.resid")), "{name}: residual of layer {layer}");
            let parts = about["parts"].as_array().unwrap();
            for (index, part) in parts.iter().enumerate() {
                let place = if parts.len() > 1 { format!("{layer}.{index}") } else { layer.to_string() };
                let has = |point: &str| trace.has(&format!("layers.{place}.{point}"));
                let kind = part["kind"].as_str().unwrap();
                let mixes = kind != "feed_forward";
                let keeps_all = ["linear_attention", "short_conv", "attention", "hyena"].contains(&kind);
                let time_invariant = ["s4", "s4d", "h3", "h3_heads"].contains(&kind);
                let keyless = ["s4", "s4d", "slstm"].contains(&kind);
                let expected = [
                    ("out", true),
                    ("mixing", mixes),
                    ("reach", mixes),
                    ("key", mixes && !keyless),
                    ("state", mixes && !["attention", "hyena"].contains(&kind)),
                    ("delta", kind.starts_with("mamba") || time_invariant),
                    ("form", time_invariant),
                    ("beta", kind == "delta_rule" || kind == "rwkv7"),
                    ("decay", mixes && !keeps_all),
                    ("query", mixes && !keyless && !["rwkv4", "rg_lru"].contains(&kind)),
                    ("input_gate", ["rwkv4", "rg_lru", "mlstm", "slstm", "mamba3", "mamba3_mimo"].contains(&kind)),
                    ("bonus", ["rwkv4", "rwkv5", "rwkv6"].contains(&kind)),
                    ("entropy", kind == "attention"),
                    ("gate", part["gated"] == true),
                    ("inner_gate", kind == "hyena" && part["rank"].as_u64() > Some(1)),
                ];
                for (point, expected) in expected {
                    assert_eq!(has(point), expected, "{name}: {point} of layer {place}, {kind}");
                }
            }
        }
    }
}

/// Side by side, each mixer has its own tensors, and heads are chosen of those that have them.
#[test]
fn parts_have_their_own_tensors_and_heads() {
    let folder = tempfile::tempdir().unwrap();
    let probes = ["--probe", "mixing", "--probe", "mixing_error", "--probe", "resid", "--heads", "1,5"];
    let parts = trace("falcon_h1_a", folder.path(), &probes);
    let length = golden("falcon_h1_a").tokens("input_ids").len();
    assert_eq!(parts.shape("layers.1.0.mixing"), [2, length, length]);
    assert_eq!(parts.shape("layers.1.1.mixing"), [1, length, length], "attention has four heads");
    assert!(parts.has("layers.1.resid") && !parts.has("layers.1.0.resid"));

    let channels = trace("zamba_a", folder.path(), &["--probe", "mixing", "--channels", "20", "--layers", "2"]);
    assert_eq!((channels.shape("layers.2.0.mixing")[0], channels.shape("layers.2.1.mixing")[0]), (1, 4));
    // Zamba's channels fall into heads, each with its own key.
    let keys = trace("zamba_a", folder.path(), &["--probe", "key", "--layers", "0"]);
    assert_eq!(keys.shape("layers.0.key")[1..], [2, 5]);

    let out = folder.path().join("none.safetensors");
    let args = ["--tokens", "1,2", "--probe", "mixing", "--heads", "6", "--out", out.to_str().unwrap()];
    let line = failure(&[&["trace", "--model", &case("falcon_h1_a")], &args[..]].concat());
    assert!(line.contains("0 to 5"), "{line}");
}

#[test]
fn the_plan_shows_a_pattern_at_a_glance() {
    let patterns = [
        ("mamba_a", "MMM"),
        ("bamba_a", "MAM"),
        ("falcon_h1_a", "[MA][MA]"),
        ("zamba_a", "MM[MA]M[MA]"),
        ("nemotron_h_a", "M-AE"),
        ("lfm2_a", "CAC"),
        ("qwen3_next_a", "DAD"),
        ("gated_deltanet_a", "DAD"),
        ("gla_a", "LL"),
        ("recurrent_gemma_a", "RRA"),
    ];
    for (name, pattern) in patterns {
        assert_eq!(info(&goldens().join(name))["pattern"], pattern, "{name}");
        let text = succeed(&["info", "--model", &case(name)]);
        assert!(text.contains(&format!("pattern       {pattern}\n")), "{text}");
    }
    let layers = info(&goldens().join("nemotron_h_a"))["layers"].clone();
    assert_eq!(layers[3]["feed_forward"], json!({ "width": 12, "experts": 4, "experts_per_token": 2 }));
    assert_eq!((&layers[0]["feed_forward"], &layers[1]["mlp_dim"]), (&Value::Null, &json!(20)));
    let hybrid = info(&goldens().join("falcon_h1_a"));
    let kinds = hybrid["layers"][0]["parts"].as_array().unwrap().iter().map(|part| &part["kind"]);
    assert_eq!(kinds.collect::<Vec<_>>(), ["mamba2", "attention"]);
    let sum = |key: &str| -> u64 {
        let parts = hybrid["layers"].as_array().unwrap().iter().flat_map(|layer| layer["parts"].as_array().unwrap());
        parts.map(|part| part[key].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("state_bytes"), sum("kv_bytes_per_token")), (2304, 128));
    assert_eq!((&hybrid["state_bytes"], &hybrid["kv_bytes_per_token"]), (&json!(2304), &json!(128)));
    assert_eq!(info(&goldens().join("mistral_window"))["layers"][0]["window"], 8);

    // Equal layers are one line.
    let text = succeed(&["info", "--model", &case("mamba_a")]);
    assert!(text.contains("0–2     Mamba-1"), "{text}");
    let text = succeed(&["info", "--model", &case("falcon_h1_a")]);
    assert!(text.contains("+ attention"), "{text}");
    assert!(succeed(&["info", "--model", &case("jamba_a")]).contains("2 of 4 experts"));
}

/// The table that the README shows.
#[test]
fn parity_is_a_table() {
    let folders: Vec<String> = folders().iter().map(|folder| folder.to_str().unwrap().to_owned()).collect();
    let table = |more: &[&str]| {
        let args: Vec<&str> = ["parity"].into_iter().chain(folders.iter().map(String::as_str)).collect();
        succeed(&[&args[..], more].concat())
    };
    let all = table(&[]);
    assert_eq!(all.lines().count(), folders.len() + 2, "{all}");
    assert!(all.lines().all(|line| line.split('|').count() == 9), "{all}");
    assert!(all.contains("| mamba2 | Mamba-2 | mamba2_b |") && !all.contains("differs"), "{all}");
    let families = table(&["--by-family"]);
    for family in ["bamba", "falcon_h1", "jamba", "lfm2", "mamba", "nemotron_h", "qwen3_next", "samba", "zamba2"] {
        let line = |line: &&str| line.starts_with(&format!("| {family} |"));
        assert_eq!(families.lines().filter(line).count(), 1, "{families}");
    }
}

#[test]
fn what_is_not_exact_fails() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |file: &str, from: &str| {
        std::fs::copy(goldens().join(from).join(file), folder.path().join(file)).unwrap();
    };
    copy("config.json", "mamba2_b");
    copy("model.safetensors", "mamba2_b");
    let path = folder.path().to_str().unwrap();
    assert!(failure(&["parity", path]).contains("golden.safetensors"));
    // Weights that are a little off.
    copy("golden.safetensors", "mamba2_b");
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for value in bytes[header..].as_chunks_mut::<4>().0 {
        *value = (f32::from_le_bytes(*value) * 1.001).to_le_bytes();
    }
    std::fs::write(&weights, bytes).unwrap();
    let output = run(&["parity", path, &case("mamba2_a")]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("1 of 2 models") && stderr.contains("logits deviate"), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("mamba2_a"), "the table is printed all the same: {stdout}");
}
