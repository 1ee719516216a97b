//! The headless verbs as a user runs them: the binary itself, its output, its files and its exit codes.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Golden, deviation, goldens};

mod models;

const TOLERANCE: f32 = 1e-4;

/// The program, where no window can be opened.
fn statescope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_statescope"));
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").env_remove("WAYLAND_SOCKET").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    statescope().args(args).output().unwrap()
}

/// Stdout of a run that must succeed.
fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The one line on stderr of a run that must fail.
fn failure(args: &[&str]) -> String {
    one_line(&run(args), &format!("{args:?}"))
}

fn one_line(output: &Output, what: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{what}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    assert!(output.stdout.is_empty(), "{what} wrote to stdout");
    stderr
}

fn case(name: &str) -> String {
    goldens().join(name).to_str().unwrap().to_owned()
}

fn golden(name: &str) -> Golden {
    Golden::read(&goldens().join(name).join("golden.safetensors"))
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The last line of stdout as JSON.
fn json(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

/// Traces the golden input of a case into `folder`.
fn trace(name: &str, folder: &Path, more: &[&str]) -> Golden {
    let (model, tokens, out) = (case(name), list(&golden(name).tokens("input_ids")), folder.join("trace.safetensors"));
    let mut args = vec!["trace", "--model", &model, "--tokens", &tokens, "--out", out.to_str().unwrap()];
    args.extend(more);
    succeed(&args);
    Golden::read(&out)
}

#[test]
fn models_lists_the_four() {
    let stdout = succeed(&["models"]);
    let names: Vec<&str> = stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["mamba", "mamba2", "transformer", "hybrid"]);
    assert!(stdout.lines().all(|line| line.ends_with("M parameters")), "{stdout}");
}

#[test]
fn info_describes_every_layer() {
    let info = json(&succeed(&["info", "--model", &case("bamba_a"), "--json"]));
    assert_eq!(info["model_type"], "bamba");
    assert_eq!((&info["vocab_size"], &info["dtype"], &info["tokenizer"]), (&96.into(), &"f32".into(), &false.into()));
    let layers = info["layers"].as_array().unwrap();
    let kinds: Vec<&str> = layers.iter().map(|layer| layer["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["mamba2", "attention", "mamba2"]);
    let mamba2 = &layers[0];
    assert_eq!([&mamba2["heads"], &mamba2["head_dim"], &mamba2["state_dim"], &mamba2["groups"]], [8, 8, 16, 2]);
    assert_eq!(info["state_bytes"], 2 * mamba2["state_bytes"].as_u64().unwrap());
    assert_eq!(info["kv_bytes_per_token"], layers[1]["kv_bytes_per_token"]);
    let inside: u64 = layers.iter().map(|layer| layer["parameters"].as_u64().unwrap()).sum();
    assert!(info["parameters"].as_u64().unwrap() > inside && inside > 0);
    assert!(info["weights_bytes"].as_u64().unwrap() >= 4 * inside);

    let text = succeed(&["info", "--model", &case("bamba_a")]);
    assert!(text.contains("attention") && text.contains("Mamba-2") && text.contains("bamba"), "{text}");
}

/// Meta tokens stand before every text, are written to traces, and belong to no continuation.
#[test]
fn meta_tokens_come_first() {
    let (model, golden) = (case("hymba_a"), golden("hymba_a"));
    let info = json(&succeed(&["info", "--model", &model, "--json"]));
    assert_eq!((&info["meta_tokens"], &info["vocab_size"]), (&3.into(), &32.into()));
    let layers = info["layers"].as_array().unwrap();
    let cached: Vec<u64> =
        layers.iter().map(|layer| layer["parts"][1]["kv_bytes_per_token"].as_u64().unwrap()).collect();
    assert_eq!(cached, [96, 96, 96, 0]);

    let (prompt, greedy) = (golden.tokens("greedy_prompt"), golden.tokens("greedy"));
    let count = greedy.len().to_string();
    let args = ["generate", "--model", &model, "--temperature", "0", "--max-new-tokens", &count, "--json", "--tokens"];
    let made = json(&succeed(&[&args[..], &[&list(&prompt)]].concat()));
    assert_eq!(ids(&made["tokens"]), [&prompt[..], &greedy].concat());

    let folder = tempfile::tempdir().unwrap();
    // The golden's input begins with the meta tokens; without them they are put there.
    let whole = trace("hymba_a", folder.path(), &["--probe", "mixing"]);
    let tokens = golden.tokens("input_ids");
    assert_eq!(whole.tokens("tokens"), tokens);
    assert!(deviation(&whole.floats("logits"), &golden.floats("logits")) <= TOLERANCE);
    let out = folder.path().join("short.safetensors");
    let args = ["trace", "--model", &model, "--out", out.to_str().unwrap(), "--tokens", &list(&tokens[3..])];
    succeed(&args);
    assert_eq!(Golden::read(&out).tokens("tokens"), tokens);
    assert!(failure(&["generate", "--model", &model, "--tokens", "1,32"]).contains("outside the vocabulary"));
    assert!(failure(&["generate", "--model", &model, "--tokens", "32,33,34"]).contains("prompt is empty"));
}

#[test]
fn a_seed_repeats_a_text() {
    let model = case("mamba_text");
    let generate = |more: &[&str]| {
        let args = [&["generate", "--model", &model, "--prompt", "The gate", "--max-new-tokens", "24"], more].concat();
        succeed(&args)
    };
    let text = generate(&["--seed", "7", "--temperature", "1.5"]);
    assert_eq!(text, generate(&["--seed", "7", "--temperature", "1.5"]));
    assert_ne!(text, generate(&["--seed", "8", "--temperature", "1.5"]));
    let object = json(&generate(&["--seed", "7", "--temperature", "1.5", "--json"]));
    assert_eq!(text, format!("{}\n", object["text"].as_str().unwrap()));
    assert!(text.starts_with("The gate"));
    assert!(["length", "end_of_text"].contains(&object["finish_reason"].as_str().unwrap()));
    assert!(object["tokens_per_s"].as_f64().unwrap() > 0.0);
    // Threads change no bit.
    assert_eq!(text, generate(&["--seed", "7", "--temperature", "1.5", "--threads", "1"]));
}

#[test]
fn greedy_is_the_reference() {
    for name in ["mamba2_a", "mamba_a", "llama_a", "bamba_a"] {
        let (prompt, greedy) = (golden(name).tokens("greedy_prompt"), golden(name).tokens("greedy"));
        let (model, tokens, count) = (case(name), list(&prompt), greedy.len().to_string());
        let args =
            ["generate", "--model", &model, "--tokens", &tokens, "--temperature", "0", "--max-new-tokens", &count];
        let expected = [prompt, greedy].concat();
        let object = json(&succeed(&[&args[..], &["--json"]].concat()));
        assert_eq!(ids(&object["tokens"]), expected, "{name}");
        assert_eq!((&object["finish_reason"], &object["text"]), (&"length".into(), &Value::Null));
        assert_eq!(succeed(&args), list(&expected) + "\n", "{name}: ids where there is no tokenizer");
    }
}

/// Characters split over tokens arrive whole.
#[test]
fn text_is_streamed_whole() {
    let samples = std::fs::read_to_string(goldens().join("tokenizer/samples.json")).unwrap();
    let samples: Value = serde_json::from_str(&samples).unwrap();
    for sample in samples.as_array().unwrap() {
        let (text, ids) = (sample["text"].as_str().unwrap(), list(&ids(&sample["ids"])));
        if ids.is_empty() || text.contains("<|") {
            continue;
        }
        let stdout = succeed(&["generate", "--model", &case("mamba_text"), "--tokens", &ids, "--max-new-tokens", "0"]);
        assert_eq!(stdout, format!("{text}\n"));
    }
}

#[test]
fn beyond_the_trained_context_is_marked() {
    let tokens = list(&crate::support::ids(250, 96));
    let note = |count: &str| {
        let output = run(&["generate", "--model", &case("llama_a"), "--tokens", &tokens, "--max-new-tokens", count]);
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(note("6"), "");
    assert!(note("12").contains("256 tokens"));
}

#[test]
fn bad_input_is_one_clear_line() {
    let (text, ids) = (case("mamba_text"), case("mamba2_a"));
    let generate = |more: &[&str]| failure(&[&["generate", "--model"], more].concat());
    assert!(generate(&["/no/such/folder", "--tokens", "1"]).contains("/no/such/folder"));
    assert!(generate(&["builtin:gpt9", "--tokens", "1"]).contains("gpt9"));
    assert!(generate(&[&text, "--prompt", ""]).contains("empty"));
    assert!(generate(&[&ids, "--tokens", ""]).contains("empty"));
    assert!(generate(&[&ids, "--tokens", "1,96"]).contains("96"));
    assert!(generate(&[&ids, "--tokens", "1,two,3"]).contains("two"));
    assert!(generate(&[&ids, "--tokens", "-1"]).contains("-1"));
    assert!(generate(&[&ids, "--tokens", "1,,2"]).contains("--tokens"));
    assert!(generate(&[&ids, "--prompt", "text"]).contains("tokenizer.json"));
    assert!(generate(&[&ids]).contains("--prompt"));
    assert!(generate(&[&text, "--prompt", "a", "--tokens", "1"]).contains("--tokens"));
    assert!(generate(&[&ids, "--tokens", "1", "--temperature", "-1"]).contains("temperature"));
    assert!(generate(&[&ids, "--tokens", "1", "--temperature", "NaN"]).contains("temperature"));
    assert!(generate(&[&ids, "--tokens", "1", "--top-p", "0"]).contains("top-p"));
    assert!(generate(&[&ids, "--tokens", "1", "--top-k", "0"]).contains("top-k"));
    assert!(generate(&[&ids, "--tokens", "1", "--max-new-tokens", "many"]).contains("many"));
    assert!(generate(&[&ids, "--tokens", "1", "--dtype", "q4"]).contains("bf16"));
    if let Err(reason) = statescope_engine::runner::find_gpu() {
        assert!(generate(&[&ids, "--tokens", "1", "--device", "cuda"]).contains(&reason.to_string()));
    }
    assert!(generate(&[&ids, "--tokens", "1", "--gpu-memory", "2"]).contains("--device cuda"));
    assert!(generate(&[&ids, "--tokens", "1", "--gpu-memory", "0"]).contains("0.5"));
    assert!(generate(&[&ids, "--tokens", "1", "--gpu-memory", "NaN"]).contains("--gpu-memory"));
    assert!(generate(&[&ids, "--tokens", "1", "--threads", "0"]).contains("threads"));
    assert!(failure(&["generate", "--tokens", "1"]).contains("--model"));
    assert!(failure(&["bench", "--model", &ids, "--generate", "0"]).contains("--generate"));
    assert!(failure(&["bench", "--model", "/no/such/folder"]).contains("/no/such/folder"));
    assert!(failure(&["explain"]).contains("explain"));
}

#[test]
fn bad_traces_are_one_clear_line_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (case("mamba2_a"), folder.path().join("t.safetensors"));
    let out = out.to_str().unwrap();
    let trace = |out: &str, more: &[&str]| {
        failure(&[&["trace", "--model", &model, "--tokens", "1,2,3", "--out", out], more].concat())
    };
    let line = trace(out, &["--probe", "magic"]);
    assert!(line.contains("magic") && line.contains("write_norm") && line.contains("mixing_error"), "{line}");
    assert!(trace(out, &["--probe", "entropy"]).contains("entropy"));
    assert!(trace(out, &["--layers", "0,9"]).contains("9"));
    assert!(trace(out, &["--probe", "mixing", "--heads", "6"]).contains("0 to 5"));
    assert!(trace(out, &["--probe", "mixing", "--channels", "1"]).contains("--heads"));
    assert!(trace(out, &["--every", "4"]).contains("3 tokens"));
    assert!(trace(out, &["--every", "0"]).contains("--every"));
    assert!(trace(out, &["--generate", "1000000000000"]).contains("GiB"));
    assert!(trace(folder.path().to_str().unwrap(), &[]).contains("not an ordinary file"));
    assert!(trace(folder.path().join("none/t.safetensors").to_str().unwrap(), &[]).contains("does not exist"));
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

/// A disk that is full in the middle of the file: a limit on the size of files does the same.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_trace() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("t.safetensors");
    std::fs::write(&out, "old").unwrap();
    let script = r#"trap '' XFSZ; ulimit -f 4; exec "$0" trace --model "$1" --tokens 1,2,3,4,5,6,7,8 --out "$2""#;
    let args = ["-c", script, env!("CARGO_BIN_EXE_statescope"), &case("mamba2_a"), out.to_str().unwrap()];
    let output = Command::new("sh").args(args).output().unwrap();
    assert!(one_line(&output, "a full disk").contains("t.safetensors"));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "old");
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}

#[test]
fn a_trace_is_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = [
        ("delta", "delta"),
        ("B", "key"),
        ("C", "query"),
        ("x", "value"),
        ("y", "core"),
        ("out", "out"),
        ("state", "state"),
        ("mixing", "mixing"),
    ];
    for name in ["mamba2_a", "mamba_a", "llama_a", "bamba_a"] {
        let golden = golden(name);
        let mut probes: Vec<String> =
            ["resid", "key", "query", "value", "core", "out", "mixing"].map(String::from).to_vec();
        probes.extend(["delta", "state"].into_iter().filter(|_| name != "llama_a").map(String::from));
        let mut args: Vec<&str> = probes.iter().flat_map(|probe| ["--probe", probe]).collect();
        let channels = golden.has("mixer.0.mixing_channels").then(|| list(&golden.tokens("mixer.0.mixing_channels")));
        args.extend(channels.iter().flat_map(|channels| ["--channels", channels]));
        let trace = trace(name, folder.path(), &args);
        assert_eq!(trace.tokens("tokens"), golden.tokens("input_ids"));
        let same = |ours: &str, theirs: &str| {
            assert_eq!(trace.shape(ours), golden.shape(theirs), "{name}: {ours}");
            let error = deviation(&trace.floats(ours), &golden.floats(theirs));
            assert!(error <= TOLERANCE, "{name}: {ours} deviates by {error:e}");
        };
        same("logits", "logits");
        for layer in 0..4 {
            for (theirs, ours) in pairs {
                let theirs = format!("mixer.{layer}.{theirs}");
                if golden.has(&theirs) {
                    same(&format!("layers.{layer}.{ours}"), &theirs);
                }
            }
            let theirs = format!("resid.{layer}");
            if golden.has(&theirs) {
                same(&format!("layers.{layer}.resid"), &theirs);
            }
        }
    }
}

/// mixing · value = core, per head; mixing_error says the same.
#[test]
fn a_traced_matrix_is_the_mixer() {
    let folder = tempfile::tempdir().unwrap();
    let probes = ["--probe", "mixing", "--probe", "mixing_error", "--probe", "value", "--probe", "core"];
    let trace = trace("mamba2_a", folder.path(), &[&probes[..], &["--heads", "1,4"]].concat());
    let (tokens, heads, width) = (70, [1, 4], 16);
    let (value, core) = (trace.floats("layers.1.value"), trace.floats("layers.1.core"));
    let mixing = trace.floats("layers.1.mixing");
    assert_eq!(trace.shape("layers.1.mixing"), [2, tokens, tokens]);
    assert_eq!(trace.shape("layers.1.mixing_error"), [tokens, 2]);
    for (head, matrix) in heads.iter().zip(mixing.chunks_exact(tokens * tokens)) {
        let at = |data: &[f32], token: usize, p: usize| data[(token * 6 + head) * width + p];
        let (mut product, mut expected) = (Vec::new(), Vec::new());
        for (token, row) in matrix.chunks_exact(tokens).enumerate() {
            assert!(row[token + 1..].iter().all(|m| *m == 0.0), "causal");
            for p in 0..width {
                product.push(row.iter().enumerate().map(|(s, m)| m * at(&value, s, p)).sum::<f32>());
                expected.push(at(&core, token, p));
            }
        }
        let error = deviation(&product, &expected);
        assert!(error <= 1e-5, "head {head}: {error:e}");
    }
    assert!(trace.floats("layers.1.mixing_error").iter().all(|error| *error <= 1e-5));
}

#[test]
fn states_along_the_text_and_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let last = trace("mamba2_a", folder.path(), &["--probe", "state"]);
    let every = trace(
        "mamba2_a",
        folder.path(),
        &["--probe", "state", "--probe", "state_norm", "--every", "35", "--layers", "1"],
    );
    assert_eq!(every.shape("layers.1.state"), [2, 6, 16, 16]);
    let (states, end) = (every.floats("layers.1.state"), last.floats("layers.1.state"));
    assert_eq!(states[6 * 256..], end, "the second is the last");
    assert!(!every.has("layers.0.state") && last.has("layers.0.state"));
    let norms = every.floats("layers.1.state_norm");
    for (index, state) in states.chunks_exact(256).enumerate() {
        let norm = state.iter().map(|s| s * s).sum::<f32>().sqrt();
        let stored = norms[[34, 69][index / 6] * 6 + index % 6];
        assert!((norm - stored).abs() <= 1e-5 * norm, "{norm} and {stored}");
    }

    let bytes = std::fs::read(folder.path().join("trace.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    assert_eq!(metadata["model_type"], "mamba2");
    let all: Value = serde_json::from_str(&metadata["statescope"]).unwrap();
    assert_eq!(all["layer_kinds"], serde_json::json!(["mamba2", "mamba2"]));
    let state = &all["tensors"]["layers.1.state"];
    assert_eq!(state["axes"], serde_json::json!(["snapshot", "head", "head_dim", "state"]));
    assert_eq!(state["positions"], serde_json::json!([34, 69]));
    assert!(state["meaning"].as_str().unwrap().contains("state"));
    assert_eq!(all["format_version"], metadata["format_version"].as_str());
}

/// What is generated is traced like what was read, and is what `generate` makes.
#[test]
fn a_trace_goes_on_generating() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens, model) = (list(&crate::support::ids(130, 96)), case("bamba_a"));
    let common = ["--model", &model, "--tokens", &tokens, "--seed", "5", "--temperature", "1.2"];
    let made = json(&succeed(&[&["generate", "--max-new-tokens", "9", "--json"], &common[..]].concat()));
    let out = folder.path().join("t.safetensors");
    let trace =
        |out: &Path| succeed(&[&["trace", "--generate", "9", "--out", out.to_str().unwrap()], &common[..]].concat());
    trace(&out);
    let traced = Golden::read(&out);
    assert_eq!(traced.tokens("tokens"), ids(&made["tokens"]));
    assert_eq!(traced.shape("logits"), [139, 96]);
    assert!(traced.has("layers.0.delta") && !traced.has("layers.1.delta"), "attention has no Δ");
    // The same tokens as a prompt give the same numbers.
    let whole = list(&traced.tokens("tokens"));
    let again = folder.path().join("again.safetensors");
    succeed(&["trace", "--model", &model, "--tokens", &whole, "--out", again.to_str().unwrap()]);
    let again = Golden::read(&again);
    for name in ["logits", "layers.2.resid", "layers.2.state", "layers.0.decay"] {
        assert!(deviation(&traced.floats(name), &again.floats(name)) <= 1e-5, "{name}");
    }
    let twice = folder.path().join("twice.safetensors");
    trace(&twice);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&twice).unwrap(), "two traces are the same bytes");
}

#[test]
fn bench_says_all_it_measured() {
    let model = case("mamba2_a");
    for probes in ["none", "screen", "all"] {
        let args =
            ["bench", "--model", &model, "--prompt-len", "20", "--generate", "8", "--pairs", "1", "--probes", probes];
        let object = json(&succeed(&[&args[..], &["--json"]].concat()));
        let keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "prefill_tokens_per_s",
                "decode_tokens_per_s",
                "decode_tokens_per_s_without_probes",
                "time_to_first_token_ms",
                "peak_rss_bytes",
                "peak_device_bytes",
                "device_bytes_allowed",
                "weights_bytes",
                "state_bytes",
                "probes",
                "probes_cost_percent",
                "pairs",
                "device",
                "device_name",
                "on_cpu",
                "dtype",
                "threads"
            ]
        );
        assert!(keys[..4].iter().all(|key| object[key].as_f64().unwrap() > 0.0), "{object}");
        assert_eq!(object["probes"], probes);
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let args = ["generate", "--model", &case("mamba_text"), "--prompt", "The", "--max-new-tokens", "4000"];
    let mut child = statescope().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 3]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn without_a_display_the_verbs_are_named() {
    let line = failure(&[]);
    assert!(["models", "info", "generate", "trace", "bench"].iter().all(|verb| line.contains(verb)), "{line}");
    assert!(succeed(&["--help"]).contains("generate"));
}
