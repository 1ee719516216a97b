//! All heads: the mixing matrices of one layer as small maps, recurrent heads and softmax heads in the same form.

use eframe::egui::{self, Rect, Sense, vec2};
use statescope_engine::protocol::{MixerKind, MixingView as Matrix, Point, Probe, Reading, Reduction, Scale, Stage};

use crate::action::Action;
use crate::theme::ColourMap;
use crate::view::gates::order_probe;
use crate::view::quantity::cells::PlaneCells;
use crate::view::quantity::plate::{self, Place};
use crate::view::quantity::{
    Subject, exact, half_life, no_mixer, percent, spread, tokens_words, typical_order, window_words,
};
use crate::view::state::tiles;
use crate::view::{View, ViewContext, ViewKind};
use crate::widget::heatmap::{Heatmap, ValueScale, hatch};
use crate::widget::panel;

/// Cells a side of a small matrix.
const POOLED: u16 = 64;
/// Matrices the engine draws at once.
const MOST: usize = 64;
/// Channels of a Mamba-1 layer shown.
const CHANNELS: usize = 16;

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Settings {
    /// |M| as shares of the row, the scale to compare with softmax; else M signed.
    share: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { share: true }
    }
}

#[derive(Default)]
pub struct HeadsView {
    settings: Settings,
}

impl View for HeadsView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        let Some(subject) = Subject::of(cx) else { return "All heads".into() };
        if !subject.kind().mixes() {
            return format!("All heads · {}", subject.layer_name());
        }
        let which = match subject.mixer.heads {
            heads if heads <= MOST => format!("{heads} {}s", subject.kind().head_noun()),
            heads => format!("{} of {heads} {}s", CHANNELS + 1, subject.kind().head_noun()),
        };
        let scale = if self.settings.share { "row share" } else { "signed" };
        format!("All heads · {} · {which} · core, {scale}", subject.layer_name())
    }

    fn explanation(&self, _: &ViewContext<'_>) -> String {
        "Each small map is the mixing matrix of one head: row i is the token that reads, column j the token read from, y_i = Σ_j M_ij v_j. \
         Row share is |M_ij| / Σ_j |M_ij|, in which recurrent and softmax heads compare; every cell stands for a block and shows its entry of largest size. \
         Each map has its own colour range; the words beneath say how far the head looks back. Click a map to select the head."
            .into()
    }

    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>) {
        let Some(subject) = Subject::of(cx).filter(|subject| subject.kind().mixes()) else { return };
        probes.push(order_probe(&subject));
        if subject.mixer.heads <= MOST {
            probes.push(self.probe(&subject));
        } else {
            let chosen = chosen_channels(cx, &subject);
            probes.extend(chosen.into_iter().map(|channel| self.probe(&subject).head(channel)));
        }
    }

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        let Some(subject) = Subject::of(cx) else {
            panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
            return;
        };
        if !subject.kind().mixes() {
            return panel::empty(ui, cx.theme, &no_mixer(subject.layer, "heads"));
        }
        if cx.store.length() == 0 {
            panel::empty(ui, cx.theme, "Press Space to read the prompt and run.");
            return;
        }
        ui.horizontal(|ui| {
            let options = [(true, "row share"), (false, "signed")];
            if let Some(share) = panel::choice(ui, cx.theme, self.settings.share, &options) {
                self.settings.share = share;
            }
            let scale =
                if self.settings.share { "log, each map its own range" } else { "symlog, each map its own range" };
            let scale = [scale.to_owned(), reach_words(&subject)].join(" · ");
            let text = egui::RichText::new(scale).font(cx.theme.small()).color(cx.theme.text_muted);
            ui.add(egui::Label::new(text).truncate());
        });
        let all = subject.mixer.heads <= MOST;
        let heads = if all { (0..subject.mixer.heads).collect() } else { chosen_channels(cx, &subject) };
        if heads.is_empty() {
            panel::empty(ui, cx.theme, "What the channels are chosen by is not known yet.");
            return;
        }
        let (area, _) = ui.allocate_exact_size(ui.available_size().max(vec2(32.0, 32.0)), Sense::hover());
        for (k, (head, tile)) in heads.iter().zip(tiles(area, heads.len(), 1.0)).enumerate() {
            let probe = if all { self.probe(&subject) } else { self.probe(&subject).head(*head) };
            self.tile(ui, cx, &subject, &probe, if all { k } else { 0 }, *head, tile, actions);
        }
    }

    fn save(&self) -> serde_json::Value {
        serde_json::to_value(&self.settings).unwrap_or_default()
    }

    fn restore(&mut self, saved: &serde_json::Value) {
        if let Ok(settings) = serde_json::from_value(saved.clone()) {
            self.settings = settings;
        }
    }
}

/// Channels spread over the half-lives (of a short convolution the writes) known, and the selected one. The choice is made anew only when the text has doubled.
fn chosen_channels(cx: &ViewContext<'_>, subject: &Subject<'_>) -> Vec<usize> {
    let series = cx.store.series(&order_probe(subject)).filter(|series| !series.is_empty());
    let Some(series) = series else { return Vec::new() };
    let end = (series.len() + 1).next_power_of_two() / 2;
    let order = typical_order(Some(series), subject.mixer.heads, end.max(1));
    let mut chosen = spread(&order, CHANNELS);
    if !chosen.contains(&subject.head) {
        let rank = |channel: usize| order.iter().position(|c| *c == channel).unwrap_or(0);
        let place = chosen.iter().position(|c| rank(*c) > rank(subject.head)).unwrap_or(chosen.len());
        chosen.insert(place, subject.head);
    }
    chosen
}

impl HeadsView {
    fn probe(&self, subject: &Subject<'_>) -> Probe {
        let scale = if self.settings.share { Scale::RowShare } else { Scale::Raw };
        subject
            .latest(Point::Mixing(Matrix { stage: Stage::Core, scale }), Reduction::Pool { rows: POOLED, cols: POOLED })
    }

    #[allow(clippy::too_many_arguments)]
    fn tile(
        &self,
        ui: &mut egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        probe: &Probe,
        index: usize,
        head: usize,
        tile: Rect,
        actions: &mut Vec<Action>,
    ) {
        let selected = head == subject.head;
        let rect = plate::tile_header(ui, cx, tile, &head.to_string(), &reach(cx, subject, head), selected);
        let Some(reading) = cx.store.latest(probe) else {
            hatch(ui, cx.theme, rect);
            return;
        };
        let Some((rows, cols)) = plane(reading, index) else { return };
        let cells = Triangle {
            plane: PlaneCells::of(&reading.values, index, rows, cols, cx.store.latest_generation(probe)),
            first: reading.positions.start,
            tokens: reading.positions.len(),
        };
        let describe = |row: usize, col: usize, value: Option<f32>| {
            let (i, j) = (cells.tokens_of(row), cells.tokens_of(col));
            let value = match value {
                Some(value) if self.settings.share => format!("{} of the row", percent(value)),
                Some(value) => exact(value),
                None => "nothing: no token looks ahead".into(),
            };
            format!(
                "{}: {value}\nlargest of rows {}–{}, columns {}–{}",
                subject.head_name_of(head),
                i.start,
                i.end - 1,
                j.start,
                j.end - 1
            )
        };
        let (map, scale) = match (self.settings.share, subject.kind() != MixerKind::Attention) {
            (true, _) | (false, false) => (ColourMap::Sequential, ValueScale::Log),
            (false, true) => (ColourMap::Diverging, ValueScale::Symlog),
        };
        let range = plate::auto_range(map, scale, reading.range);
        let heatmap = Heatmap::new(("head", head), &cells)
            .map(map)
            .scale(scale)
            .range(range)
            .size(rect.size())
            .label(format!("Mixing matrix of {}, layer {}", subject.head_name_of(head), subject.layer))
            .describe(&describe);
        let response = plate::inside(ui, rect, |ui| heatmap.show(ui, cx.theme));
        plate::frame(ui, cx, response.rect, selected, plate::hovered_head(cx, subject) == Some(head));
        if let Some((row, col, _)) = response.hovered {
            let at = |cell| Some(cells.tokens_of(cell).start).filter(|_| cells.tokens <= rows);
            actions.push(Place::of(subject, Some(head)).hover(at(row), at(col)));
        }
        if response.clicked.is_some() {
            actions.push(Action::SelectHead(head));
        }
        let value = response.hovered.and_then(|(_, _, value)| value);
        let csv = || {
            reading
                .values
                .chunks(cols.max(1))
                .map(|row| row.iter().map(|v| exact(*v)).collect::<Vec<_>>().join(","))
                .collect::<Vec<_>>()
                .join("\n")
        };
        plate::menu(&response.response, ViewKind::Heads, "heads", value, &csv, actions);
    }
}

/// Rows and columns of matrix `index`, if the reading has one.
fn plane(reading: &Reading, index: usize) -> Option<(usize, usize)> {
    match reading.shape[..] {
        [count, rows, cols] if index < count => Some((rows, cols)),
        [rows, cols] if index == 0 => Some((rows, cols)),
        _ => None,
    }
}

/// What the number at the right of a tile is.
fn reach_words(subject: &Subject<'_>) -> String {
    match subject.kind() {
        MixerKind::Attention => "right: tokens it spreads over".into(),
        MixerKind::DeltaRule => "right: half-life of α in tokens".into(),
        kind if kind.decays() => "right: half-life in tokens".into(),
        _ => window_words(subject.mixer),
    }
}

/// How far a head looks: its half-life at the cursor, or over how many tokens its softmax spreads.
fn reach(cx: &ViewContext<'_>, subject: &Subject<'_>, head: usize) -> String {
    let Some(token) = subject.cursor else { return String::new() };
    let short =
        |tokens: f32| tokens_words(tokens).replace(" tokens", "").replace(" token", "").replace("over 10,000", ">10k");
    let value = cx.store.series(&order_probe(subject)).and_then(|series| series.value(token, head));
    let tokens = match subject.kind() {
        MixerKind::Attention => value.map(f32::exp2),
        kind if kind.decays() => value.and_then(half_life),
        _ => None,
    };
    tokens.map_or_else(String::new, short)
}

/// A pooled causal matrix: blocks above the diagonal are empty.
struct Triangle<'a> {
    plane: PlaneCells<'a>,
    /// Position of the first token covered.
    first: usize,
    tokens: usize,
}

impl Triangle<'_> {
    /// The tokens that a row or column of blocks covers.
    fn tokens_of(&self, cell: usize) -> std::ops::Range<usize> {
        let blocks = self.plane.rows.min(self.tokens).max(1);
        let start = cell * self.tokens / blocks;
        self.first + start..self.first + ((cell + 1) * self.tokens / blocks).max(start + 1)
    }
}

impl crate::widget::heatmap::Cells for Triangle<'_> {
    fn rows(&self) -> usize {
        self.plane.rows.min(self.tokens)
    }

    fn cols(&self) -> usize {
        self.plane.cols.min(self.tokens)
    }

    fn value(&self, row: usize, col: usize) -> Option<f32> {
        if col > row { None } else { self.plane.value(row, col) }
    }

    fn generation(&self) -> u64 {
        self.plane.generation() ^ self.tokens as u64
    }

    fn end(&self, row: usize) -> usize {
        row + 1
    }
}
