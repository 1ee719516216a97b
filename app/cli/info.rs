//! `info`: what a model is made of. `plan.rs` has its layers.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};
use statescope_engine::protocol::{Geometry, LayerInfo, MixerKind, ModelInfo};

use super::common::Common;
use super::plan;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Describes the model, which is opened completely, so that what is wrong with it is found; a large one stays in its files.
pub fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let info = args.common.open()?.info;
    if args.json {
        writeln!(out, "{}", describe(&info))?;
    } else {
        print(&info, out)?;
    }
    Ok(())
}

/// Everything as JSON; numbers in plain units.
fn describe(info: &ModelInfo) -> Value {
    json!({
        "model": info.source.to_string(),
        "name": info.name,
        "format": info.format,
        "model_type": info.model_type,
        "parameters": info.parameters,
        "dtype": info.dtype.to_string(),
        "weights_bytes": info.weights_bytes,
        "state_bytes": info.state_bytes,
        "kv_bytes_per_token": info.kv_bytes_per_token,
        "hidden_size": info.hidden_size,
        "vocab_size": info.vocab_size,
        "meta_tokens": info.meta_tokens,
        "tied_embeddings": info.tied_embeddings,
        "trained_context": info.trained_context,
        "tokenizer": info.has_tokenizer,
        "end_tokens": info.end_tokens,
        "device": info.device.device.to_string(),
        "device_name": info.device.name,
        "device_bytes": info.device.memory,
        "device_bytes_allowed": info.device.allowed,
        "on_cpu": info.device.on_cpu,
        "pattern": plan::pattern(&info.layers),
        "layers": info.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

/// A layer as JSON; a trace says the same in its metadata. What a layer says of its mixer is said of the first part.
pub fn layer(layer: &LayerInfo) -> Value {
    let mut object = mixer(layer.mixer());
    object["parts"] = layer.parts.iter().map(mixer).collect();
    object["feed_forward"] = layer.feed_forward.map_or(Value::Null, |feed_forward| {
        let (experts, chosen) = feed_forward.experts.unzip();
        json!({ "width": feed_forward.width, "experts": experts, "experts_per_token": chosen })
    });
    object["mlp_dim"] = json!(layer.feed_forward.map(|feed_forward| feed_forward.width));
    object["parameters"] = json!(layer.parameters);
    object
}

fn mixer(geometry: &Geometry) -> Value {
    json!({
        "kind": kind(geometry.kind),
        "heads": geometry.heads,
        "head_dim": geometry.head_dim,
        "state_dim": geometry.state_dim,
        "groups": geometry.groups,
        "rank": geometry.rank,
        "conv_taps": geometry.conv_taps,
        "gated": geometry.gated,
        "window": geometry.window,
        "state_bytes": geometry.state_bytes,
        "kv_bytes_per_token": geometry.kv_bytes_per_token,
    })
}

/// The kind as programs read it.
pub fn kind(kind: MixerKind) -> &'static str {
    match kind {
        MixerKind::Mamba1 => "mamba1",
        MixerKind::Mamba2 => "mamba2",
        MixerKind::Mamba3 => "mamba3",
        MixerKind::Mamba3Mimo => "mamba3_mimo",
        MixerKind::DeltaRule => "delta_rule",
        MixerKind::LinearAttention => "linear_attention",
        MixerKind::Retention => "retention",
        MixerKind::Gla => "gla",
        MixerKind::Hgrn2 => "hgrn2",
        MixerKind::Rwkv4 => "rwkv4",
        MixerKind::Rwkv5 => "rwkv5",
        MixerKind::Rwkv6 => "rwkv6",
        MixerKind::Rwkv7 => "rwkv7",
        MixerKind::RgLru => "rg_lru",
        MixerKind::Mlstm => "mlstm",
        MixerKind::Slstm => "slstm",
        MixerKind::S4 => "s4",
        MixerKind::S4d => "s4d",
        MixerKind::H3 => "h3",
        MixerKind::H3Heads => "h3_heads",
        MixerKind::Hyena => "hyena",
        MixerKind::ShortConv => "short_conv",
        MixerKind::Attention => "attention",
        MixerKind::FeedForward => "feed_forward",
    }
}

fn print(info: &ModelInfo, out: &mut impl Write) -> Result<()> {
    let context = info.trained_context.map_or("not said".to_owned(), |tokens| format!("{tokens} tokens"));
    let tied = if info.tied_embeddings { "the embeddings" } else { "its own" };
    let lines = [
        ("model", info.source.to_string()),
        ("architecture", info.model_type.clone()),
        ("layers", info.layers.len().to_string()),
        ("parameters", format!("{} ({})", info.parameters, count(info.parameters))),
        ("format", info.format.clone()),
        ("weights", format!("{}, {}", bytes(info.weights_bytes), info.dtype)),
        ("state", format!("{} whatever the length of the text", bytes(info.state_bytes))),
        ("KV cache", cache(info)),
        ("hidden size", info.hidden_size.to_string()),
        ("vocabulary", vocabulary(info)),
        ("output head", tied.to_owned()),
        ("trained on", context),
        ("tokenizer", if info.has_tokenizer { "yes" } else { "no: prompts are token ids" }.to_owned()),
        ("pattern", plan::pattern(&info.layers)),
        ("device", device(info)),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<12}  {value}")?;
    }
    writeln!(out)?;
    plan::print(info, out)
}

fn vocabulary(info: &ModelInfo) -> String {
    match info.meta_tokens {
        0 => format!("{} tokens", info.vocab_size),
        meta => format!("{} tokens; {meta} meta tokens before every text", info.vocab_size),
    }
}

/// Where it runs, and what of it runs on the CPU all the same.
fn device(info: &ModelInfo) -> String {
    let device = &info.device;
    if device.name.is_empty() {
        return "CPU".to_owned();
    }
    let mut text = match device.allowed {
        Some(allowed) => format!("{}, at most {} of {}", device.name, bytes(allowed), bytes(device.memory)),
        None => format!("{}, {}", device.name, bytes(device.memory)),
    };
    if !device.on_cpu.is_empty() {
        text += &format!("; on the CPU: {}", device.on_cpu.join("; "));
    }
    text
}

/// How the cache grows, and what of it stops growing.
fn cache(info: &ModelInfo) -> String {
    let mut text = format!("{} a token", bytes(info.kv_bytes_per_token));
    let parts = info.layers.iter().flat_map(|layer| &layer.parts);
    let bounded: usize = parts.filter(|part| part.window.is_some()).map(|part| part.kv_bytes_per_token).sum();
    if bounded > 0 {
        text += &format!(", of which {} only up to the window", bytes(bounded));
    }
    text
}

/// A number of parameters as a person reads it.
pub fn count(parameters: u64) -> String {
    match parameters as f64 {
        few if few < 1e6 => format!("{:.1} K", few / 1e3),
        some if some < 1e9 => format!("{:.2} M", some / 1e6),
        many => format!("{:.2} B", many / 1e9),
    }
}

/// Bytes as a person reads them.
pub fn bytes(count: usize) -> String {
    let units = ["KiB", "MiB", "GiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for larger in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}
