//! `parity`: compares models with what the official implementation made of them, and prints the table of what loads.
//!
//! A folder holds a model and beside it `golden.safetensors`: `input_ids`, `logits`, and where they were recorded `resid.{i}`,
//! `greedy_prompt` and `greedy`. `tests/goldens/README.md` says how these are made.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use statescope_engine::hooks::{Hooks, Observer};
use statescope_engine::model::Logits;
use statescope_engine::open::open_for;
use statescope_engine::place;
use statescope_engine::protocol::{Device, MixerKind, ModelInfo, ModelSource, Point, TokenId};
use statescope_engine::runner::Runner;
use statescope_engine::sampler;
use statescope_engine::session::{Budgets, Session};

use super::common::Place;
use super::info::count;

/// What is recorded of a model, beside it.
const GOLDEN: &str = "golden.safetensors";
/// Largest deviation allowed: max|a − b| / max|b|, both sides f32.
const TOLERANCE: f32 = 1e-4;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders with a model and golden.safetensors; others are passed over
    #[arg(value_name = "FOLDER", required = true)]
    folders: Vec<PathBuf>,
    /// Where to compute; cuda is the first NVIDIA GPU
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Place,
    /// One line for all cases of a model_type: their worst figures
    #[arg(long)]
    by_family: bool,
}

/// Compares all folders and prints a Markdown table.
///
/// # Errors
/// Any of them deviates by more than 1e-4, chooses another token, or does not load; the table is printed all the same.
pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let cases: Vec<&PathBuf> = args.folders.iter().filter(|folder| folder.join(GOLDEN).is_file()).collect();
    if cases.is_empty() {
        bail!("none of the folders has {GOLDEN}: give folders such as tests/goldens/*");
    }
    let device = args.device.device()?;
    let (mut rows, mut problems) = (Vec::<Row>::new(), Vec::new());
    for &folder in &cases {
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        match compare(folder, &name, device) {
            Ok(row) => {
                problems.extend(row.problem());
                rows.push(row);
            }
            Err(error) => problems.push(format!("{name}: {error:#}")),
        }
    }
    if args.by_family {
        rows = families(rows);
    }
    print(&rows, args.by_family, out)?;
    out.flush()?;
    if !problems.is_empty() {
        bail!("{} of {} models are not as recorded: {}", problems.len(), cases.len(), problems.join("; "));
    }
    Ok(())
}

/// A line of the table: one model, or all of a family.
struct Row {
    family: String,
    /// What its layers are made of, in the order in which it first appears.
    kinds: Vec<&'static str>,
    case: String,
    cases: usize,
    /// Fewest and most.
    parameters: (u64, u64),
    logits: f32,
    /// None where none are recorded.
    residuals: Option<f32>,
    /// Whether the greedy continuation is the recorded one.
    greedy: Option<bool>,
}

impl Row {
    /// What is wrong, if anything is.
    fn problem(&self) -> Option<String> {
        let Self { case, logits, residuals, greedy, .. } = self;
        // Not `>`: a NaN is no parity.
        let exact = |deviation: f32| deviation <= TOLERANCE;
        if !exact(*logits) {
            return Some(format!("{case}: logits deviate by {logits:.1e}"));
        }
        if let Some(residuals) = residuals.filter(|residuals| !exact(*residuals)) {
            return Some(format!("{case}: residuals deviate by {residuals:.1e}"));
        }
        (*greedy == Some(false)).then(|| format!("{case}: the greedy continuation is another one"))
    }

    /// Takes another case of the family in.
    fn join(&mut self, other: Self) {
        for kind in other.kinds {
            if !self.kinds.contains(&kind) {
                self.kinds.push(kind);
            }
        }
        self.cases += other.cases;
        self.parameters = (self.parameters.0.min(other.parameters.0), self.parameters.1.max(other.parameters.1));
        self.logits = self.logits.max(other.logits);
        self.residuals = worst(self.residuals, other.residuals, f32::max);
        self.greedy = worst(self.greedy, other.greedy, |a, b| a && b);
    }
}

fn worst<T>(one: Option<T>, other: Option<T>, of: fn(T, T) -> T) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(of(one, other)),
        (one, other) => one.or(other),
    }
}

/// The worst of each family, in the order in which families appear.
fn families(rows: Vec<Row>) -> Vec<Row> {
    let mut families = Vec::<Row>::new();
    for row in rows {
        match families.iter_mut().find(|family| family.family == row.family) {
            Some(family) => family.join(row),
            None => families.push(row),
        }
    }
    families
}

fn print(rows: &[Row], by_family: bool, out: &mut impl Write) -> Result<()> {
    let case = if by_family { "cases" } else { "case" };
    writeln!(out, "| `model_type` | layers | {case} | parameters | logits | residuals | greedy |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for row in rows {
        let case = if by_family { row.cases.to_string() } else { row.case.clone() };
        let (fewest, most) = (count(row.parameters.0), count(row.parameters.1));
        let parameters = if fewest == most { most } else { format!("{fewest} – {most}") };
        let residuals = row.residuals.map_or("–".to_owned(), |residuals| format!("{residuals:.1e}"));
        let greedy = match row.greedy {
            None => "–",
            Some(true) => "equal",
            Some(false) => "**differs**",
        };
        let (family, kinds, logits) = (&row.family, row.kinds.join(", "), row.logits);
        writeln!(out, "| {family} | {kinds} | {case} | {parameters} | {logits:.1e} | {residuals} | {greedy} |")?;
    }
    Ok(())
}

/// Runs one model on its recorded input: in one piece, in uneven pieces and token by token, of which the worst counts.
fn compare(folder: &Path, name: &str, device: Device) -> Result<Row> {
    let bytes = fs::read(folder.join(GOLDEN)).with_context(|| format!("cannot read {GOLDEN}"))?;
    let golden = Golden(SafeTensors::deserialize(&bytes).with_context(|| format!("cannot read {GOLDEN}"))?);
    let place = place::Place::open(device, None)?;
    let (model, _, mut info) = open_for(&place, &ModelSource::Path(folder.to_owned()), None, |_| true)?;
    let mut runner = Runner::open(model.into(), &place, &mut info)?;
    let (tokens, expected) = (golden.tokens("input_ids", &info)?, golden.floats("logits")?);
    ensure!(!tokens.is_empty(), "input_ids is empty");
    let mut row = Row {
        family: info.model_type.clone(),
        kinds: kinds(&info),
        case: name.to_owned(),
        cases: 1,
        parameters: (info.parameters, info.parameters),
        logits: 0.0,
        residuals: None,
        greedy: None,
    };
    let uneven = [1, 2, tokens.len() * 2 / 3].into_iter().filter(|cut| *cut < tokens.len()).collect();
    for cuts in [Vec::new(), uneven, (1..tokens.len()).collect()] {
        let mut residuals = Residuals(vec![Vec::new(); info.layers.len()]);
        let logits = read(&mut runner, &tokens, &cuts, &mut residuals)?;
        row.logits = row.logits.max(deviation(&logits, &expected)?);
        for (layer, ours) in residuals.0.iter().enumerate() {
            let recorded = format!("resid.{layer}");
            if golden.has(&recorded) {
                let error = deviation(ours, &golden.floats(&recorded)?)?;
                row.residuals = Some(row.residuals.unwrap_or_default().max(error));
            }
        }
    }
    if golden.has("greedy") {
        let (prompt, expected) = (golden.tokens("greedy_prompt", &info)?, golden.tokens("greedy", &info)?);
        row.greedy = Some(continuation(runner, &prompt, expected.len())? == expected);
    }
    Ok(row)
}

/// Mixers and feed-forwards of a model.
fn kinds(info: &ModelInfo) -> Vec<&'static str> {
    let mixers = info.layers.iter().flat_map(|layer| &layer.parts).map(|part| part.kind);
    let mixers = mixers.filter(|kind| *kind != MixerKind::FeedForward).map(MixerKind::label);
    let feed_forwards = info.layers.iter().filter_map(|layer| layer.feed_forward.as_ref());
    let feed_forwards = feed_forwards.map(|f| if f.experts.is_some() { "experts" } else { "MLP" });
    let mut kinds = Vec::new();
    for kind in mixers.chain(feed_forwards) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// All logits `[T, V]` of `tokens` read in pieces that end at `cuts`.
fn read(runner: &mut Runner, tokens: &[TokenId], cuts: &[usize], residuals: &mut Residuals) -> Result<Vec<f32>> {
    let (mut memory, mut logits, mut start) = (runner.memory()?, Vec::new(), 0);
    for &end in cuts.iter().chain([&tokens.len()]) {
        let mut piece = Vec::new();
        let mut hooks = Hooks::observing(residuals);
        runner.forward(&tokens[start..end], start, &mut memory, &mut hooks, Logits::All(&mut piece))?;
        logits.append(&mut piece);
        start = end;
    }
    Ok(logits)
}

/// The `count` most likely tokens after a prompt, each read in turn.
fn continuation(runner: Runner, prompt: &[TokenId], count: usize) -> Result<Vec<TokenId>> {
    let greedy = sampler::Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };
    let budgets = Budgets { tape_bytes: 0, snapshot_bytes: 0 };
    let mut session = Session::on(runner, None, budgets)?;
    session.start(prompt)?;
    (0..count)
        .map(|_| {
            session.read_all();
            Ok(session.extend(&greedy)?)
        })
        .collect()
}

/// By layer the residual stream `[T, d]`.
struct Residuals(Vec<Vec<f32>>);

impl Observer for Residuals {
    fn wants(&self, _layer: usize) -> bool {
        true
    }

    fn observe(&mut self, layer: usize, _part: usize, point: Point, _first: usize, _rows: usize, values: &[f32]) {
        if point == Point::Resid {
            self.0[layer].extend_from_slice(values);
        }
    }
}

/// What the official implementation made.
struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.tensor(name).is_ok()
    }

    /// The bytes of a tensor, in elements of `N` bytes.
    fn elements<const N: usize>(&self, name: &str, dtype: Dtype) -> Result<Vec<[u8; N]>> {
        let tensor = self.0.tensor(name).map_err(|_| anyhow!("{GOLDEN} has no {name}"))?;
        ensure!(tensor.dtype() == dtype, "{name} in {GOLDEN} is {:?}, expected {dtype:?}", tensor.dtype());
        Ok(tensor.data().as_chunks().0.to_vec())
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.elements(name, Dtype::F32)?.into_iter().map(f32::from_le_bytes).collect())
    }

    fn tokens(&self, name: &str, info: &ModelInfo) -> Result<Vec<TokenId>> {
        let ids = self.elements(name, Dtype::I64)?.into_iter().map(i64::from_le_bytes);
        let token = |id: i64| match TokenId::try_from(id) {
            Ok(token) if (token as usize) < info.vocab_size + info.meta_tokens => Ok(token),
            _ => Err(anyhow!("{name} in {GOLDEN} has {id}, which is outside the vocabulary of {}", info.vocab_size)),
        };
        ids.map(token).collect()
    }
}

/// max|a − b| / max|b|, infinite where a number is none.
fn deviation(ours: &[f32], recorded: &[f32]) -> Result<f32> {
    ensure!(ours.len() == recorded.len(), "{} numbers are recorded where {} are computed", recorded.len(), ours.len());
    if ours.iter().chain(recorded).any(|x| x.is_nan()) {
        return Ok(f32::INFINITY);
    }
    let scale = recorded.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let error = ours.iter().zip(recorded).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    Ok(if scale > 0.0 { error / scale } else { error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, logits: f32, residuals: Option<f32>, greedy: Option<bool>) -> Row {
        let (family, case) = ("mamba".to_owned(), case.to_owned());
        Row { family, kinds: vec!["Mamba-1"], case, cases: 1, parameters: (1, 1), logits, residuals, greedy }
    }

    #[test]
    fn the_worst_case_stands_for_the_family() {
        let rows =
            vec![row("a", 1e-7, None, Some(true)), row("b", 1e-3, Some(1e-6), None), row("c", 1e-6, None, Some(false))];
        let problems: Vec<String> = rows.iter().filter_map(Row::problem).collect();
        assert_eq!(problems, ["b: logits deviate by 1.0e-3", "c: the greedy continuation is another one"]);
        let family = &families(rows)[0];
        assert_eq!((family.cases, family.logits), (3, 1e-3));
        assert_eq!((family.residuals, family.greedy), (Some(1e-6), Some(false)));
        assert!(row("d", f32::NAN, None, None).problem().is_some());
        assert_eq!(deviation(&[1.0, f32::NAN], &[1.0, 2.0]).unwrap(), f32::INFINITY);
        assert_eq!(deviation(&[1.0, 2.5], &[1.0, -2.0]).unwrap(), 2.25);
    }
}
