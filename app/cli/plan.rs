//! The layer plan: the pattern of a model in one line, and a table in which equal layers that follow each other are one line.

use std::io::Write;

use anyhow::Result;
use statescope_engine::protocol::{FeedForwardInfo, Geometry, LayerInfo, MixerKind, ModelInfo};

use super::info::{bytes, count};

/// Columns of the table; the first and second are aligned left, the others right.
const HEADER: [&str; 10] =
    ["layers", "mixer", "heads × P × N", "groups", "conv", "window", "state", "KV/token", "feed-forward", "parameters"];

/// What stands where there is nothing.
const NONE: &str = "–";

/// One letter a layer, such as `MMMAMM-E`; the letters of several mixers stand in brackets, `[MA]`.
pub fn pattern(layers: &[LayerInfo]) -> String {
    let letters = |layer: &LayerInfo| {
        let letters: String = layer.parts.iter().map(|part| letter(part.kind, layer.feed_forward.as_ref())).collect();
        if layer.parts.len() > 1 { format!("[{letters}]") } else { letters }
    };
    layers.iter().map(letters).collect()
}

fn letter(kind: MixerKind, feed_forward: Option<&FeedForwardInfo>) -> char {
    match kind {
        MixerKind::Mamba1 | MixerKind::Mamba2 | MixerKind::Mamba3 | MixerKind::Mamba3Mimo => 'M',
        MixerKind::S4 | MixerKind::S4d => 'S',
        MixerKind::H3 | MixerKind::H3Heads | MixerKind::Hyena => 'H',
        MixerKind::Attention => 'A',
        MixerKind::DeltaRule => 'D',
        MixerKind::LinearAttention | MixerKind::Retention | MixerKind::Gla | MixerKind::Hgrn2 => 'L',
        MixerKind::Rwkv4
        | MixerKind::Rwkv5
        | MixerKind::Rwkv6
        | MixerKind::Rwkv7
        | MixerKind::RgLru
        | MixerKind::Mlstm
        | MixerKind::Slstm => 'R',
        MixerKind::ShortConv => 'C',
        MixerKind::FeedForward if feed_forward.is_some_and(|feed_forward| feed_forward.experts.is_some()) => 'E',
        MixerKind::FeedForward => '-',
    }
}

/// What the letters of a pattern stand for.
fn legend(pattern: &str) -> String {
    let meanings = [
        ('M', "selective state space"),
        ('S', "time-invariant state space"),
        ('H', "gated long convolution"),
        ('A', "attention"),
        ('D', "delta rule"),
        ('L', "linear attention"),
        ('R', "recurrence"),
        ('C', "short convolution"),
        ('-', "MLP alone"),
        ('E', "experts alone"),
        ('[', "in one layer"),
    ];
    let used = meanings.iter().filter(|(letter, _)| pattern.contains(*letter));
    let named = used.map(|(letter, meaning)| match letter {
        '[' => format!("[ ] {meaning}"),
        _ => format!("{letter} {meaning}"),
    });
    named.collect::<Vec<_>>().join(", ")
}

/// The table, its totals, and what its letters mean.
pub fn print(info: &ModelInfo, out: &mut impl Write) -> Result<()> {
    let mut rows = vec![HEADER.map(str::to_owned)];
    for (first, run) in runs(&info.layers) {
        let layers = if run > 1 { format!("{first}–{}", first + run - 1) } else { first.to_string() };
        rows.extend(lines(layers, &info.layers[first], run));
    }
    rows.push(totals(info));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; HEADER.len()] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  "))?;
    }
    let mut parts = info.layers.iter().flat_map(|layer| &layer.parts);
    let channels = match parts.any(|part| part.kind.head_noun() == "channel") {
        true => "; where a mixer keeps a state for every channel, each is a head",
        false => "",
    };
    writeln!(out, "\npattern: {}", legend(&pattern(&info.layers)))?;
    writeln!(out, "P: values a head mixes; N: state entries a value, for attention the width of a key{channels}")?;
    Ok(())
}

/// Layers that are equal to the one before, as (first, how many).
fn runs(layers: &[LayerInfo]) -> Vec<(usize, usize)> {
    let mut first = 0;
    let runs = layers.chunk_by(|one, next| one == next).map(|run| {
        first += run.len();
        (first - run.len(), run.len())
    });
    runs.collect()
}

/// One line a mixer of the layer; what belongs to the layer as a whole stands in the first.
fn lines(layers: String, layer: &LayerInfo, run: usize) -> Vec<[String; HEADER.len()]> {
    let times = if run > 1 { format!("{run} × ") } else { String::new() };
    let feed_forward = layer.feed_forward.as_ref().map_or(NONE.to_owned(), feed_forward);
    let parameters = format!("{times}{}", count(layer.parameters));
    let mut whole = Some((layers, feed_forward, parameters));
    let line = |part: &Geometry| {
        let (layers, feed_forward, parameters) = whole.take().unwrap_or_default();
        let label = if layers.is_empty() { format!("+ {}", part.kind.label()) } else { part.kind.label().to_owned() };
        let mixes = part.kind.mixes();
        let some = |number: usize| if number == 0 { NONE.to_owned() } else { number.to_string() };
        [
            layers,
            label,
            if mixes { format!("{} × {} × {}", part.heads, part.head_dim, part.state_dim) } else { NONE.to_owned() },
            if mixes { part.groups.to_string() } else { NONE.to_owned() },
            some(part.conv_taps),
            part.window.map_or(NONE.to_owned(), |window| window.to_string()),
            memory(part.state_bytes),
            memory(part.kv_bytes_per_token),
            feed_forward,
            parameters,
        ]
    };
    layer.parts.iter().map(line).collect()
}

fn feed_forward(feed_forward: &FeedForwardInfo) -> String {
    match feed_forward.experts {
        None => format!("MLP {}", feed_forward.width),
        Some((experts, chosen)) => format!("{chosen} of {experts} experts {}", feed_forward.width),
    }
}

fn memory(count: usize) -> String {
    if count == 0 { NONE.to_owned() } else { bytes(count) }
}

/// Of all layers; embeddings and head are in the model's parameters, not in these.
fn totals(info: &ModelInfo) -> [String; HEADER.len()] {
    let mut row: [String; HEADER.len()] = Default::default();
    row[0] = "all".to_owned();
    row[6] = memory(info.state_bytes);
    row[7] = memory(info.kv_bytes_per_token);
    row[9] = count(info.layers.iter().map(|layer| layer.parameters).sum());
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(kinds: &[MixerKind], experts: Option<(usize, usize)>) -> LayerInfo {
        let part = |kind: &MixerKind| Geometry {
            kind: *kind,
            heads: 2,
            head_dim: 4,
            state_dim: 8,
            groups: 1,
            rank: 1,
            decay_dim: 1,
            conv_taps: 4,
            gated: true,
            window: None,
            state_bytes: 64,
            kv_bytes_per_token: 0,
        };
        let feed_forward = Some(FeedForwardInfo { width: 32, experts });
        LayerInfo { parts: kinds.iter().map(part).collect(), feed_forward, parameters: 7 }
    }

    #[test]
    fn a_pattern_has_a_letter_a_layer() {
        use MixerKind::*;
        let layers = [
            layer(&[Mamba1], None),
            layer(&[Mamba2, Attention], None),
            layer(&[FeedForward], None),
            layer(&[FeedForward], Some((8, 2))),
            layer(&[DeltaRule], None),
            layer(&[ShortConv], None),
            layer(&[ShortConv], None),
        ];
        assert_eq!(pattern(&layers), "M[MA]-EDCC");
        assert_eq!(legend("M[MA]"), "M selective state space, A attention, [ ] in one layer");
        assert_eq!(runs(&layers).last(), Some(&(5, 2)));
        let lines = lines("1".to_owned(), &layers[1], 1);
        assert_eq!((lines.len(), lines[1][0].as_str(), lines[1][1].as_str()), (2, "", "+ attention"));
    }
}
