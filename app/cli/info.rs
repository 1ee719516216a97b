//! `info`: what a model is made of.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};
use statescope_engine::protocol::{Geometry, LayerInfo, MixerKind, ModelInfo};

use super::common::Common;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Describes the model, which is opened completely, so that what is wrong with it is found.
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
        "model_type": info.model_type,
        "parameters": info.parameters,
        "dtype": info.dtype.to_string(),
        "weights_bytes": info.weights_bytes,
        "state_bytes": info.state_bytes,
        "kv_bytes_per_token": info.kv_bytes_per_token,
        "hidden_size": info.hidden_size,
        "vocab_size": info.vocab_size,
        "tied_embeddings": info.tied_embeddings,
        "trained_context": info.trained_context,
        "tokenizer": info.has_tokenizer,
        "end_tokens": info.end_tokens,
        "layers": info.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

/// A layer as JSON; a trace says the same in its metadata.
pub fn layer(layer: &LayerInfo) -> Value {
    let mut object = mixer(layer.mixer());
    if layer.parts.len() > 1 {
        object["parts"] = layer.parts.iter().map(mixer).collect();
    }
    object["mlp_dim"] = json!(layer.mlp_dim);
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
        "conv_taps": geometry.conv_taps,
        "state_bytes": geometry.state_bytes,
        "kv_bytes_per_token": geometry.kv_bytes_per_token,
    })
}

/// The kind as programs read it.
pub fn kind(kind: MixerKind) -> &'static str {
    match kind {
        MixerKind::Mamba1 => "mamba1",
        MixerKind::Mamba2 => "mamba2",
        MixerKind::Attention => "attention",
    }
}

fn print(info: &ModelInfo, out: &mut impl Write) -> Result<()> {
    let context = info.trained_context.map_or("not said".to_owned(), |tokens| format!("{tokens} tokens"));
    let tied = if info.tied_embeddings { "the embeddings" } else { "its own" };
    let lines = [
        ("model", info.source.to_string()),
        ("architecture", info.model_type.clone()),
        ("layers", info.layers.len().to_string()),
        ("parameters", format!("{} ({:.2} M)", info.parameters, info.parameters as f64 / 1e6)),
        ("weights", format!("{}, {}", bytes(info.weights_bytes), info.dtype)),
        ("state", format!("{} whatever the length of the text", bytes(info.state_bytes))),
        ("KV cache", format!("{} a token", bytes(info.kv_bytes_per_token))),
        ("hidden size", info.hidden_size.to_string()),
        ("vocabulary", format!("{} tokens", info.vocab_size)),
        ("output head", tied.to_owned()),
        ("trained on", context),
        ("tokenizer", if info.has_tokenizer { "yes" } else { "no: prompts are token ids" }.to_owned()),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<12}  {value}")?;
    }
    writeln!(
        out,
        "\n{:>5}  {:<9}  {:>5}  {:>5}  {:>5}  {:>6}  {:>4}  {:>6}  {:>10}",
        "layer", "mixer", "heads", "P", "N", "groups", "conv", "MLP", "parameters"
    )?;
    for (index, layer) in info.layers.iter().enumerate() {
        for mixer in &layer.parts {
            let some = |n: usize| if n == 0 { "–".to_owned() } else { n.to_string() };
            writeln!(
                out,
                "{index:>5}  {:<9}  {:>5}  {:>5}  {:>5}  {:>6}  {:>4}  {:>6}  {:>10}",
                mixer.kind.label(),
                mixer.heads,
                mixer.head_dim,
                mixer.state_dim,
                mixer.groups,
                some(mixer.conv_taps),
                some(layer.mlp_dim.unwrap_or(0)),
                layer.parameters,
            )?;
        }
    }
    let mamba1 = info.layers.iter().flat_map(|layer| &layer.parts).any(|mixer| mixer.kind == MixerKind::Mamba1);
    let heads = if mamba1 { "; in Mamba-1 every channel is a head" } else { "" };
    writeln!(out, "\nP: values a head mixes; N: state entries a value, for attention the width of a key{heads}")?;
    Ok(())
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
