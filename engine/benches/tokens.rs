//! Tokens a second that a model reads and makes, without a window, as one JSON line: `cargo bench -p statescope-engine --bench tokens --
//! --model M [--dtype D] [--device cuda] [--threads N] [--prefill 512,4096] [--decode 64] [--depth 0] [--repeat 3] [--temperature 0]
//! [--look] [--limits]`.
//!
//! The session is the one that the window drives; with `--look` everything of the middle layer and the strength of all others is recorded,
//! and likely tokens are ranked. A list of `--depth` measures how fast tokens are made after texts of those lengths.
//! `--limits` measures what the machine reads from memory and multiplies instead.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use statescope_engine::hooks::Depth;
use statescope_engine::open::open_for;
use statescope_engine::place::Place;
use statescope_engine::protocol::{Device, Geometry, ModelInfo, ModelSource, TokenId};
use statescope_engine::runner::Runner;
use statescope_engine::sampler::Sampling;
use statescope_engine::session::{Budgets, Session};
use statescope_kernels::{limits, set_threads};

/// The app's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The value that follows `name` on the command line.
fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

fn number(name: &str, default: usize) -> usize {
    option(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn numbers(name: &str) -> Vec<usize> {
    let text = option(name).unwrap_or_default();
    let items = text.split(',').filter(|item| !item.is_empty());
    items.map(|item| item.parse().unwrap_or_else(|_| panic!("{name} is no list of numbers: {text}"))).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

fn timed(call: impl FnOnce()) -> f64 {
    let now = Instant::now();
    call();
    now.elapsed().as_secs_f64()
}

/// Bytes that this process holds now; 0 where the system does not say.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Multiply-adds of a token besides those with weights, on average over the first `tokens`: with the keys and values in sight of attention,
/// and of a recurrence three for each number of its state, which decays, is written to and read.
fn mixing(info: &ModelInfo, tokens: usize) -> u64 {
    let in_sight = |window: Option<usize>| {
        let all = (1..=tokens).map(|count| count.min(window.unwrap_or(usize::MAX)));
        all.sum::<usize>() / tokens.max(1)
    };
    let parts = info.layers.iter().flat_map(|layer| &layer.parts);
    let of_part = |part: &Geometry| match part.kv_bytes_per_token {
        0 => 3 * part.heads * part.head_dim * part.state_dim,
        _ => part.heads * (part.state_dim + part.head_dim) * in_sight(part.window),
    };
    parts.map(of_part).sum::<usize>() as u64
}

fn main() {
    set_threads(number("--threads", std::thread::available_parallelism().map_or(1, usize::from)));
    if std::env::args().any(|a| a == "--limits") {
        let (bandwidth, rate) = (limits::read_bandwidth(), limits::multiply_adds());
        println!("{}", json!({ "read_bytes_per_s": bandwidth, "multiply_adds_per_s": rate }));
        return;
    }
    let Some(model) = option("--model") else { return println!("give --model M") };
    let source: ModelSource = model.parse().unwrap_or_else(|never| match never {});
    let dtype = option("--dtype").map(|text| text.parse().unwrap_or_else(|error| panic!("{error}")));
    let loaded = Instant::now();
    let device = if option("--device").as_deref() == Some("cuda") { Device::Cuda } else { Device::Cpu };
    let place = Place::open(device, None).unwrap_or_else(|error| panic!("{error}"));
    let (model, _, mut info) = open_for(&place, &source, dtype, |_| true).unwrap_or_else(|error| panic!("{error}"));
    let middle = model.layer_count() / 2;
    let runner = Runner::open(Arc::new(model), &place, &mut info).unwrap_or_else(|error| panic!("{error}"));
    let load = loaded.elapsed().as_secs_f64();
    let tokens = |count: usize| -> Vec<TokenId> {
        (0..count).map(|i| ((i * 7919 + i * i * 31 + 13) % info.vocab_size) as TokenId).collect()
    };
    let looks = std::env::args().any(|a| a == "--look");
    // As `generate`, which keeps no record.
    let tape_bytes = if looks { Budgets::default().tape_bytes } else { 0 };
    let budgets = Budgets { tape_bytes, snapshot_bytes: 0 };
    let mut session = Session::on(runner, None, budgets).unwrap_or_else(|error| panic!("{error}"));
    if looks {
        session.rank(12);
        session.look_at(|layer| if layer == middle { Depth::Everything } else { Depth::Strength });
    }
    // The embedding is looked up, and the head asked for the last token alone.
    let vocabulary = (info.vocab_size * info.hidden_size) as u64;
    let multiplied = info.parameters - vocabulary * if info.tied_embeddings { 1 } else { 2 };
    let repeats = number("--repeat", 3);
    let rate = |count: usize, seconds: f64| (count as f64 / seconds * 100.0).round() / 100.0;

    // The weights come into memory before anything counts.
    session.start(&tokens(2)).expect("two tokens can be read");
    session.read_all();
    let prefill: Vec<Value> = numbers("--prefill")
        .into_iter()
        .map(|count| {
            let read = |session: &mut Session| {
                session.start(&tokens(count)).unwrap_or_else(|error| panic!("{error}"));
                session.read_all();
            };
            // As the peer does: once before it counts.
            read(&mut session);
            let seconds = median((0..repeats).map(|_| timed(|| read(&mut session))).collect());
            json!({ "tokens": count, "tokens_per_s": rate(count, seconds), "multiply_adds_per_token": multiplied + mixing(&info, count) })
        })
        .collect();

    let temperature = option("--temperature").map_or(0.0, |text| text.parse().expect("--temperature is no number"));
    let sampling = Sampling { temperature, top_k: None, top_p: None, seed: 0 };
    let (count, depths) = (number("--decode", 0), numbers("--depth"));
    let depths = if depths.is_empty() { vec![0] } else { depths };
    let decode: Vec<Value> = depths
        .into_iter()
        .filter(|_| count > 0)
        .map(|depth| {
            session.start(&tokens(depth + 1)).unwrap_or_else(|error| panic!("{error}"));
            session.read_all();
            let make = |session: &mut Session| {
                for _ in 0..count {
                    session.extend(&sampling).unwrap_or_else(|error| panic!("{error}"));
                    session.advance_ahead();
                }
                session.settle();
            };
            let seconds = median((0..repeats).map(|_| timed(|| make(&mut session))).collect());
            json!({ "after": depth, "tokens_per_s": rate(count, seconds), "resident_bytes": resident() })
        })
        .collect();
    let line = json!({
        "model": info.name, "dtype": info.dtype.to_string(), "threads": statescope_engine::threads(), "load_s": load,
        "parameters": info.parameters, "weights_bytes": info.weights_bytes, "state_bytes": info.state_bytes,
        "device": info.device.device.to_string(), "device_name": info.device.name, "on_cpu": info.device.on_cpu,
        "device_bytes": session.runner().device_bytes(), "looking": looks, "multiply_adds_per_token": multiplied, "prefill": prefill, "decode": decode,
    });
    println!("{line}");
}
