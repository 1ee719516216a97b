//! Models on a GPU against the CPU and against what the official implementation recorded. Skipped by name where there is no GPU; to run them:
//! `cargo test --workspace --features cuda -- --ignored cuda`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::SafeTensors;
use statescope_kernels::cuda::Gpu;

use super::Executor;
use crate::hooks::{Depth, Hooks, Observer};
use crate::model::{Logits, Model};
use crate::open::open_model;
use crate::place::Place;
use crate::protocol::{Device, ModelInfo, ModelSource, Point, TokenId};
use crate::runner::Runner;
use crate::sampler::Sampling;
use crate::session::{Budgets, Session};
use crate::tape::Tape;

/// max|a − b| / max|b| of f32 runs.
const TOLERANCE: f32 = 1e-4;

fn root() -> PathBuf {
    let at_run_time = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    at_run_time.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).join("..")
}

/// Folders with a recording beside the model.
fn cases() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(root().join("tests/goldens")).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = folders.filter(|folder| folder.join("golden.safetensors").is_file()).collect();
    cases.sort();
    cases
}

fn open(source: &ModelSource) -> (Arc<Model>, ModelInfo) {
    let (model, _, info) = open_model(source, None, |_| true).unwrap_or_else(|e| panic!("{source}: {e}"));
    (Arc::new(model), info)
}

/// The built-in models, of their folders: a build without them tests them, too.
pub(super) fn builtins() -> Vec<(Arc<Model>, ModelInfo)> {
    let folder = root().join("assets/models");
    ["mamba", "mamba2", "hybrid", "transformer"].map(|name| open(&ModelSource::Path(folder.join(name)))).into()
}

pub(super) fn ids(count: usize, vocab: usize) -> Vec<TokenId> {
    (0..count).map(|i| ((i * 7919 + i * i * 31 + 13) % vocab) as TokenId).collect()
}

fn tokens_of(golden: &SafeTensors<'_>, name: &str) -> Vec<TokenId> {
    let data = golden.tensor(name).unwrap();
    data.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as TokenId).collect()
}

/// By layer, part and point all rows.
#[derive(Default)]
struct Seen(HashMap<(usize, usize, Point), Vec<f32>>);

impl Observer for Seen {
    fn wants(&self, _layer: usize) -> bool {
        true
    }

    fn observe(&mut self, layer: usize, part: usize, point: Point, _first: usize, _rows: usize, values: &[f32]) {
        self.0.entry((layer, part, point)).or_default().extend_from_slice(values);
    }
}

fn deviation(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len(), "lengths differ");
    if ours.iter().chain(theirs).any(|x| x.is_nan()) {
        return f32::INFINITY;
    }
    let scale = theirs.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let error = ours.iter().zip(theirs).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    if scale > 0.0 { error / scale } else { error }
}

/// Logits of `tokens` read in pieces that end at `cuts`.
fn read(runner: &mut Runner, tokens: &[TokenId], cuts: &[usize], mut seen: Option<&mut Seen>) -> Vec<f32> {
    let (mut memory, mut logits, mut start) = (runner.memory().unwrap(), Vec::new(), 0);
    for &end in cuts.iter().chain([&tokens.len()]) {
        let mut piece = Vec::new();
        let mut hooks = match &mut seen {
            Some(seen) => Hooks::observing(*seen),
            None => Hooks::none(),
        };
        runner.forward(&tokens[start..end], start, &mut memory, &mut hooks, Logits::All(&mut piece)).unwrap();
        logits.append(&mut piece);
        start = end;
    }
    logits
}

fn gpu(model: &Arc<Model>, info: &ModelInfo) -> Runner {
    let place = Place::open(Device::Cuda, None).unwrap_or_else(|error| panic!("{error}"));
    Runner::open(model.clone(), &place, &mut info.clone()).unwrap_or_else(|error| panic!("{error}"))
}

/// The largest deviations of logits and of any recorded quantity from the CPU, over several ways to cut the text.
fn compare(name: &str, model: &Arc<Model>, info: &ModelInfo, tokens: &[TokenId]) -> (f32, f32) {
    let (mut runner, mut cpu) = (gpu(model, info), Runner::cpu(model.clone()));
    let mut expected = Seen::default();
    let all = read(&mut cpu, tokens, &[], Some(&mut expected));
    let single: Vec<usize> = (1..tokens.len()).collect();
    let (mut worst, mut worst_seen) = (0.0f32, (0.0f32, None));
    for cuts in [&[][..], &[1], &[7, 8], &single] {
        let mut seen = Seen::default();
        worst = worst.max(deviation(&read(&mut runner, tokens, cuts, Some(&mut seen)), &all));
        // Which form of a convolution ran says how the text was cut, not what came of it.
        for (place, values) in expected.0.iter().filter(|(place, _)| place.2 != Point::Form) {
            let found = seen.0.get(place).unwrap_or_else(|| panic!("{name}: {place:?} is not recorded on the GPU"));
            let error = deviation(found, values);
            if error > worst_seen.0 {
                worst_seen = (error, Some(*place));
            }
        }
        assert!(seen.0.len() == expected.0.len(), "{name}: more is recorded on the GPU than on the CPU");
    }
    println!(
        "{name}: logits {worst:.1e}, quantities {:.1e} {:?}, {:?}",
        worst_seen.0,
        worst_seen.1,
        gpu_notes(model, info)
    );
    (worst, worst_seen.0)
}

fn executor(model: &Arc<Model>, info: &ModelInfo) -> Executor {
    Executor::open(model.clone(), info, &Gpu::open(0).unwrap(), None).unwrap()
}

fn gpu_notes(model: &Arc<Model>, info: &ModelInfo) -> Vec<String> {
    executor(model, info).info().on_cpu
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_runs_every_family_as_the_cpu_does() {
    let mut wrong = Vec::new();
    for case in cases() {
        let (name, (model, info)) =
            (case.file_name().unwrap().to_string_lossy().into_owned(), open(&ModelSource::Path(case.clone())));
        let bytes = std::fs::read(case.join("golden.safetensors")).unwrap();
        let tokens = tokens_of(&SafeTensors::deserialize(&bytes).unwrap(), "input_ids");
        let (logits, quantities) = compare(&name, &model, &info, &tokens);
        // Not `>`: a NaN is no parity.
        if !(logits <= TOLERANCE && quantities <= 5.0 * TOLERANCE) {
            wrong.push(format!("{name}: logits {logits:.1e}, quantities {quantities:.1e}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_agrees_with_the_official_implementation() {
    let mut wrong = Vec::new();
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let (model, info) = open(&ModelSource::Path(case.clone()));
        let bytes = std::fs::read(case.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = golden.tensor(name).unwrap();
            data.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let tokens = |name: &str| tokens_of(&golden, name);
        let mut runner = gpu(&model, &info);
        let input = tokens("input_ids");
        for cuts in [&[][..], &[1, 2]] {
            let mut seen = Seen::default();
            let error = deviation(&read(&mut runner, &input, cuts, Some(&mut seen)), &floats("logits"));
            if error > TOLERANCE || error.is_nan() {
                wrong.push(format!("{name}: logits {error:.1e}"));
            }
            for layer in (0..model.layer_count()).filter(|layer| golden.tensor(&format!("resid.{layer}")).is_ok()) {
                let error = deviation(&seen.0[&(layer, 0, Point::Resid)], &floats(&format!("resid.{layer}")));
                if error > TOLERANCE || error.is_nan() {
                    wrong.push(format!("{name}: residual {layer} {error:.1e}"));
                }
            }
        }
        if golden.tensor("greedy").is_ok() {
            let expected = tokens("greedy");
            let mut session = Session::on(runner, None, Budgets::default()).unwrap();
            if generated(&mut session, &tokens("greedy_prompt"), expected.len()) != expected {
                wrong.push(format!("{name}: another continuation"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

pub(super) fn generated(session: &mut Session, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
    let greedy = Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };
    session.start(prompt).unwrap();
    session.read_all();
    let made = (0..count).map(|_| {
        let token = session.extend(&greedy).unwrap();
        session.read_all();
        token
    });
    made.collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_runs_the_builtin_models_as_the_cpu_does() {
    for (model, info) in builtins() {
        let (logits, quantities) = compare(&info.name, &model, &info, &ids(300, info.vocab_size));
        assert!(logits <= TOLERANCE && quantities <= 5.0 * TOLERANCE, "{}: {logits:e}, {quantities:e}", info.name);
        let prompt = ids(40, info.vocab_size);
        let mut there = Session::on(gpu(&model, &info), None, Budgets::default()).unwrap();
        let mut here = Session::new(model.clone(), None, Budgets::default());
        assert_eq!(generated(&mut there, &prompt, 60), generated(&mut here, &prompt, 60), "{}: text", info.name);
    }
}

/// Looking, asking for all logits and replaying from a graph change no bit; a text reached by seeking has the bits of the first run.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_observing_and_seeking_change_no_bit() {
    for (model, info) in builtins() {
        let tokens = ids(200, info.vocab_size);
        let mut runner = gpu(&model, &info);
        let cuts: Vec<usize> = [130].into_iter().chain(131..200).collect();
        let plain = read(&mut runner, &tokens, &cuts, None);
        let mut seen = Seen::default();
        assert_eq!(read(&mut runner, &tokens, &cuts, Some(&mut seen)), plain, "{}: looking", info.name);
        let (mut memory, mut last) = (runner.memory().unwrap(), Vec::new());
        runner.forward(&tokens[..130], 0, &mut memory, &mut Hooks::none(), Logits::Last(&mut last)).unwrap();
        assert_eq!(last, plain[129 * info.vocab_size..130 * info.vocab_size], "{}: the last row alone", info.name);

        let mut session = Session::on(gpu(&model, &info), None, Budgets::default()).unwrap();
        generated(&mut session, &tokens[..150], 2200);
        let (end, logits) = (session.position(), session.logits().to_vec());
        let state = session.state_at(0, 0, end - 1);
        for position in [140, 151, 1000] {
            session.seek(position).unwrap();
            session.read_all();
        }
        session.seek(end).unwrap();
        session.read_all();
        assert!(session.failure().is_none() && session.logits() == logits, "{}: seeking", info.name);
        assert_eq!(session.state_at(0, 0, end - 1), state, "{}: seeking", info.name);
    }
}

/// A token chosen where the logits are is the one that the sampler draws from all of them.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_chooses_the_samplers_tokens() {
    let (model, info) = builtins().remove(0);
    let plain = Sampling { temperature: 0.8, top_k: None, top_p: None, seed: 5 };
    let kinds = [
        plain,
        Sampling { temperature: 0.0, ..plain },
        Sampling { top_k: Some(40), ..plain },
        Sampling { top_k: Some(20), top_p: Some(0.7), ..plain },
        Sampling { top_k: Some(100), ..plain },
        Sampling { top_p: Some(0.9), ..plain },
    ];
    // As long as the vocabulary, and shorter: a tokenizer may know fewer tokens than the model has rows.
    for size in [None, Some(info.vocab_size - 7)] {
        for sampling in kinds {
            let mut there = Session::on(gpu(&model, &info), size, Budgets::default()).unwrap();
            there.start(&ids(30, 200)).unwrap();
            there.read_all();
            for step in 0..40 {
                // Asking for all logits changes nothing.
                let logits = (step % 3 == 0).then(|| there.logits().to_vec());
                let position = there.position();
                let token = there.extend(&sampling).unwrap();
                let logits = logits.unwrap_or_else(|| there.logits().to_vec());
                let limit = size.unwrap_or(logits.len());
                assert_eq!(token, sampling.sample(&logits[..limit], position), "{sampling:?}, step {step}");
                there.read_all();
            }
        }
    }
}

/// What a token leaves is handed over while the next one is computed: late, but whole.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_records_no_less_when_it_is_a_token_behind() {
    let greedy = Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };
    for (model, info) in builtins() {
        let make = |ahead: bool| {
            let mut session = Session::on(gpu(&model, &info), None, Budgets::default()).unwrap();
            session.rank(5);
            session.look_at(|layer| if layer == 1 { Depth::Everything } else { Depth::Strength });
            session.start(&ids(40, info.vocab_size)).unwrap();
            session.read_all();
            for step in 0..30 {
                session.extend(&greedy).unwrap();
                if ahead {
                    session.advance_ahead()
                } else {
                    session.advance()
                };
                let recorded = session.tape().part(1, 0).positions().end;
                let behind = session.position() - recorded;
                assert!(behind <= usize::from(ahead), "{}: {behind} behind after step {step}", info.name);
                if step % 10 == 9 {
                    session.settle();
                    assert_eq!(session.tape().part(1, 0).positions().end, session.position());
                }
            }
            session
        };
        let (behind, prompt) = (make(true), make(false));
        for layer in 0..model.layer_count() {
            let (ours, wanted) = (behind.tape().part(layer, 0), prompt.tape().part(layer, 0));
            assert_eq!(ours.positions(), wanted.positions(), "{}: layer {layer}", info.name);
            let points = [Point::Gate, Point::Conv, Point::Delta, Point::Core, Point::Resid, Point::Write];
            for (position, point) in ours.positions().flat_map(|position| points.map(|point| (position, point))) {
                let (ours, wanted) = (ours.row(point, position), wanted.row(point, position));
                assert_eq!(ours, wanted, "{}: layer {layer}, {point:?} of {position}", info.name);
            }
        }
    }
}

/// What a large model records of layers out of sight: how strongly they write, and all of it after a replay.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_records_strengths_of_layers_out_of_sight() {
    for (model, info) in builtins() {
        let tokens = ids(200, info.vocab_size);
        let parts = model.part_counts();
        let (mut runner, mut whole, mut lean) =
            (gpu(&model, &info), Tape::new(&parts, usize::MAX), Tape::lean(&parts, usize::MAX));
        lean.look_at(|layer| if layer == 1 { Depth::Everything } else { Depth::Strength });
        lean.truncate(0);
        for tape in [&mut whole, &mut lean] {
            let mut memory = runner.memory().unwrap();
            for range in [0..150, 150..151, 151..152, 152..200] {
                let mut logits = Vec::new();
                let mut hooks = Hooks::observing(tape);
                let tokens = &tokens[range.clone()];
                runner.forward(tokens, range.start, &mut memory, &mut hooks, Logits::Last(&mut logits)).unwrap();
            }
        }
        for layer in 0..model.layer_count() {
            let (mixer, all) = (model.mixer(layer, 0), whole.part(layer, 0));
            assert_eq!(lean.part(layer, 0).positions(), 0..200, "{} layer {layer}", info.name);
            if layer == 1 {
                assert_eq!(lean.part(layer, 0).row(Point::Core, 151), all.row(Point::Core, 151));
                continue;
            }
            for position in [0, 149, 150, 151, 199] {
                let mut strengths = Vec::new();
                assert!(mixer.derive(Point::Write, all, position, 0..mixer.geometry().heads, &mut strengths));
                let expected = strengths.iter().map(|s| s * s).sum::<f32>().sqrt();
                let found = lean.part(layer, 0).row(Point::Write, position).unwrap();
                assert!((found[0] - expected).abs() <= 1e-4 * expected, "{}: {found:?}, {expected}", info.name);
            }
        }
    }
}

/// What bf16 activations of a prompt cost: logits stay within a few hundredths of the largest.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_prompts_in_bf16_stay_close() {
    for (model, info) in builtins() {
        let tokens = ids(600, info.vocab_size);
        let (mut memory, mut logits) = (model.slots(), Vec::new());
        model.forward(&tokens, 0, &mut memory, &mut Hooks::none(), Logits::All(&mut logits));
        let mut executor = executor(&model, &info);
        executor.read_in_halves();
        let (mut memory, mut halves) = (executor.memory().unwrap(), Vec::new());
        executor.forward(&tokens, 0, &mut memory, &mut Hooks::none(), Logits::All(&mut halves)).unwrap();
        let error = deviation(&halves, &logits);
        println!("{} in bf16: logits {error:.1e}", info.name);
        assert!(error <= 5e-2, "{}: {error:e}", info.name);
    }
}
