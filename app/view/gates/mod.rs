//! Gates: step size, retention, write and read strength of every head over tokens, and the selected head as a line.

mod quantity;

use eframe::egui::{self, Color32, vec2};
use statescope_engine::protocol::{Point, Probe, Reduction};

use crate::action::Action;
use crate::theme::{Theme, space};
use crate::view::quantity::plate::{self, Colours, Place};
use crate::view::quantity::pooled::PooledSeries;
use crate::view::quantity::{Subject, csv_text, exact, no_mixer, quoted, spread_of, typical_order};
use crate::view::{View, ViewContext, ViewKind};
use crate::widget::heatmap::{Cells, Heatmap, HeatmapResponse};
use crate::widget::scale::Normaliser;
use crate::widget::series::{Lines, SeriesPlot};
use crate::widget::{format, panel};
use quantity::{Gate, half_lives, order_words};

pub use quantity::{order_probe, retention_probe};

/// A strip with its own row for caption and legend; lower ones carry the caption on the map.
const STRIP: f32 = 92.0;
/// Lowest strip that can still be read.
const LOWEST: f32 = 46.0;
/// Height of a caption without a legend.
const CAPTION: f32 = 14.0;

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Settings {
    /// One quantity large, or all.
    only: Option<Gate>,
    /// Heads from local to global memory instead of by number.
    sorted: bool,
    colours: [Colours; Gate::ALL.len()],
}

impl Default for Settings {
    fn default() -> Self {
        Self { only: None, sorted: false, colours: Gate::ALL.map(|gate| Colours::new(gate.scale())) }
    }
}

#[derive(Default)]
pub struct GatesView {
    settings: Settings,
    strips: [PooledSeries; Gate::ALL.len()],
    /// The order of the heads and what it was made for; stays while the text grows to twice its length, so that rows do not jump.
    order: Option<((Probe, u64, usize), Vec<usize>)>,
}

impl View for GatesView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        match Subject::of(cx) {
            Some(subject) => {
                let kind = subject.kind();
                let names: Vec<&str> = Gate::of(subject.mixer).iter().map(|gate| gate.label(kind)).collect();
                if names.is_empty() {
                    return format!("Gates · {}", subject.layer_name());
                }
                let nouns = format!("{} {}s", subject.mixer.heads, subject.kind().head_noun());
                format!("Gates · {} · {} · {nouns}", subject.layer_name(), names.join(", "))
            }
            None => "Gates".into(),
        }
    }

    fn explanation(&self, _: &ViewContext<'_>) -> String {
        "Each strip shows one quantity of every head (rows) at every token (columns), and the selected head as a line beneath. \
         Δ_t is the step the mixer takes, exp(Δ_t A) the share of its state that it keeps, ‖Δ B xᵀ‖ what it adds, ‖S C‖ what it reads out; \
         for attention ‖k‖·‖v‖, what is read, and the entropy of its weights; for the delta rule the retention α and the share β it replaces; \
         for a short convolution its two gates B and C. \
         A head that keeps a share r forgets half in ln 2 / −ln r tokens."
            .into()
    }

    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>) {
        let Some(subject) = Subject::of(cx) else { return };
        for gate in self.shown(&subject) {
            probes.push(gate.probe(&subject));
        }
        if self.settings.sorted && subject.kind().mixes() {
            probes.push(order_probe(&subject));
        }
        if subject.mixer.decay_dim > 1 && self.shown(&subject).contains(&Gate::Decay) {
            probes.push(entries_probe(&subject));
        }
    }

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        let Some(subject) = Subject::of(cx) else {
            panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
            return;
        };
        if !subject.kind().mixes() {
            return panel::empty(ui, cx.theme, &no_mixer(subject.layer, "gates"));
        }
        self.toolbar(ui, cx, &subject);
        if cx.store.length() == 0 {
            panel::empty(ui, cx.theme, "Press Space to read the prompt and run.");
            return;
        }
        self.update_order(cx, &subject);
        let shown = self.shown(&subject);
        let each = (ui.available_height() / shown.len().max(1) as f32 - space::XS).max(LOWEST);
        egui::ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            ui.spacing_mut().item_spacing.y = 2.0;
            for gate in shown {
                self.strip(ui, cx, &subject, gate, each, actions);
            }
        });
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

/// All N decays of the selected Mamba-1 channel.
fn entries_probe(subject: &Subject<'_>) -> Probe {
    subject.series(Point::Decay, Reduction::Full).head(subject.head)
}

impl GatesView {
    fn shown(&self, subject: &Subject<'_>) -> Vec<Gate> {
        let all = Gate::of(subject.mixer);
        match self.settings.only.filter(|gate| all.contains(gate)) {
            Some(gate) => vec![gate],
            None => all.to_vec(),
        }
    }

    fn toolbar(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, subject: &Subject<'_>) {
        // Some mixers have more gates than a narrow panel has room for in one row.
        ui.horizontal_wrapped(|ui| {
            let mut options = vec![(None, "all")];
            let all = Gate::of(subject.mixer);
            options.extend(all.iter().map(|gate| (Some(*gate), gate.label(subject.kind()))));
            let current = self.settings.only.filter(|gate| all.contains(gate));
            if let Some(only) = panel::pick(ui, cx.theme, "Gates shown", current, &options) {
                self.settings.only = only;
            }
            ui.separator();
            let by_memory = order_words(subject.kind());
            let orders = [(false, "by number"), (true, by_memory)];
            if let Some(sorted) = panel::pick(ui, cx.theme, "Order of the heads", self.settings.sorted, &orders) {
                self.settings.sorted = sorted;
            }
        });
    }

    fn update_order(&mut self, cx: &ViewContext<'_>, subject: &Subject<'_>) {
        if !self.settings.sorted {
            self.order = None;
            return;
        }
        let probe = order_probe(subject);
        let known = cx.store.series(&probe).map_or(0, |series| series.len());
        let key = (probe, cx.store.epoch, known.next_power_of_two());
        if self.order.as_ref().is_none_or(|(made_for, _)| *made_for != key) {
            let order = typical_order(cx.store.series(&probe), subject.mixer.heads, known);
            // Longest memory at the bottom.
            self.order = Some((key, order.into_iter().rev().collect()));
        }
    }

    fn strip(
        &mut self,
        ui: &mut egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        gate: Gate,
        height: f32,
        actions: &mut Vec<Action>,
    ) {
        let probe = gate.probe(subject);
        let order = self.order.as_ref().map(|(_, order)| order.as_slice());
        let cells = &mut self.strips[gate.index()];
        cells.update(cx.store, &probe, subject.mixer.heads, order);
        let cells = &*cells;
        let colours = &mut self.settings.colours[gate.index()];
        let compact = height < STRIP;
        let caption_height = if compact { CAPTION } else { space::ROW };
        let plots = height - caption_height - 3.0 * 2.0;
        let map_height = (plots * 0.58).round();
        let series = cx.store.series(&probe);
        let strongest = |row: usize, token: usize| {
            let value = |head: &usize| series.and_then(|s| s.value(token, *head)).map_or(-1.0, f32::abs);
            cells.group(row).iter().copied().max_by(|a, b| value(a).total_cmp(&value(b)).then(b.cmp(a)))
        };
        let describe = |row: usize, token: usize, _: Option<f32>| {
            let Some(head) = strongest(row, token) else { return String::new() };
            let value = series.and_then(|s| s.value(token, head));
            let more = cells.group(row).len() - 1;
            let mut text = tag(cx, subject, gate, head, token, value);
            if more > 0 {
                text.push_str(&format!("\nlargest of {} channels that share this row", more + 1));
            }
            text
        };
        let name = |row: usize| cells.group(row).first().map_or_else(String::new, |head| head.to_string());
        // The legend beside the caption needs what the map under them used, so their row is filled afterwards.
        let (header, _) = ui.allocate_exact_size(vec2(ui.available_width(), caption_height), egui::Sense::hover());
        let map = Heatmap::new(("gate", gate), cells)
            .map(gate.map())
            .scale(colours.scale)
            .range(colours.locked)
            .highlight_row(plate::hovered_head(cx, subject).and_then(|head| cells.row_of(head)))
            .label(format!("{} of every {} over tokens", gate.caption(subject.kind()), subject.kind().head_noun()))
            .describe(&describe);
        // Rows of a low strip are too thin to be framed or named: a mark in the gutter stands for the selected head.
        let map = if compact { map } else { map.row_labels(&name).cursor_row(cells.row_of(subject.head)) };
        let response = plate::map_over_time(ui, cx, map_height, map, actions);
        let hovered = response.hovered.map(|(row, token, _)| (row, token));
        plate::time_actions(ui, hovered, response.clicked, actions, |row, token| {
            Place::of(subject, strongest(row, token))
        });
        let value = response.hovered.and_then(|(_, _, value)| value);
        let csv = || csv(cx, subject);
        plate::menu(&response.response, ViewKind::Gates, "gates", value, &csv, actions);
        let caption = gate.caption(subject.kind());
        if compact {
            compact_caption(ui, cx, gate, header.with_min_x(response.rect.left()), caption, *colours, &response);
            plate::row_mark(ui, cx, response.rect, cells.rows(), cells.row_of(subject.head));
        } else {
            plate::beside(ui, header, |ui| {
                ui.horizontal(|ui| {
                    panel::caption(ui, cx.theme, caption);
                    colours.legend(ui, cx, gate.map(), gate.unit(), &response);
                });
            });
        }
        self.line(ui, cx, subject, gate, plots - map_height, actions);
    }

    fn line(
        &self,
        ui: &mut egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        gate: Gate,
        height: f32,
        actions: &mut Vec<Action>,
    ) {
        let probe = gate.probe(subject);
        let spread = gate == Gate::Decay && subject.mixer.decay_dim > 1;
        let values = if spread { spread_lines(cx, subject) } else { single_line(cx, &probe, subject.head) };
        let describe = |line: usize, token: usize, value: Option<f32>| {
            let mut text = tag(cx, subject, gate, subject.head, token, value);
            if spread && let Some(all) = values.spread(token) {
                text.push_str(&format!(
                    "\n{} of its {} state entries",
                    ["smallest", "median", "largest"][line.min(2)],
                    subject.mixer.decay_dim
                ));
                text.push_str(&format!("\n{}", half_lives(all)));
            }
            text
        };
        let plot = SeriesPlot::new(("gate line", gate), &values)
            .unit(gate.unit())
            .log(
                gate == Gate::Delta
                    && self.settings.colours[gate.index()].scale != crate::widget::heatmap::ValueScale::Linear,
            )
            .selected_line(Some(values.lines.len() - 1))
            .label(format!("{} of {} over tokens", gate.caption(subject.kind()), subject.head_name()))
            .describe(&describe);
        let response = plate::lines_over_time(ui, cx, height.max(16.0), plot, actions);
        let at = |cell: (usize, usize)| (cell.0, cell.1);
        let hovered = response.hovered.map(|(line, token, _)| (line, token));
        plate::time_actions(ui, hovered, response.clicked.map(at), actions, |_, _| {
            Place::of(subject, Some(subject.head))
        });
    }
}

/// Name and colour range in one line of small text.
fn compact_caption(
    ui: &egui::Ui,
    cx: &ViewContext<'_>,
    gate: Gate,
    rect: egui::Rect,
    caption: &str,
    colours: Colours,
    response: &HeatmapResponse,
) {
    let (low, high) = Normaliser::new(gate.map(), colours.scale, response.range_used).ends();
    let range = format!("{} – {} {}", format::digits(low, 3), format::digits(high, 3), gate.unit());
    let painter = ui.painter_at(rect);
    painter.text(rect.left_center(), egui::Align2::LEFT_CENTER, caption, cx.theme.small(), cx.theme.text_muted);
    let text = format!("{} {}", range.trim_end(), colours.scale.label());
    painter.text(rect.right_center(), egui::Align2::RIGHT_CENTER, text, cx.theme.small(), cx.theme.text_faint);
}

fn tag(
    cx: &ViewContext<'_>,
    subject: &Subject<'_>,
    gate: Gate,
    head: usize,
    token: usize,
    value: Option<f32>,
) -> String {
    let who = subject.head_name_of(head);
    let place = format!("layer {}, {who}, token {token} {}", subject.layer, quoted(cx.store, token));
    match value {
        Some(value) => {
            format!(
                "{} = {} {}\n{place}\n{}",
                gate.label(subject.kind()),
                exact(value),
                gate.unit(),
                gate.words(&who, value)
            )
        }
        None => format!("{} not known yet\n{place}", gate.label(subject.kind())),
    }
}

/// Lines over the tokens from `first` on.
struct Values {
    first: usize,
    length: usize,
    lines: Vec<Vec<Option<f32>>>,
    colours: Vec<Color32>,
}

impl Values {
    fn spread(&self, token: usize) -> Option<[f32; 3]> {
        Some([self.value(0, token)?, self.value(1, token)?, self.value(2, token)?])
    }
}

impl Lines for Values {
    fn count(&self) -> usize {
        self.lines.len()
    }

    fn len(&self) -> usize {
        self.length
    }

    fn value(&self, line: usize, token: usize) -> Option<f32> {
        *self.lines.get(line)?.get(token.checked_sub(self.first)?)?
    }

    fn colour(&self, line: usize) -> Color32 {
        self.colours[line.min(self.colours.len() - 1)]
    }

    fn name(&self, line: usize) -> String {
        if self.lines.len() == 3 { ["smallest", "median", "largest"][line.min(2)].into() } else { String::new() }
    }
}

/// The visible tokens as whole numbers.
fn visible(cx: &ViewContext<'_>) -> std::ops::Range<usize> {
    let window = plate::window(cx);
    let end = (window.end.ceil().max(0.0) as usize).min(cx.store.length());
    (window.start.floor().max(0.0) as usize).min(end)..end
}

fn line_colour(theme: &Theme, index: usize) -> Color32 {
    theme.line_colour(index, 4)
}

fn single_line(cx: &ViewContext<'_>, probe: &Probe, head: usize) -> Values {
    let tokens = visible(cx);
    let series = cx.store.series(probe);
    let line = tokens.clone().map(|t| series.and_then(|s| s.value(t, head))).collect();
    Values {
        first: tokens.start,
        length: cx.store.length(),
        lines: vec![line],
        colours: vec![line_colour(cx.theme, 0)],
    }
}

/// Smallest, median and largest retention over the state entries of the selected channel.
fn spread_lines(cx: &ViewContext<'_>, subject: &Subject<'_>) -> Values {
    let tokens = visible(cx);
    let series = cx.store.series(&entries_probe(subject));
    let mut lines = [const { Vec::new() }; 3];
    for t in tokens.clone() {
        let spread = series.and_then(|s| s.row(t)).and_then(spread_of);
        for (k, line) in lines.iter_mut().enumerate() {
            line.push(spread.map(|s| s[k]));
        }
    }
    let colours = vec![line_colour(cx.theme, 2), line_colour(cx.theme, 1), line_colour(cx.theme, 0)];
    Values { first: tokens.start, length: cx.store.length(), lines: lines.to_vec(), colours }
}

/// One line per token: the selected head's quantities.
fn csv(cx: &ViewContext<'_>, subject: &Subject<'_>) -> String {
    let (gates, kind) = (Gate::of(subject.mixer), subject.kind());
    let mut text = format!("position,token,{}", gates.iter().map(|g| g.label(kind)).collect::<Vec<_>>().join(","));
    for t in 0..cx.store.length() {
        text.push_str(&format!("\n{t},{}", csv_text(&cx.store.token_text(t))));
        for gate in gates {
            let value = cx.store.series(&gate.probe(subject)).and_then(|s| s.value(t, subject.head));
            text.push_str(&format!(",{}", value.map(exact).unwrap_or_default()));
        }
    }
    text
}
