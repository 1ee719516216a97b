//! Hostile files. The corpus in `tests/goldens/hostile` was made by hand to mislead; each has to end in one sentence. What the fuzzer finds
//! belongs there too. It mutates good files, always the same way for the same seed; it looks for panics, and under `ulimit -v` for large
//! allocations:
//!
//! ```text
//! (ulimit -v 4000000; FUZZ_SECONDS=300 FUZZ_SEED=1 cargo test -p statescope-engine --lib hostile::fuzz -- --ignored --nocapture)
//! ```
//!
//! `FUZZ_KEEP=folder` keeps the inputs that panic.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::config;
use super::gguf::Header;
use super::pickle;
use crate::model::Model;
use crate::protocol::ModelSource;

fn goldens() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens"))
}

/// What reads one kind of file. True where it was accepted.
type Target = fn(&[u8], &Path) -> bool;

const TARGETS: [(&str, Target); 6] = [
    ("config", read_config),
    ("safetensors", read_safetensors),
    ("gguf", read_gguf),
    ("part", read_part),
    ("zip", read_zip),
    ("pickle", read_pickle),
];

fn read_config(bytes: &[u8], _: &Path) -> bool {
    config::parse(&String::from_utf8_lossy(bytes), "config.json").is_ok()
}

fn read_safetensors(bytes: &[u8], scratch: &Path) -> bool {
    fs::copy(goldens().join("mistral_legacy/config.json"), scratch.join("config.json")).unwrap();
    fs::write(scratch.join("model.safetensors"), bytes).unwrap();
    load(scratch)
}

fn read_gguf(bytes: &[u8], scratch: &Path) -> bool {
    let read = Header::read(bytes).is_ok();
    fs::write(scratch.join("model.gguf"), bytes).unwrap();
    load(&scratch.join("model.gguf")) && read
}

/// As the second part of a model whose first is good.
fn read_part(bytes: &[u8], scratch: &Path) -> bool {
    let name = |part: usize| format!("model-0000{part}-of-00002.gguf");
    fs::copy(goldens().join("parts").join(name(1)), scratch.join(name(1))).unwrap();
    fs::write(scratch.join(name(2)), bytes).unwrap();
    load(&scratch.join(name(2)))
}

fn read_zip(bytes: &[u8], _: &Path) -> bool {
    pickle::tensors(bytes).is_ok()
}

fn read_pickle(bytes: &[u8], _: &Path) -> bool {
    pickle::run(bytes).is_ok()
}

fn load(path: &Path) -> bool {
    let opened = super::open(&ModelSource::Path(path.to_owned()), None);
    let built = opened.and_then(|opened| Model::load(opened.spec, &opened.weights, |_| true));
    built.map_err(|error| assert!(!error.to_string().is_empty())).is_ok()
}

/// Files that must be refused; the first part of a name is the target.
#[test]
fn the_corpus_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(goldens().join("hostile")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let kind = name.split_once('-').unwrap().0;
        let (_, read) = TARGETS.iter().find(|(target, _)| *target == kind).unwrap();
        assert!(!read(&fs::read(&path).unwrap(), scratch.path()), "{name} was accepted");
        seen += 1;
    }
    assert!(seen >= 5, "{seen} files");
}

/// A few thousand mutations of each kind of file, in every run of the tests.
#[test]
fn mutations_end_in_a_sentence() {
    for (name, read) in TARGETS {
        assert_eq!(fuzz(name, read, 7, Limit::Inputs(300)), 0, "{name}");
    }
}

#[test]
#[ignore = "takes minutes"]
fn fuzz_for_minutes() {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seconds, seed) = (number("FUZZ_SECONDS", 60), number("FUZZ_SEED", 1));
    let only = std::env::var("FUZZ_TARGET").ok();
    let targets = TARGETS.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name));
    let panics: usize = targets.map(|(name, read)| fuzz(name, *read, seed, Limit::Seconds(seconds))).sum();
    assert_eq!(panics, 0);
}

#[derive(Clone, Copy)]
enum Limit {
    Inputs(usize),
    Seconds(u64),
}

/// Panics among the mutations of good files.
fn fuzz(name: &str, read: Target, seed: u64, limit: Limit) -> usize {
    let (good, scratch) = (good(name), tempfile::tempdir().unwrap());
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let (start, mut inputs, mut accepted, mut panics) = (Instant::now(), 0, 0, 0);
    let mut slowest = Duration::ZERO;
    while match limit {
        Limit::Inputs(count) => inputs < count,
        Limit::Seconds(seconds) => start.elapsed().as_secs() < seconds,
    } {
        let input = mutate(&good, &mut random);
        let before = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| read(&input, scratch.path()))) {
            Ok(taken) => accepted += usize::from(taken),
            Err(_) => {
                panics += 1;
                if let Ok(folder) = std::env::var("FUZZ_KEEP") {
                    fs::write(Path::new(&folder).join(format!("{name}-{seed}-{inputs}")), &input).unwrap();
                }
            }
        }
        slowest = slowest.max(before.elapsed());
        inputs += 1;
    }
    println!("{name}: {inputs} inputs, {accepted} accepted, {panics} panics, slowest {slowest:.0?}");
    panics
}

/// Files to begin with.
fn good(name: &str) -> Vec<Vec<u8>> {
    let read = |path: PathBuf| fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let entries = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = match name {
        "config" => entries(goldens()).map(|case| case.join("config.json")).filter(|path| path.is_file()).collect(),
        "gguf" => entries(goldens().join("gguf"))
            .chain(entries(goldens().join("vocabulary")))
            .filter(|path| path.metadata().unwrap().len() < 50_000)
            .collect(),
        "part" => entries(goldens().join("parts")).collect(),
        "safetensors" => vec![goldens().join("mistral_legacy/model.safetensors")],
        _ => vec![goldens().join("mamba_pickle/pytorch_model.bin")],
    };
    paths.sort();
    let files: Vec<Vec<u8>> = paths.into_iter().map(read).collect();
    match name {
        "pickle" => files.iter().map(|file| pickle::program_of(file).unwrap()).collect(),
        _ => files,
    }
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// One of the good files with one to four changes, most of them near the beginning, where headers are.
fn mutate(good: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const NUMBERS: [u64; 10] =
        [0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF];
    let mut bytes = good[random.below(good.len())].clone();
    for _ in 0..=random.below(4) {
        let reach = if random.below(4) > 0 { bytes.len().min(4096) } else { bytes.len() };
        let at = random.below(reach);
        let len = (1 + random.below(16)).min(bytes.len() - at);
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + len)),
            2 => {
                let copy = bytes[at..at + len].to_vec();
                let to = random.below(reach);
                bytes.splice(to..to, copy);
            }
            3 => {
                let other = &good[random.below(good.len())];
                let from = random.below(other.len());
                let part = other[from..(from + 64).min(other.len())].to_vec();
                bytes.splice(at..at + len, part);
            }
            4 | 5 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let size = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + size].copy_from_slice(&number[..size]);
            }
            6 => {
                // A digit of a JSON text, or any byte.
                let digits: Vec<usize> = (0..reach).filter(|&i| bytes[i].is_ascii_digit()).collect();
                let place = digits.get(random.below(digits.len())).copied().unwrap_or(at);
                if place < bytes.len() {
                    bytes[place] = b"0123456789-.e"[random.below(13)];
                }
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => {}
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}
