//! Mixing matrix: which token reads how much from which, for the selected layer and head.

mod axes;
mod row;
mod words;

use eframe::egui::{self, Rect, RichText, pos2, vec2};
use statescope_engine::protocol::{MixerKind, MixingView as Matrix, Point, Probe, Reduction, Scale, Stage};

use crate::action::Action;
use crate::store::CausalMatrix;
use crate::theme::{ColourMap, space};
use crate::view::quantity::cells::{MatrixCells, is_cut};
use crate::view::quantity::plate::{self, Colours, Place};
use crate::view::quantity::{Subject, exact, no_mixer, quoted};
use crate::view::{View, ViewContext, ViewKind};
use crate::widget::heatmap::{Heatmap, ValueScale};
use crate::widget::scale::Normaliser;
use crate::widget::time::TimeMap;
use crate::widget::{format, panel};

/// The law: the picture is the model up to rounding.
const TRUE_ENOUGH: f32 = 1e-5;
/// Height of the bars beneath.
const BARS: f32 = 44.0;
/// A lower panel gives their place to the matrix.
const LOW: f32 = 240.0;

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Settings {
    stage: usize,
    scale: usize,
    /// One for each entry of `words::SCALES`.
    colours: [Colours; 3],
}

impl Default for Settings {
    fn default() -> Self {
        // Weights span decades: only the logarithm shows more than the diagonal.
        let colours = [ValueScale::Symlog, ValueScale::Log, ValueScale::Log].map(Colours::new);
        Self { stage: 0, scale: 0, colours }
    }
}

#[derive(Default)]
pub struct MixingView {
    settings: Settings,
}

impl View for MixingView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        let Some(subject) = Subject::of(cx) else { return "Mixing matrix".into() };
        let (stage, scale) = self.chosen(&subject);
        let stage_name = words::STAGES.iter().find(|(s, _)| *s == stage).map_or("", |(_, name)| *name);
        let scale_name = words::SCALES.iter().find(|(s, _)| *s == scale).map_or("", |(_, name)| *name);
        let channel = match self.channel(cx, &subject, stage) {
            Some(channel) => format!(", channel {channel}"),
            None if stage == Stage::Core || subject.mixer.head_dim == 1 => String::new(),
            None if scale == Scale::Contribution => ", norm over channels".into(),
            None => ", mean over channels".into(),
        };
        let what = match subject.kind() {
            MixerKind::Attention => "softmax",
            MixerKind::ShortConv => "convolution",
            MixerKind::Mlstm | MixerKind::Rwkv7 => "exact equivalent",
            MixerKind::FeedForward => return format!("Mixing matrix · {}", subject.layer_name()),
            _ => stage_name,
        };
        format!("Mixing matrix · {}, {}{channel} · {what}, {scale_name}", subject.layer_name(), subject.head_name())
    }

    fn explanation(&self, cx: &ViewContext<'_>) -> String {
        let (kind, (stage, scale)) = match Subject::of(cx).filter(|subject| subject.kind().mixes()) {
            Some(subject) => (subject.kind(), self.chosen(&subject)),
            None => (MixerKind::Mamba2, (Stage::Core, Scale::Raw)),
        };
        format!(
            "Every mixer, recurrent or attention, is a lower-triangular matrix: y_i = Σ_j M_ij v_j; row i is the token that reads, \
             column j the token read from. Here {}; each cell shows {}. \
             The badge is the largest |M·v − y| over the rows, relative to the row's largest |y|: how true the picture is.",
            words::formula(kind, stage),
            words::scale_words(scale)
        )
    }

    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>) {
        if let Some(subject) = Subject::of(cx).filter(|subject| subject.kind().mixes()) {
            probes.push(self.probe(cx, &subject));
            probes.push(error_probe(&subject));
        }
    }

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        let Some(subject) = Subject::of(cx) else {
            panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
            return;
        };
        if !subject.kind().mixes() {
            return panel::empty(ui, cx.theme, &no_mixer(subject.layer, "matrix"));
        }
        self.toolbar(ui, cx, &subject);
        if cx.store.length() == 0 {
            panel::empty(ui, cx.theme, "Press Space to read the prompt and run: each token adds a row.");
            return;
        }
        self.matrix(ui, cx, &subject, actions);
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

fn error_probe(subject: &Subject<'_>) -> Probe {
    subject.series(Point::MixingError, Reduction::Full).head(subject.head)
}

impl MixingView {
    /// Stages beyond the core need a short convolution in front of the mixer.
    fn chosen(&self, subject: &Subject<'_>) -> (Stage, Scale) {
        let stage = if subject.mixer.conv_taps > 0 {
            words::STAGES.get(self.settings.stage).map_or(Stage::Core, |(stage, _)| *stage)
        } else {
            Stage::Core
        };
        (stage, words::SCALES.get(self.settings.scale).map_or(Scale::Raw, |(scale, _)| *scale))
    }

    /// The channel drawn; beyond the core, channels of a head differ.
    fn channel(&self, cx: &ViewContext<'_>, subject: &Subject<'_>, stage: Stage) -> Option<usize> {
        cx.selection
            .channel
            .filter(|c| stage != Stage::Core && *c < subject.mixer.head_dim && subject.mixer.head_dim > 1)
    }

    fn probe(&self, cx: &ViewContext<'_>, subject: &Subject<'_>) -> Probe {
        let (stage, scale) = self.chosen(subject);
        let probe = subject.series(Point::Mixing(Matrix { stage, scale }), Reduction::Full).head(subject.head);
        match self.channel(cx, subject, stage) {
            Some(channel) => probe.channel(channel),
            None => probe,
        }
    }

    /// Softmax weights are never negative, so they get the map for magnitudes.
    fn map(&self, subject: &Subject<'_>) -> ColourMap {
        let signed = self.chosen(subject).1 == Scale::Raw && subject.kind() != MixerKind::Attention;
        if signed { ColourMap::Diverging } else { ColourMap::Sequential }
    }

    fn toolbar(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, subject: &Subject<'_>) {
        let (stage, scale) = self.chosen(subject);
        ui.horizontal_wrapped(|ui| {
            let enabled = subject.mixer.conv_taps > 0;
            let response = ui.add_enabled_ui(enabled, |ui| panel::choice(ui, cx.theme, stage, &words::STAGES));
            if let Some(stage) = response.inner {
                self.settings.stage = words::STAGES.iter().position(|(s, _)| *s == stage).unwrap_or(0);
            }
            response.response.on_disabled_hover_text(words::core_alone(subject.kind()));
            if let Some(scale) = panel::pick(ui, cx.theme, "Scale of the matrix", scale, &words::SCALES) {
                self.settings.scale = words::SCALES.iter().position(|(s, _)| *s == scale).unwrap_or(0);
            }
        });
    }

    /// Beyond the core every channel of a head has its own matrix: one of them, or their mean.
    fn channel_choice(
        &self,
        ui: &mut egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        actions: &mut Vec<Action>,
    ) {
        let names: Vec<String> = (0..subject.mixer.head_dim).map(|channel| format!("channel {channel}")).collect();
        let mut options = vec![(None, "all channels")];
        options.extend(names.iter().enumerate().map(|(channel, name)| (Some(channel), name.as_str())));
        let current = cx.selection.channel.filter(|c| *c < subject.mixer.head_dim);
        if let Some(channel) = panel::drop_down(ui, "Channel of the matrix", current, &options) {
            actions.push(Action::SelectChannel(channel));
        }
    }

    fn matrix(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, subject: &Subject<'_>, actions: &mut Vec<Action>) {
        let (stage, scale) = self.chosen(subject);
        let matrix = cx.store.matrix(&self.probe(cx, subject));
        let colour_map = self.map(subject);
        let settings_scale = self.settings.scale.min(2);
        let window = plate::window(cx);
        self.status(ui, cx, subject, stage, matrix, actions);

        // A square of the space that is left, the names of the columns above it and the bars beneath.
        let area = ui.available_rect_before_wrap();
        let bars_height = if area.height() < LOW { 0.0 } else { BARS };
        let fixed = bars_height + space::ROW + 3.0 * space::XS;
        let widest = (area.width() - space::GUTTER).max(16.0);
        let span = (window.end - window.start).max(1.0) as f32;
        let mut side = widest.min((area.height() - fixed - 16.0).max(48.0));
        let top = axes::top(side / span, cx.theme);
        side = widest.min((area.height() - fixed - top).max(48.0)).floor();
        let left = area.left() + space::GUTTER + 0.5 * (widest - side).max(0.0).floor();
        let rect = Rect::from_min_size(pos2(left, area.top() + top), vec2(side, side));

        let (query, key) = (subject.cursor, cx.selection.key.filter(|key| *key < cx.store.length()));
        let pinned_key = key.filter(|key| query.is_none_or(|query| *key <= query));
        let cells = MatrixCells { matrix, tokens: cx.store.length() };
        let describe = |i: usize, j: usize, value: Option<f32>| tag(cx, matrix, scale, i, j, value);
        let colours = self.settings.colours[settings_scale];
        let value_scale = colours.scale_for(colour_map);
        let auto = || plate::auto_range(colour_map, value_scale, matrix?.range());
        let range = colours.locked.or_else(auto);
        let map = Heatmap::new("mixing matrix", &cells)
            .map(colour_map)
            .scale(value_scale)
            .range(range)
            .x_window(window.clone())
            .y_window(window.clone())
            .size(rect.size())
            .cursor_row(query)
            .cursor_col(pinned_key)
            .highlight_row(cx.hover.query)
            .highlight_col(cx.hover.key)
            .label(format!("Mixing matrix of {}, {}", subject.layer_name(), subject.head_name()))
            .describe(&describe);
        let response = plate::inside(ui, rect, |ui| map.show(ui, cx.theme));
        plate::zoom(ui, cx, &response.response, response.rect, actions);
        axes::draw(ui, cx, response.rect, &window, cx.hover.query.or(query), cx.hover.key.or(pinned_key));
        if let Some((i, j, _)) = response.hovered {
            actions.push(Place::of(subject, Some(subject.head)).hover(Some(i), Some(j)));
        }
        if let Some((query, key)) = response.clicked {
            actions.push(if key <= query {
                Action::SelectCell { query, key }
            } else {
                Action::SelectToken(Some(query))
            });
        }
        let value = response.hovered.and_then(|(_, _, value)| value);
        let csv = || csv(matrix);
        plate::menu(&response.response, ViewKind::Mixing, "mixing-matrix", value, &csv, actions);

        let bars = Rect::from_min_size(pos2(rect.left(), rect.bottom() + space::XS), vec2(side, bars_height));
        if bars_height > 0.0 {
            let normaliser = Normaliser::new(colour_map, value_scale, response.range_used);
            self.row(ui, cx, subject, matrix, bars, &normaliser, pinned_key, actions);
        }
        let legend = Rect::from_min_max(pos2(area.left(), bars.bottom() + space::XS), area.max);
        plate::beside(ui, legend, |ui| {
            self.settings.colours[settings_scale].legend(ui, cx, colour_map, words::unit(scale), &response);
        });
        ui.allocate_rect(area, egui::Sense::hover());
    }

    /// What is in the matrix, and how true it is.
    fn status(
        &self,
        ui: &mut egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        stage: Stage,
        matrix: Option<&CausalMatrix>,
        actions: &mut Vec<Action>,
    ) {
        ui.horizontal_wrapped(|ui| {
            if stage != Stage::Core && subject.mixer.head_dim > 1 {
                self.channel_choice(ui, cx, subject, actions);
            }
            let words = words::stage_words(subject.mixer, stage);
            panel::caption(ui, cx.theme, &words).on_hover_text(words::formula(subject.kind(), stage));
            if let Some(error) = worst_error(cx, subject, matrix) {
                let good = error <= TRUE_ENOUGH;
                let colour = if good { cx.theme.good } else { cx.theme.warning };
                let text = RichText::new(words::badge(error)).font(cx.theme.small()).color(colour);
                ui.label(text).on_hover_text(format!(
                    "The largest difference between the core's M·v and the mixer's own output over the known rows, relative to the row's largest |y|: {}.\n{}",
                    exact(error),
                    if good { "The picture is the model up to rounding." } else { "Above 1e-5: the picture is not exact." }
                ));
            }
            if let Some(first) = matrix.map(CausalMatrix::first).filter(|first| *first > 0) {
                panel::caption(ui, cx.theme, &format!("rows before {} are not kept", format::thousands(first)));
            }
        });
    }

    /// The pinned or pointed row as bars.
    #[allow(clippy::too_many_arguments)]
    fn row(
        &self,
        ui: &egui::Ui,
        cx: &ViewContext<'_>,
        subject: &Subject<'_>,
        matrix: Option<&CausalMatrix>,
        rect: Rect,
        normaliser: &Normaliser,
        pinned_key: Option<usize>,
        actions: &mut Vec<Action>,
    ) {
        let Some(i) = cx.hover.query.filter(|_| cx.hover.key.is_some()).or(subject.cursor) else { return };
        let values = matrix.and_then(|m| m.row(i));
        let map = TimeMap::new(rect.x_range(), plate::window(cx));
        let key = cx.hover.key.or(pinned_key);
        let (hovered, clicked) = row::bars(ui, cx.theme, rect, &map, normaliser, i, values, key);
        let text = format!("row {i} {}", quoted(cx.store, i));
        let painter = ui.painter_at(rect);
        let galley = painter.layout_no_wrap(text, cx.theme.small(), cx.theme.text_muted);
        let place = egui::Align2::RIGHT_TOP.anchor_size(rect.right_top() + vec2(-4.0, 1.0), galley.size());
        // Legible also over tall bars.
        painter.rect_filled(place.expand2(vec2(3.0, 0.0)), 2.0, cx.theme.well.gamma_multiply(0.85));
        painter.galley(place.min, galley, cx.theme.text_muted);
        let Some(j) = hovered else { return };
        let scale = self.chosen(subject).1;
        panel::tag(ui, cx.theme, &tag(cx, matrix, scale, i, j, values.and_then(|row| row.get(j).copied())));
        actions.push(Place::of(subject, Some(subject.head)).hover(Some(i), Some(j)));
        if clicked {
            actions.push(Action::SelectCell { query: i, key: j });
        }
    }
}

/// Of all rows known.
/// The largest error of the rows whose error is known: one whose beginning is not kept has none.
fn worst_error(cx: &ViewContext<'_>, subject: &Subject<'_>, matrix: Option<&CausalMatrix>) -> Option<f32> {
    let series = cx.store.series(&error_probe(subject))?;
    let whole = |t: usize| matrix.and_then(|matrix| matrix.row(t)).is_some_and(|row| !is_cut(row));
    let known = (0..series.len()).filter_map(|t| series.value(t, 0).filter(|error| !error.is_nan() || whole(t)));
    known.reduce(|worst, error| if error.is_nan() || error > worst { error } else { worst })
}

fn tag(
    cx: &ViewContext<'_>,
    matrix: Option<&CausalMatrix>,
    scale: Scale,
    i: usize,
    j: usize,
    value: Option<f32>,
) -> String {
    if j > i {
        return words::cell_tag(scale, (i, j), None, "");
    }
    let share = matrix.and_then(|m| m.row(i)).and_then(|row| {
        let total: f64 = row.iter().map(|v| f64::from(v.abs())).sum();
        let value = f64::from(row.get(j)?.abs());
        (total > 0.0 && total.is_finite()).then_some((value / total) as f32)
    });
    let cell = words::cell_words(i, j, &quoted(cx.store, i), &quoted(cx.store, j), share);
    words::cell_tag(scale, (i, j), value, &cell)
}

/// The known rows, one a line, led by the position.
fn csv(matrix: Option<&CausalMatrix>) -> String {
    let Some(matrix) = matrix else { return String::new() };
    let mut text = String::from("query\\key");
    (0..matrix.len()).for_each(|j| text.push_str(&format!(",{j}")));
    for i in matrix.first()..matrix.len() {
        text.push_str(&format!("\n{i}"));
        matrix.row(i).unwrap_or_default().iter().for_each(|value| text.push_str(&format!(",{}", exact(*value))));
    }
    text
}
