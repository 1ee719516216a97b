//! Reach: how far back each layer looks, state spaces and attention on one axis.

mod measure;

use eframe::egui::{self, Align2, Color32, Rect, Role, Sense, Stroke, StrokeKind, WidgetInfo, pos2, vec2};
use statescope_engine::protocol::{Geometry, ModelInfo, Point, Probe, REACH_HEADS, Reach, Reduction};

use crate::action::Action;
use crate::theme::{Theme, space};
use crate::view::quantity::plate::{self, Place};
use crate::view::quantity::{Subject, exact, quoted};
use crate::view::{View, ViewContext, ViewKind};
use crate::widget::heatmap::hatch;
use crate::widget::panel;
use measure::{Measure, Scale, head_of, mean, of_reading};

/// Height of the names of layers below the plot.
const NAMES: f32 = 34.0;
const DOT: f32 = 2.8;
/// Half the width of the bar that stands for the mean, at most.
const BAR: f32 = 40.0;
/// Room for whole dots at zero and at the top.
const EDGE: f32 = 5.0;

#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Settings {
    measure: Measure,
    log: bool,
}

#[derive(Default)]
pub struct ReachView {
    settings: Settings,
}

/// One mixer: a place on the axis.
#[derive(Clone, Copy)]
struct Column<'a> {
    layer: usize,
    part: usize,
    mixer: &'a Geometry,
}

impl Column<'_> {
    fn probe(&self, subject: &Subject<'_>) -> Probe {
        let mut probe = subject.at_cursor(Point::Reach, Reduction::Full);
        (probe.site.layer, probe.site.part) = (self.layer as u16, self.part as u8);
        probe
    }

    fn name(&self) -> String {
        format!("layer {} · {}", self.layer, self.mixer.kind.label())
    }
}

/// Every mixer of every layer, also of those that mix nothing, so that the axis is the model.
fn columns(model: &ModelInfo) -> Vec<Column<'_>> {
    let mut columns = Vec::new();
    for (layer, info) in model.layers.iter().enumerate() {
        columns.extend(info.parts.iter().enumerate().map(|(part, mixer)| Column { layer, part, mixer }));
    }
    columns
}

impl View for ReachView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        let name = self.settings.measure.name();
        match Subject::of(cx).and_then(|subject| Some((subject.cursor?, subject.live))) {
            Some((token, live)) => {
                format!("Reach · {name} · all layers, token {token}{}", if live { " (live)" } else { "" })
            }
            None => format!("Reach · {name} · all layers"),
        }
    }

    fn explanation(&self, _: &ViewContext<'_>) -> String {
        format!(
            "How far back the token at the cursor looks, in every layer: recurrent mixers and attention on one axis, by their mixing matrices M. \
             A dot is a head (up to {REACH_HEADS}, spread over the layer), the bar is the mean of the dots. \
             With p_j = |M_ij| / Σ_j |M_ij|: the mean distance is Σ_j (i − j) p_j tokens (DeciMamba, Ben-Kish et al. 2024), the entropy −Σ_j p_j log₂ p_j bits, \
             the effective receptive field the fewest newest tokens that hold 90 % of the row."
        )
    }

    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>) {
        let Some(subject) = Subject::of(cx) else { return };
        let mixing = columns(subject.model).into_iter().filter(|column| column.mixer.kind.mixes());
        probes.extend(mixing.map(|column| column.probe(&subject)));
    }

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        let Some(subject) = Subject::of(cx) else {
            panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
            return;
        };
        ui.horizontal_wrapped(|ui| {
            if let Some(measure) = panel::choice(ui, cx.theme, self.settings.measure, &Measure::ALL) {
                self.settings.measure = measure;
            }
            if let Some(log) = panel::choice(ui, cx.theme, self.settings.log, &[(false, "linear"), (true, "log")]) {
                self.settings.log = log;
            }
        });
        let Some(token) = subject.cursor else {
            panel::empty(ui, cx.theme, "Press Space to read the prompt and run.");
            return;
        };
        self.plot(ui, cx, &subject, token, actions);
    }

    fn save(&self) -> serde_json::Value {
        serde_json::to_value(self.settings).unwrap_or_default()
    }

    fn restore(&mut self, saved: &serde_json::Value) {
        if let Ok(settings) = serde_json::from_value(saved.clone()) {
            self.settings = settings;
        }
    }
}

impl ReachView {
    fn plot(
        &self,
        ui: &mut egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        token: usize,
        actions: &mut Vec<Action>,
    ) {
        let (area, _) = ui.allocate_exact_size(ui.available_size().max(vec2(64.0, 64.0)), Sense::hover());
        let left = area.left() + space::GUTTER;
        let rect = Rect::from_min_max(pos2(left, area.top() + 2.0), pos2(area.right(), area.bottom() - NAMES));
        let columns = columns(subject.model);
        let known: Vec<Option<Vec<Reach>>> =
            columns.iter().map(|column| cx.store.latest(&column.probe(subject)).map(of_reading)).collect();
        let largest = known.iter().flatten().flatten().map(|reach| self.settings.measure.of(*reach));
        let scale = Scale::new(largest.filter(|v| v.is_finite()).fold(0.0, f32::max), self.settings.log);
        ui.painter().rect_filled(rect, 0.0, cx.theme.well);
        self.axis(ui, cx.theme, rect, &scale);
        let width = rect.width() / columns.len().max(1) as f32;
        let csv = || csv(&columns, &known);
        for (k, column) in columns.iter().enumerate() {
            let x = rect.left() + width * k as f32;
            let place = Rect::from_min_max(pos2(x, rect.top()), pos2(x + width, area.bottom()));
            self.column(ui, cx, subject, token, column, known[k].as_deref(), place, rect, &scale, &csv, actions);
        }
        self.names(ui, cx, subject, &columns, rect, width);
    }

    fn axis(&self, ui: &egui::Ui, theme: &Theme, rect: Rect, scale: &Scale) {
        let mut lowest = f32::INFINITY;
        for tick in scale.ticks() {
            let y = height(rect, scale, tick);
            ui.painter().hline(rect.x_range(), y, Stroke::new(1.0, theme.grid));
            let text = y.clamp(rect.top() + 6.0, rect.bottom() - 6.0);
            if lowest - text >= 14.0 {
                let at = pos2(rect.left() - 6.0, text);
                ui.painter().text(at, Align2::RIGHT_CENTER, Scale::tick_name(tick), theme.small(), theme.text_faint);
                lowest = text;
            }
        }
        let unit = pos2(rect.left() - 6.0, rect.bottom() + 12.0);
        ui.painter().text(unit, Align2::RIGHT_CENTER, self.settings.measure.unit(), theme.small(), theme.text_faint);
    }

    #[allow(clippy::too_many_arguments)]
    fn column(
        &self,
        ui: &egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        token: usize,
        column: &Column<'_>,
        known: Option<&[Reach]>,
        place: Rect,
        plot: Rect,
        scale: &Scale,
        csv: &dyn Fn() -> String,
        actions: &mut Vec<Action>,
    ) {
        let theme = cx.theme;
        let inner = place.intersect(plot);
        let response = ui.interact(place, ui.scope_id().with(("reach", column.layer, column.part)), Sense::click());
        let selected = column.layer == subject.layer && column.part == subject.part;
        let pointed = cx.hover.layer == Some(column.layer) && cx.hover.part.is_none_or(|part| part == column.part);
        let painter = ui.painter_at(plot.expand(1.0));
        if selected || pointed || response.has_focus() {
            painter.rect_filled(inner, 0.0, theme.control.gamma_multiply(if selected { 0.5 } else { 0.8 }));
        }
        let measure = self.settings.measure;
        let values: Vec<f32> = known.unwrap_or_default().iter().map(|reach| measure.of(*reach)).collect();
        let average = mean(values.iter().copied());
        let spoken = match (column.mixer.kind.mixes(), average) {
            (false, _) => format!("{}, feed-forward alone", column.name()),
            (_, Some(value)) => format!("{}, {} = {} {}", column.name(), measure.name(), exact(value), measure.unit()),
            (_, None) => format!("{}, {} not known yet", column.name(), measure.name()),
        };
        response.widget_info(|| WidgetInfo::selected(Role::Button, true, selected, &spoken));
        if known.is_none() && column.mixer.kind.mixes() {
            hatch(ui, theme, inner);
        }
        let y = |value: f32| height(plot, scale, value);
        let dots: Vec<egui::Pos2> = values
            .iter()
            .enumerate()
            .map(|(k, value)| {
                let share = (k as f32 + 0.5) / values.len() as f32 - 0.5;
                pos2(place.center().x + share * (0.6 * place.width()).min(1.6 * BAR), y(*value))
            })
            .collect();
        let head = |k: usize| head_of(k, values.len(), column.mixer.heads);
        let nearest = response.hover_pos().and_then(|pointer| {
            let distance = |k: &usize| (dots[*k] - pointer).length_sq();
            (0..dots.len()).filter(|k| values[*k].is_finite()).min_by(|a, b| distance(a).total_cmp(&distance(b)))
        });
        let colour = theme.kind_colour(column.mixer.kind);
        let radius = DOT.min(0.3 * place.width()).max(1.0);
        for (k, at) in dots.iter().enumerate().filter(|(k, _)| values[*k].is_finite()) {
            let lit = nearest == Some(k) || pointed && cx.hover.head == Some(head(k));
            let mine = selected && head(k) == subject.head;
            let fill = if mine { theme.accent } else { faded(colour, lit) };
            painter.circle_filled(*at, if lit || mine { radius + 1.0 } else { radius }, fill);
        }
        if let Some(average) = average {
            let half = (0.42 * place.width()).min(BAR);
            painter.hline(place.center().x - half..=place.center().x + half, y(average), Stroke::new(2.0, theme.text));
        }
        if response.hovered() {
            actions.push(Place { head: nearest.map(head), ..column_place(column) }.hover(Some(token), None));
            if !response.context_menu_opened() {
                panel::tag(ui, theme, &self.tag(cx, token, column, known, nearest, average));
            }
        }
        if response.clicked() {
            Place { head: nearest.map(head), ..column_place(column) }.select(actions);
        }
        let value = nearest.map(|k| values[k]);
        plate::menu(&response, ViewKind::Reach, "reach", value, csv, actions);
    }

    /// The exact numbers of the nearest head.
    fn tag(
        &self,
        cx: &ViewContext<'_>,
        token: usize,
        column: &Column<'_>,
        known: Option<&[Reach]>,
        nearest: Option<usize>,
        average: Option<f32>,
    ) -> String {
        let (measure, name) = (self.settings.measure, column.name());
        if !column.mixer.kind.mixes() {
            return format!("{name}\nfeed-forward alone: it looks at no other token");
        }
        let (Some(known), Some(k)) = (known, nearest) else { return format!("{name}\nnot known yet") };
        let reach = known[k];
        let noun = column.mixer.kind.head_noun();
        let mut text = format!("{} = {} {}\n", measure.name(), exact(measure.of(reach)), measure.unit());
        let head = head_of(k, known.len(), column.mixer.heads);
        text.push_str(&format!("{name}, {noun} {head}, token {token} {}\n", quoted(cx.store, token)));
        text.push_str(&measure.words(measure.of(reach)));
        for (other, name) in Measure::ALL.into_iter().filter(|(other, _)| *other != measure) {
            text.push_str(&format!("\n{name} {} {}", exact(other.of(reach)), other.unit()));
        }
        if let Some(average) = average {
            let of = if known.len() < column.mixer.heads {
                format!("{} of {}", known.len(), column.mixer.heads)
            } else {
                known.len().to_string()
            };
            text.push_str(&format!("\nmean over {of} {noun}s {} {}", exact(average), measure.unit()));
        }
        text
    }

    /// Number and glyph of each layer; as many numbers as fit.
    fn names(
        &self,
        ui: &egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        columns: &[Column<'_>],
        rect: Rect,
        width: f32,
    ) {
        let every = (22.0 / width).ceil().max(1.0) as usize;
        for (k, column) in columns.iter().enumerate() {
            let x = rect.left() + width * (k as f32 + 0.5);
            let selected = column.layer == subject.layer && column.part == subject.part;
            let colour = if selected { cx.theme.accent } else { cx.theme.kind_colour(column.mixer.kind) };
            let at = pos2(x, rect.bottom() + 9.0);
            if width >= 9.0 || selected {
                let glyph = Theme::kind_glyph(column.mixer.kind);
                ui.painter().text(at, Align2::CENTER_CENTER, glyph, cx.theme.small(), colour);
            } else if column.mixer.kind.mixes() {
                // Too narrow for a glyph: its colour.
                let mark = Rect::from_center_size(at, vec2((width - 1.0).max(1.0), 5.0));
                ui.painter().rect_filled(mark, 0.0, colour);
            }
            let colour = if selected { cx.theme.accent } else { cx.theme.text_faint };
            if column.part == 0 && column.layer.is_multiple_of(every) {
                let number = column.layer.to_string();
                ui.painter().text(
                    pos2(x, rect.bottom() + 24.0),
                    Align2::CENTER_CENTER,
                    number,
                    cx.theme.small(),
                    colour,
                );
            }
            if selected {
                let place = Rect::from_min_size(pos2(x - 0.5 * width, rect.top()), vec2(width, rect.height()));
                ui.painter().rect_stroke(place, 0.0, Stroke::new(1.0, cx.theme.accent), StrokeKind::Inside);
            }
        }
    }
}

/// Where a value is drawn.
fn height(plot: Rect, scale: &Scale, value: f32) -> f32 {
    plot.bottom() - EDGE - (plot.height() - 2.0 * EDGE) * scale.share(value)
}

fn column_place(column: &Column<'_>) -> Place {
    Place { layer: Some(column.layer), part: Some(column.part), head: None }
}

fn faded(colour: Color32, lit: bool) -> Color32 {
    if lit { colour } else { colour.gamma_multiply(0.7) }
}

/// One line a head.
fn csv(columns: &[Column<'_>], known: &[Option<Vec<Reach>>]) -> String {
    let mut text = String::from("layer,part,kind,head,mean_distance_tokens,entropy_bits,field_tokens");
    for (column, reaches) in columns.iter().zip(known) {
        let reaches = reaches.as_deref().unwrap_or_default();
        for (k, reach) in reaches.iter().enumerate() {
            let head = head_of(k, reaches.len(), column.mixer.heads);
            let numbers = [reach.mean_distance, reach.entropy_bits, reach.field].map(exact).join(",");
            text.push_str(&format!(
                "\n{},{},{},{head},{numbers}",
                column.layer,
                column.part,
                column.mixer.kind.label()
            ));
        }
    }
    text
}
