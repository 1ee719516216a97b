//! `trace`: reads a text and writes what happens inside to a safetensors file.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use statescope_engine::hooks::Depth;
use statescope_engine::protocol::{Geometry, ModelInfo, TokenId};
use statescope_engine::sampler;
use statescope_engine::session::{Budgets, Session};

use super::common::{Common, Prompt, Sampling, context_note};
use super::generate::{continue_text, may_end};
use super::info::{bytes, kind, layer};
use super::tensors::{Plan, QUANTITIES, Quantity, find};
use super::trace_file::{self, Tensor, Values};

/// Version of names, axes and metadata.
const FORMAT_VERSION: &str = "1";
/// What is written when no probe is named, where a layer has it.
const DEFAULT_PROBES: [&str; 5] = ["resid", "delta", "decay", "write_norm", "state"];
/// Stands for every quantity that a layer has.
const ALL_PROBES: &str = "all";
/// The largest file: all of it is in memory before it is written, so that nothing unfinished is left behind.
const LARGEST: usize = 4 << 30;
/// The largest record of a run.
const LARGEST_TAPE: usize = 8 << 30;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    prompt: Prompt,
    /// Tokens to add to the prompt
    #[arg(long, value_name = "N", default_value_t = 0)]
    generate: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// What to write, repeatable, or `all` [default: resid, delta, decay, write_norm, state]; an unknown name lists the names
    #[arg(long = "probe", value_name = "NAME", value_delimiter = ',')]
    probes: Vec<String>,
    /// Layers to write [default: all]
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    layers: Option<Vec<usize>>,
    /// Heads whose mixing and mixing_error are written [default: all]; of several mixers in a layer each writes those it has
    #[arg(long, value_name = "HEADS", value_delimiter = ',')]
    heads: Option<Vec<usize>>,
    /// The same for Mamba-1 and short convolutions, whose channels are heads of their own
    #[arg(long, value_name = "CHANNELS", value_delimiter = ',', conflicts_with = "heads")]
    channels: Option<Vec<usize>>,
    /// Write the state after every K tokens instead of after the last
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    every: Option<u32>,
    /// The file to write
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

/// Writes the trace and says what it holds.
pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let (input, sampling) = (args.prompt.input()?, args.sampling.checked()?);
    let quantities = args.quantities()?;
    trace_file::check(&args.out)?;
    let opened = args.common.open()?;
    let layers = args.layers(&opened.info)?;
    let prompt = opened.encode(&input)?;

    // The window's snapshots: states between them are folded from the same places.
    let budgets = Budgets { tape_bytes: LARGEST_TAPE, ..Budgets::default() };
    let size = opened.tokenizer_size();
    let mut session = Session::on(opened.runner, size, budgets)?;
    session.look_at(|layer| if layers.contains(&layer) { Depth::Everything } else { Depth::Nothing });
    session.start(&prompt)?;
    // With the model's meta tokens.
    let prompt = session.history().len();
    let most = prompt.saturating_add(args.generate);
    args.check_size(&quantities, &layers, &session, &opened.info, most)?;

    let logits = read(&mut session, &opened.info, &layers, &sampling, args.generate, may_end(&input, &opened.info))?;
    let tokens = session.position();
    // An end of text may have come early.
    let plans = args.plan(&quantities, &layers, &session, &opened.info, tokens)?;
    let metadata = metadata(&opened.info, &plans, prompt, &sampling);
    let ids = session.history().ids(0..tokens).into_iter().map(i64::from).collect();
    let mut tensors = vec![
        Tensor { name: "tokens".into(), shape: vec![tokens], values: Values::I64(ids) },
        Tensor { name: "logits".into(), shape: vec![tokens, opened.info.vocab_size], values: Values::F32(logits) },
    ];
    for plan in plans {
        let values = plan.compute(&session)?;
        tensors.push(Tensor { shape: plan.shape(), name: plan.name, values: Values::F32(values) });
    }
    let size = trace_file::write(&args.out, &metadata, &tensors)?;
    writeln!(out, "{}: {} tensors over {tokens} tokens, {}", args.out.display(), tensors.len(), bytes(size))?;
    Ok(())
}

impl Args {
    fn quantities(&self) -> Result<Vec<&'static Quantity>> {
        if self.probes.is_empty() {
            return DEFAULT_PROBES.iter().map(|name| find(name)).collect();
        }
        for name in self.probes.iter().filter(|name| *name != ALL_PROBES) {
            find(name)?;
        }
        let wanted = |name: &str| self.probes.iter().any(|probe| probe == name || probe == ALL_PROBES);
        Ok(QUANTITIES.iter().filter(|quantity| wanted(quantity.name)).collect())
    }

    /// The chosen layers, ascending.
    fn layers(&self, info: &ModelInfo) -> Result<Vec<usize>> {
        let count = info.layers.len();
        let mut layers = self.layers.clone().unwrap_or_else(|| (0..count).collect());
        layers.sort_unstable();
        layers.dedup();
        match layers.last() {
            Some(last) if *last >= count => bail!("--layers has {last}, but the model has layers 0 to {}", count - 1),
            _ => Ok(layers),
        }
    }

    /// By part the heads chosen in a layer; none means all of them.
    fn heads(&self, info: &ModelInfo, layer: usize) -> Result<Vec<Option<Vec<usize>>>> {
        let parts = &info.layers[layer].parts;
        let (flag, chosen, channels) = match (&self.heads, &self.channels) {
            (Some(heads), _) => ("--heads", heads, false),
            (None, Some(channels)) => ("--channels", channels, true),
            (None, None) => return Ok(vec![None; parts.len()]),
        };
        // Channels are chosen of the mixers that have channels, heads of all.
        let meant = |part: &Geometry| part.kind.mixes() && (!channels || part.kind.head_noun() == "channel");
        let Some(widest) = parts.iter().filter(|part| meant(part)).max_by_key(|part| part.heads) else {
            let kind = parts[0].kind;
            return match kind.mixes() {
                true => bail!(
                    "layer {layer} is {}, whose matrices belong to heads: choose --heads instead of --channels",
                    kind.label()
                ),
                false => Ok(vec![None; parts.len()]),
            };
        };
        if let Some(head) = chosen.iter().find(|head| **head >= widest.heads) {
            bail!("{flag} has {head}, but layer {layer} has {}s 0 to {}", widest.kind.head_noun(), widest.heads - 1)
        }
        let of = |part: &Geometry| chosen.iter().copied().filter(|head| *head < part.heads).collect();
        Ok(parts.iter().map(|part| meant(part).then(|| of(part))).collect())
    }

    fn plan(
        &self,
        quantities: &[&'static Quantity],
        layers: &[usize],
        session: &Session,
        info: &ModelInfo,
        tokens: usize,
    ) -> Result<Vec<Plan>> {
        let every = self.every.map(|every| every as usize);
        if let Some(every) =
            every.filter(|every| *every > tokens && quantities.iter().any(|quantity| quantity.name == "state"))
        {
            bail!("--every {every} leaves no state: the text has {tokens} tokens");
        }
        let mut plans = Vec::new();
        for quantity in quantities {
            let before = plans.len();
            for &layer in layers {
                for (part, heads) in self.heads(info, layer)?.into_iter().enumerate() {
                    plans.extend(Plan::new(quantity, (layer, part), session, tokens, heads, every));
                }
            }
            if plans.len() == before && self.probes.iter().any(|name| name == quantity.name) {
                bail!("none of the chosen layers has {}: {}", quantity.name, quantity.meaning);
            }
        }
        Ok(plans)
    }

    /// Refuses a text of at most `tokens` tokens whose trace would be too large, before anything is computed.
    fn check_size(
        &self,
        quantities: &[&'static Quantity],
        layers: &[usize],
        session: &Session,
        info: &ModelInfo,
        tokens: usize,
    ) -> Result<()> {
        let logits = tokens.saturating_mul(size_of::<f32>() * info.vocab_size);
        let mut sizes = vec![("logits".to_owned(), logits)];
        // Beyond this there is no point in counting the rest.
        if logits <= LARGEST {
            let plans = self.plan(quantities, layers, session, info, tokens)?;
            sizes.extend(plans.into_iter().map(|plan| (plan.bytes(), plan.name)).map(|(size, name)| (name, size)));
        }
        let total = sizes.iter().fold(0usize, |total, (_, size)| total.saturating_add(*size));
        if total <= LARGEST {
            return Ok(());
        }
        let (name, size) = sizes.into_iter().max_by_key(|(_, size)| *size).unwrap_or_default();
        bail!(
            "the trace would take {}, of which {name} alone {}; at most {}: choose fewer with --probe, --layers, --heads or --channels, or a shorter text",
            bytes(total),
            bytes(size),
            bytes(LARGEST),
        )
    }
}

/// Reads the prompt and makes `count` tokens; all of them are processed in the end. Returns the logits of every token, `[T, V]`.
fn read(
    session: &mut Session,
    info: &ModelInfo,
    layers: &[usize],
    sampling: &sampler::Sampling,
    count: usize,
    ends: &[TokenId],
) -> Result<Vec<f32>> {
    let prompt = session.history().len();
    while session.is_reading() {
        session.advance();
        check_tape(session, layers, prompt + count)?;
    }
    if let Some(failure) = session.failure() {
        return Err(failure.clone().into());
    }
    let mut logits = session.logits_again(prompt)?;
    let mut noted = false;
    context_note(info, prompt, &mut noted);
    let made = continue_text(session, sampling, count, ends, |session, _| {
        context_note(info, session.history().len(), &mut noted);
        // The token made before this one has been read by now.
        if session.position() > prompt {
            logits.extend_from_slice(session.logits());
        }
        Ok(())
    })?
    .made;
    session.read_all();
    if made > 0 {
        logits.extend_from_slice(session.logits());
    }
    Ok(logits)
}

/// Refuses a text whose record would not fit, as soon as that can be told.
fn check_tape(session: &Session, layers: &[usize], tokens: usize) -> Result<()> {
    let recorded: usize = layers.iter().map(|layer| session.tape().layer_bytes(*layer)).sum();
    let expected = (recorded / session.position().max(1)).saturating_mul(tokens);
    if expected > LARGEST_TAPE {
        bail!(
            "recording {tokens} tokens would take {} of memory, at most {}: choose fewer --layers, or a shorter text",
            bytes(expected),
            bytes(LARGEST_TAPE)
        );
    }
    Ok(())
}

/// Strings, as safetensors has it. All of it is JSON under `statescope`; the rest is there to be read without parsing that.
fn metadata(info: &ModelInfo, plans: &[Plan], prompt: usize, sampling: &sampler::Sampling) -> Map<String, Value> {
    let kinds: Vec<&str> = info.layers.iter().map(|layer| kind(layer.mixer().kind)).collect();
    let mut described = Map::new();
    described.insert("tokens".into(), json!({ "axes": ["token"], "meaning": "token ids of prompt and continuation, meta tokens (ids after the vocabulary) before them" }));
    let logits = "logits after the token; rows of the vocabulary beyond the tokenizer are padding";
    described.insert("logits".into(), json!({ "axes": ["token", "vocabulary"], "meaning": logits }));
    described.extend(plans.iter().map(|plan| (plan.name.clone(), plan.describe())));
    let all = json!({
        "format_version": FORMAT_VERSION,
        "statescope_version": env!("CARGO_PKG_VERSION"),
        "model": info.source.to_string(),
        "model_type": info.model_type,
        "dtype": info.dtype.to_string(),
        "layer_kinds": kinds,
        "layers": info.layers.iter().map(layer).collect::<Vec<_>>(),
        "prompt_tokens": prompt,
        "meta_tokens": info.meta_tokens,
        "sampling": {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        },
        "tensors": described,
    });
    let mut metadata = Map::new();
    for key in ["format_version", "statescope_version", "model_type", "layer_kinds", "tensors"] {
        let text = all[key].as_str().map_or_else(|| all[key].to_string(), str::to_owned);
        metadata.insert(key.into(), Value::String(text));
    }
    metadata.insert("statescope".into(), Value::String(all.to_string()));
    metadata
}
