//! `bench`: speed and memory of the engine as the window runs it: its own thread, its frames, its probes.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};
use statescope_engine::handle::Handle;
use statescope_engine::protocol::{Command, Event, Frame, ModelInfo, Observation, Performance, PromptInput, TokenId};

use super::common::Common;
use super::info::bytes;
use super::lengths;
use super::screen::Probes;

/// Silence after which the engine counts as done with a text.
const SETTLED: Duration = Duration::from_millis(80);
/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_len: u32,
    /// Tokens to make after it
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    generate: u32,
    /// What is observed meanwhile
    #[arg(long, value_name = "PROBES", default_value = "screen")]
    probes: Probes,
    /// Pairs of a run with probes and one without, whose medians count; an even number is fairest
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Instead: one long text, and what a token costs after so many of it (1,1000,100000)
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    after: Vec<u32>,
    /// Print JSON: one object, or with --after a list of them
    #[arg(long)]
    json: bool,
}

/// Measures in pairs with and without probes, one after the other, and prints the medians.
pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let (device, memory) = args.common.prepare()?;
    let handle = Handle::spawn(|| {}).map_err(|error| anyhow!("cannot start the engine thread: {error}"))?;
    let mut engine = Engine { handle, epoch: 0, device_bytes: 0, performance: Performance::default() };
    let (source, dtype) = (args.common.model.clone(), args.common.dtype());
    engine.handle.send(Command::Load { source, dtype, device, memory });
    let info = engine.loaded()?;
    // Meta tokens are read with every prompt.
    let prompt: Vec<TokenId> = (info.vocab_size..info.vocab_size + info.meta_tokens)
        .chain((0..args.prompt_len as usize).map(|i| (i * 7919 + i * i * 31 + 13) % info.vocab_size))
        .map(|id| id as TokenId)
        .collect();
    let observed = args.probes.observation(&info);
    let unobserved = Observation::default();
    let generate = args.generate as usize;
    if !args.after.is_empty() {
        return lengths::run(&mut engine, &observed, prompt[0], &args.after, args.json, out);
    }

    // Weights come into the caches before anything counts.
    engine.measure(&observed, &prompt, generate.min(32))?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..args.pairs {
        // Who goes first takes turns, so that a machine that slows down favours neither.
        for observes in [pair % 2 == 0, pair % 2 == 1] {
            let (observation, runs) = if observes { (&observed, &mut with) } else { (&unobserved, &mut without) };
            runs.push(engine.measure(observation, &prompt, generate)?);
        }
    }
    // Two pairs together, one begun by each side, so that what the first run leaves to the second cancels.
    let time = |runs: &[Times]| runs.iter().map(|times| times.decode.as_secs_f64()).sum::<f64>();
    let pairs = with.chunks(2).zip(without.chunks(2));
    let cost = middle_mean(pairs.map(|(a, b)| time(a) / time(b) - 1.0).collect());
    let rate = |count: usize, runs: &[Times], of: fn(&Times) -> Duration| count as f64 / median(runs, of);
    let figures = json!({
        "prefill_tokens_per_s": round(rate(prompt.len(), &with, |times| times.prefill)),
        "decode_tokens_per_s": round(rate(generate, &with, |times| times.decode)),
        "decode_tokens_per_s_without_probes": round(rate(generate, &without, |times| times.decode)),
        "time_to_first_token_ms": round(median(&with, |times| times.first) * 1e3),
        "peak_rss_bytes": process_bytes("VmHWM:"),
        "peak_device_bytes": engine.device_bytes,
        "device_bytes_allowed": info.device.allowed,
        "weights_bytes": info.weights_bytes,
        "state_bytes": info.state_bytes,
        "probes": args.probes.label(),
        "probes_cost_percent": round(100.0 * cost),
        "pairs": args.pairs,
        "device": device.to_string(),
        "device_name": info.device.name,
        "on_cpu": info.device.on_cpu,
        "dtype": info.dtype.to_string(),
        "threads": statescope_engine::threads(),
    });
    if args.json {
        writeln!(out, "{figures}")?
    } else {
        print(&figures, out)?
    }
    Ok(())
}

/// How long one text took.
struct Times {
    /// Reading the prompt.
    prefill: Duration,
    /// From the prompt to the first token made.
    first: Duration,
    /// Making all tokens.
    decode: Duration,
}

/// The engine thread, driven as the window drives it.
pub(super) struct Engine {
    handle: Handle,
    /// Of the newest frame: which prompt it speaks of.
    epoch: u64,
    /// The most GPU memory seen in use.
    device_bytes: usize,
    /// Of the newest frame.
    pub performance: Performance,
}

impl Engine {
    fn next(&mut self) -> Result<Event> {
        match self.handle.wait(PATIENCE) {
            Some(Event::Failed(failure)) => bail!("{}", failure.message),
            Some(event) => {
                if let Event::Frame(frame) = &event {
                    self.device_bytes = self.device_bytes.max(frame.performance.device_bytes);
                    self.performance = frame.performance.clone();
                }
                Ok(event)
            }
            None => Err(anyhow!("the engine does not answer")),
        }
    }

    fn loaded(&mut self) -> Result<Arc<ModelInfo>> {
        loop {
            if let Event::Loaded(info) = self.next()? {
                return Ok(info);
            }
        }
    }

    /// Starts a prompt and waits for a frame of it of which `wanted` is true; a late frame of the text before does not count.
    fn read(&mut self, prompt: &[TokenId], run: usize, wanted: impl Fn(&Frame) -> bool) -> Result<Duration> {
        let before = self.epoch;
        let began = Instant::now();
        self.handle.send(Command::Prompt(PromptInput::Tokens(prompt.to_vec())));
        if run > 0 {
            self.handle.send(Command::Run { tokens: run });
        }
        loop {
            if let Event::Frame(frame) = self.next()? {
                self.epoch = frame.epoch;
                if frame.epoch > before && wanted(&frame) {
                    return Ok(began.elapsed());
                }
            }
        }
    }

    /// Waits until the engine has answered all that is asked.
    pub fn settle(&mut self) {
        while let Some(event) = self.handle.wait(SETTLED) {
            if let Event::Frame(frame) = event {
                self.epoch = frame.epoch;
            }
        }
    }

    /// Looks at `observation` and reads a new text, as long as that takes.
    pub fn watch(&mut self, observation: &Observation, prompt: &[TokenId]) -> Result<Duration> {
        self.handle.send(Command::Observe(observation.clone()));
        self.settle();
        self.read(prompt, 0, |frame| frame.position == prompt.len())
    }

    /// Makes `count` tokens after the `length` there are, or a few more: an end of text ends a run early, but not what is measured.
    /// Returns how many there are then.
    pub fn make(&mut self, mut length: usize, count: usize) -> Result<usize> {
        let end = length + count;
        while length < end {
            self.handle.send(Command::Run { tokens: end - length });
            length = self.run_length(length)?;
        }
        Ok(length)
    }

    fn measure(&mut self, observation: &Observation, prompt: &[TokenId], generate: usize) -> Result<Times> {
        self.handle.send(Command::Observe(observation.clone()));
        self.settle();
        let first = self.read(prompt, 1, |frame| frame.length > prompt.len())?;
        self.settle();
        let prefill = self.read(prompt, 0, |frame| frame.position == prompt.len())?;
        self.settle();
        let began = Instant::now();
        self.make(prompt.len(), generate)?;
        let decode = began.elapsed();
        self.settle();
        Ok(Times { prefill, first, decode })
    }

    /// Waits for the end of a run. Returns the tokens there are then.
    fn run_length(&mut self, mut length: usize) -> Result<usize> {
        loop {
            match self.next()? {
                Event::Frame(frame) => length = frame.length,
                Event::Done(_) => return Ok(length),
                _ => {}
            }
        }
    }
}

/// The middle one, in seconds.
fn median(runs: &[Times], of: fn(&Times) -> Duration) -> f64 {
    let mut times: Vec<Duration> = runs.iter().map(of).collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

/// The mean of the middle half: steadier than the median of a few, and as deaf to a run that something else disturbed.
fn middle_mean(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let aside = values.len() / 4;
    let middle = &values[aside..values.len() - aside];
    middle.iter().sum::<f64>() / middle.len() as f64
}

pub(super) fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Memory of this process, by the system's name of it (`VmRSS:` now, `VmHWM:` at most); none where the system does not say.
pub(super) fn process_bytes(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn print(figures: &Value, out: &mut impl Write) -> Result<()> {
    let number = |key: &str| figures[key].as_f64().unwrap_or(f64::NAN);
    let size = |key: &str| figures[key].as_u64().map_or("unknown".to_owned(), |count| bytes(count as usize));
    let text = |key: &str| figures[key].as_str().unwrap_or_default().to_owned();
    let without = number("decode_tokens_per_s_without_probes");
    let lines = [
        ("prefill", format!("{:.0} tokens/s", number("prefill_tokens_per_s"))),
        ("decode", format!("{:.0} tokens/s with probes: {}", number("decode_tokens_per_s"), text("probes"))),
        (
            "",
            format!(
                "{without:.0} tokens/s without; probes cost {:.1} %, by {} pairs",
                number("probes_cost_percent"),
                figures["pairs"]
            ),
        ),
        ("first token", format!("{:.1} ms", number("time_to_first_token_ms"))),
        (
            "memory",
            format!(
                "{} at most; weights {}, state {}",
                size("peak_rss_bytes"),
                size("weights_bytes"),
                size("state_bytes")
            ),
        ),
        ("device", format!("{}, {}, {} threads", text("device"), text("dtype"), figures["threads"])),
    ];
    let allowed =
        figures["device_bytes_allowed"].as_u64().map(|count| format!(" of {} allowed", bytes(count as usize)));
    let there = format!("{} at most{}", size("peak_device_bytes"), allowed.unwrap_or_default());
    let there = (!text("device_name").is_empty()).then_some(("GPU memory", there));
    for (name, value) in lines.into_iter().chain(there) {
        writeln!(out, "{name:<12}  {value}")?;
    }
    Ok(())
}
