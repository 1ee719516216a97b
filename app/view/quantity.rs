//! What the views talk about: the layer, head and token looked at, the quantities of a layer, and the words for their values.

pub mod cells;
mod layer;
pub mod plate;
pub mod pooled;

use statescope_engine::protocol::{
    Fold, Geometry, LayerInfo, MixerKind, ModelInfo, Point, Positions, Probe, Reduction, RunState,
};

use crate::store::{Series, Store};
use crate::view::ViewContext;
use crate::widget::format;

pub use layer::LayerQuantity;

/// The selection made safe: clamped to the model that is loaded and to the tokens that exist.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub model: &'a ModelInfo,
    pub layer: usize,
    pub part: usize,
    pub mixer: &'a Geometry,
    /// Head, or channel of a Mamba-1 layer.
    pub head: usize,
    /// The token looked at: the pinned one, else the newest processed one, in a fast run the newest that all is known of. None before the first
    /// token.
    pub cursor: Option<usize>,
    /// Whether the cursor follows the newest token.
    pub live: bool,
}

impl<'a> Subject<'a> {
    /// None without a model, or with a model of no layers.
    pub fn of(cx: &ViewContext<'a>) -> Option<Self> {
        let model = cx.store.model.as_deref()?;
        let last = model.layers.len().checked_sub(1)?;
        let layer = cx.selection.layer.min(last);
        let parts = &model.layers[layer].parts;
        let part = cx.selection.part.min(parts.len().checked_sub(1)?);
        let mixer = &parts[part];
        let live = cx.selection.query.is_none();
        Some(Self {
            model,
            layer,
            part,
            mixer,
            head: cx.selection.head.min(mixer.heads.saturating_sub(1)),
            cursor: if live { newest_known(cx) } else { cx.cursor() },
            live,
        })
    }

    pub fn kind(&self) -> MixerKind {
        self.mixer.kind
    }

    pub fn info(&self) -> &'a LayerInfo {
        &self.model.layers[self.layer]
    }

    /// 'layer 4 · Mamba-2'.
    pub fn layer_name(&self) -> String {
        format!("layer {} · {}", self.layer, self.kind().label())
    }

    /// 'head 2', or 'channel 37'.
    pub fn head_name(&self) -> String {
        self.head_name_of(self.head)
    }

    pub fn head_name_of(&self, head: usize) -> String {
        format!("{} {head}", self.kind().head_noun())
    }

    /// Which key and query (B and C) the head reads: consecutive heads share one.
    pub fn group(&self) -> usize {
        self.head * self.mixer.groups / self.mixer.heads.max(1)
    }

    /// Norm of the residual stream after the layer, which belongs to no single mixer.
    pub fn residual(&self) -> Probe {
        Probe::series(self.layer, Point::Resid, Reduction::Layer(Fold::Norm))
    }

    /// A lossless series of this mixer.
    pub fn series(&self, point: Point, reduction: Reduction) -> Probe {
        with_part(Probe::series(self.layer, point, reduction), self.part)
    }

    /// The value at the cursor; live probes follow the newest token without being asked again.
    pub fn at_cursor(&self, point: Point, reduction: Reduction) -> Probe {
        let positions = match self.cursor {
            Some(token) if !self.live => Positions::At(token as u32),
            _ => Positions::Live,
        };
        with_part(Probe::latest(self.layer, point, reduction, positions), self.part)
    }

    /// The newest value over all tokens.
    pub fn latest(&self, point: Point, reduction: Reduction) -> Probe {
        with_part(Probe::latest(self.layer, point, reduction, Positions::All), self.part)
    }
}

/// The newest token; of a run that the pictures are a little behind, the newest that all is known of, so that its numbers can be read.
fn newest_known(cx: &ViewContext<'_>) -> Option<usize> {
    let newest = cx.cursor()?;
    let known = cx.store.known().saturating_sub(1).min(newest);
    Some(if cx.store.run == RunState::Running && known > newest / 2 { known } else { newest })
}

/// The probe for mixer `part` of its layer.
pub fn with_part(mut probe: Probe, part: usize) -> Probe {
    probe.site.part = part as u8;
    probe
}

/// What a panel about mixers says of a layer that has none.
pub fn no_mixer(layer: usize, what: &str) -> String {
    format!(
        "Layer {layer} is feed-forward alone: it mixes no tokens, so it has no {what}. Choose another layer in the strip at the top, or with [ and ]."
    )
}

/// 'sees the last 64 tokens' of a mixer whose sight ends; empty of others.
pub fn window_words(mixer: &Geometry) -> String {
    match (mixer.kind, mixer.window) {
        (MixerKind::Attention, Some(window)) => format!("sliding window of {}", format::plural(window, "token")),
        (_, Some(window)) => format!("window of {}", format::plural(window, "token")),
        (_, None) => String::new(),
    }
}

/// In how many tokens half of a memory is gone, if each step keeps `retention` of it: ln 2 / −ln(retention).
pub fn half_life(retention: f32) -> Option<f32> {
    match retention {
        r if !r.is_finite() || r < 0.0 => None,
        r if r >= 1.0 => Some(f32::INFINITY),
        0.0 => Some(0.0),
        r => Some((std::f64::consts::LN_2 / -f64::from(r).ln()) as f32),
    }
}

/// '11 tokens', '0.4 tokens', 'over 10,000 tokens'.
pub fn tokens_words(tokens: f32) -> String {
    match tokens {
        t if !t.is_finite() || t > 10_000.0 => "over 10,000 tokens".into(),
        t if t >= 9.95 => format!("{} tokens", format::thousands(t.round() as usize)),
        t if (t - 1.0).abs() < 0.05 => "1 token".into(),
        t => format!("{t:.1} tokens"),
    }
}

/// '94 %', with enough digits near the ends to tell 99.9 % from everything.
pub fn percent(share: f32) -> String {
    if !share.is_finite() {
        return "unknown".into();
    }
    let p = f64::from(share) * 100.0;
    let gap = p.abs().min((100.0 - p).abs());
    match gap {
        0.0 => format!("{p:.0} %"),
        // Not zero, and not all of it, though it would round to that.
        g if g < 0.5e-5 => if p < 50.0 { "< 0.00001 %" } else { "> 99.99999 %" }.into(),
        g if g < 0.001 => format!("{p:.5} %"),
        g if g < 0.01 => format!("{p:.3} %"),
        g if g < 1.0 => format!("{p:.2} %"),
        g if g < 5.0 => format!("{p:.1} %"),
        _ => format!("{p:.0} %"),
    }
}

/// 'head 2 keeps 94 % from one token to the next: half-life 11 tokens'.
pub fn retention_words(who: &str, retention: f32) -> String {
    match half_life(retention) {
        Some(tokens) => {
            format!("{who} keeps {} from one token to the next: half-life {}", percent(retention), tokens_words(tokens))
        }
        None => format!("{who}: retention is {retention}, which is no share"),
    }
}

/// The shortest text that reads back as the same f32.
pub fn exact(value: f32) -> String {
    let size = value.abs();
    if value == 0.0 || !value.is_finite() || (1e-4..1e7).contains(&size) {
        format!("{value}")
    } else {
        format!("{value:e}")
    }
}

/// Four significant digits, for running text.
pub fn short(value: f32) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".into()
    } else if !value.is_finite() {
        format!("{value}")
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.2e}")
    } else {
        let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
        format!("{value:.decimals$}")
    }
}

/// A text as one CSV field.
pub fn csv_text(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// A token as words quote it: without the space it begins with, unless it is nothing else.
pub fn quoted(store: &Store, position: usize) -> String {
    let text = store.token_text(position);
    if text.trim().is_empty() {
        format!("“{}”", store.token_label(position))
    } else {
        format!("“{}”", text.trim())
    }
}

/// Bytes on one line: text where they are text, hexadecimal where they are a piece of a character.
pub fn bytes_label(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let mut label: String = text
                .chars()
                .take(24)
                .map(|c| match c {
                    ' ' => '·',
                    '\n' => '↵',
                    '\t' => '⇥',
                    c if c.is_control() => '␀',
                    c => c,
                })
                .collect();
            if text.chars().count() > 24 {
                label.push('…');
            }
            label
        }
        Err(_) => bytes.iter().map(|b| format!("<{b:02X}>")).collect(),
    }
}

/// Indices of `values`, largest first; unknown (NaN) ones last, equals by index.
pub fn ranked(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let key = |i: usize| if values[i].is_nan() { f32::NEG_INFINITY } else { values[i] };
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
    order
}

/// Entries of a series ranked by their mean over at most 32 of the tokens before `end`, largest first.
pub fn typical_order(series: Option<&Series>, entries: usize, end: usize) -> Vec<usize> {
    let mut sums = vec![0.0f32; entries];
    if let Some(series) = series {
        for t in (0..end).step_by(end.div_ceil(32).max(1)) {
            if let Some(row) = series.row(t) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
    }
    ranked(&sums)
}

/// `count` entries of a ranking, evenly spread from the first to the last.
pub fn spread(order: &[usize], count: usize) -> Vec<usize> {
    if order.len() <= count || count < 2 {
        return order.iter().copied().take(count.max(order.len().min(1))).collect();
    }
    (0..count).map(|i| order[i * (order.len() - 1) / (count - 1)]).collect()
}

/// min, median and max of what is finite.
pub fn spread_of(values: &[f32]) -> Option<[f32; 3]> {
    let mut finite: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    if finite.is_empty() {
        return None;
    }
    let middle = finite.len() / 2;
    let (below, median, above) = finite.select_nth_unstable_by(middle, f32::total_cmp);
    let low = below.iter().copied().fold(*median, f32::min);
    Some([low, *median, above.iter().copied().fold(*median, f32::max)])
}

/// Mean distance a row looks back, Σ_j (i−j)|M_ij| / Σ_j |M_ij| tokens (DeciMamba, arXiv 2406.14528).
pub fn mean_distance(row: &[f32]) -> Option<f32> {
    let last = row.len().checked_sub(1)?;
    let (mut weighted, mut total) = (0.0f64, 0.0f64);
    for (j, value) in row.iter().enumerate() {
        let size = f64::from(value.abs());
        weighted += size * (last - j) as f64;
        total += size;
    }
    (total > 0.0 && weighted.is_finite()).then(|| (weighted / total) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_lives() {
        assert_eq!(half_life(0.5), Some(1.0));
        assert!((half_life(0.94).unwrap() - 11.2).abs() < 0.05);
        assert_eq!(half_life(1.0), Some(f32::INFINITY));
        assert_eq!(half_life(0.0), Some(0.0));
        assert_eq!(half_life(f32::NAN), None);
        assert_eq!(half_life(-0.1), None);
    }

    #[test]
    fn retention_in_words() {
        assert_eq!(
            retention_words("head 2", 0.94),
            "head 2 keeps 94 % from one token to the next: half-life 11 tokens"
        );
        assert_eq!(
            retention_words("channel 5", 1.0),
            "channel 5 keeps 100 % from one token to the next: half-life over 10,000 tokens"
        );
        assert_eq!(percent(0.9994), "99.94 %");
        assert_eq!((percent(0.0), percent(5e-9)), ("0 %".into(), "< 0.00001 %".into()));
    }

    #[test]
    fn numbers_read_back() {
        for value in [0.1f32, 1.0 / 3.0, 1e-20, -3.4e38, 12345.678, 0.0, f32::MIN_POSITIVE] {
            assert_eq!(exact(value).parse::<f32>().unwrap().to_bits(), value.to_bits());
        }
        assert_eq!(short(0.043_105_7), "0.04311");
        assert_eq!(short(1234.5), "1234");
    }

    #[test]
    fn rankings() {
        assert_eq!(ranked(&[0.1, f32::NAN, 0.9, 0.1]), [2, 0, 3, 1]);
        assert_eq!(spread(&[9, 8, 7, 6, 5], 3), [9, 7, 5]);
        assert_eq!(spread(&[4, 2], 16), [4, 2]);
        assert!(spread(&[], 16).is_empty());
        assert_eq!(spread_of(&[3.0, f32::NAN, 1.0, 2.0]), Some([1.0, 2.0, 3.0]));
        assert_eq!(mean_distance(&[1.0, 0.0, -1.0]), Some(1.0));
        assert_eq!(mean_distance(&[0.0, 0.0]), None);
    }

    #[test]
    fn tokens_on_one_line() {
        assert_eq!(bytes_label(b" fox\n"), "·fox↵");
        assert_eq!(bytes_label(&[0xE2, 0x82]), "<E2><82>");
    }
}
