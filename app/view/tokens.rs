//! The text as tokens, each coloured by a quantity.

use eframe::egui::{self, Color32, Rect, Role, Sense, Stroke, Ui, WidgetInfo, pos2, vec2};
use statescope_engine::protocol::{Probe, RunState, TokenSource};

use super::{View, ViewContext, ViewKind};
use crate::action::Action;
use crate::apply::{NO_TOKENIZER, token_ids};
use crate::selection::Hover;
use crate::theme::{ColourMap, Theme, space};
use crate::view::quantity::{LayerQuantity, Subject};
use crate::widget::legend::{Legend, LegendChange, legend};
use crate::widget::scale::{Normaliser, ValueScale};
use crate::widget::{format, panel};

const LINE: f32 = 22.0;

/// What the colour says.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
enum Colouring {
    #[default]
    Surprisal,
    Entropy,
    Delta,
    Write,
}

impl Colouring {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Surprisal, "surprisal"),
        (Self::Entropy, "entropy"),
        (Self::Delta, "mean Δ of the layer"),
        (Self::Write, "write strength of the layer"),
    ];

    fn quantity(self) -> Option<LayerQuantity> {
        match self {
            Self::Surprisal | Self::Entropy => None,
            Self::Delta => Some(LayerQuantity::Delta),
            Self::Write => Some(LayerQuantity::Write),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Surprisal | Self::Entropy => "bits",
            Self::Delta | Self::Write => "",
        }
    }
}

#[derive(Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Settings {
    colouring: Colouring,
    scale: ValueScale,
    locked: Option<(f32, f32)>,
}

/// Where each token lies, kept from frame to frame.
#[derive(Default)]
struct Flow {
    /// Epoch, label lengths and width that the places are for.
    width: f32,
    zoom: f32,
    epoch: u64,
    widths: Vec<f32>,
    labels: Vec<String>,
    /// Left edge and line.
    places: Vec<(f32, usize)>,
    lines: usize,
}

/// The token strip.
#[derive(Default)]
pub struct TokensView {
    settings: Settings,
    flow: Flow,
    /// From where the text is to be shown in the next frame, if that changes.
    scroll_to: Option<f32>,
}

impl TokensView {
    fn probe(&self, cx: &ViewContext<'_>) -> Option<Probe> {
        let (subject, quantity) = (Subject::of(cx)?, self.settings.colouring.quantity()?);
        quantity.exists_in(subject.kind()).then(|| quantity.probe(subject.layer, subject.part))
    }

    /// Why the mixer looked at gives tokens no colour; empty where it does.
    fn absence(&self, cx: &ViewContext<'_>) -> &'static str {
        let quantity = self.settings.colouring.quantity();
        Subject::of(cx).zip(quantity).map_or("", |(subject, quantity)| quantity.absence(subject.kind()))
    }

    fn value(&self, cx: &ViewContext<'_>, token: usize) -> Option<f32> {
        match self.settings.colouring {
            Colouring::Surprisal => cx.store.surprisal(token),
            Colouring::Entropy => cx.store.prediction(token).map(|p| p.entropy_bits),
            Colouring::Delta | Colouring::Write => cx.store.series(&self.probe(cx)?)?.value(token, 0),
        }
    }

    fn name(&self, cx: &ViewContext<'_>) -> String {
        match (self.settings.colouring, self.settings.colouring.quantity(), Subject::of(cx)) {
            (_, Some(quantity), Some(subject)) => format!("{} of {}", quantity.label(), subject.layer_name()),
            (Colouring::Surprisal, ..) => "surprisal".into(),
            (Colouring::Entropy, ..) => "entropy of the next token".into(),
            (Colouring::Delta, ..) => "mean Δ".into(),
            (Colouring::Write, ..) => "write strength".into(),
        }
    }

    fn csv(&self, cx: &ViewContext<'_>) -> String {
        let mut text = format!("position,id,text,{}\n", self.name(cx));
        for token in &cx.store.tokens {
            let label = cx.store.token_text(token.position).replace('"', "\"\"");
            let value = self.value(cx, token.position).map_or_else(String::new, |v| v.to_string());
            text.push_str(&format!("{},{},\"{label}\",{value}\n", token.position, token.id));
        }
        text
    }

    fn header(&mut self, ui: &mut Ui, cx: &ViewContext<'_>, range: (f32, f32), clipped: (bool, bool)) {
        ui.horizontal(|ui| {
            ui.set_height(space::ROW);
            panel::caption(ui, cx.theme, "Colour");
            if let Some(colouring) = panel::drop_down(ui, "Colour tokens by", self.settings.colouring, &Colouring::ALL)
            {
                self.settings = Settings { colouring, locked: None, ..self.settings };
            }
            let shown = Legend {
                map: ColourMap::Sequential,
                scale: self.settings.scale,
                range,
                unit: self.settings.colouring.unit(),
                locked: self.settings.locked.is_some(),
                clipped,
            };
            match legend(ui, cx.theme, &shown) {
                Some(LegendChange::Lock(range)) => self.settings.locked = Some(range),
                Some(LegendChange::Unlock) => self.settings.locked = None,
                Some(LegendChange::Scale(scale)) => self.settings.scale = scale,
                None => {}
            }
            let absence = self.absence(cx);
            if !absence.is_empty() {
                panel::caption(ui, cx.theme, absence);
            } else if ui.available_width() > 250.0 {
                panel::caption(ui, cx.theme, "prompt underlined");
            }
        });
    }
}

impl View for TokensView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        format!("Tokens by {}", self.name(cx))
    }

    fn explanation(&self, _cx: &ViewContext<'_>) -> String {
        "Each box is one token as the model reads it; · is a space, ↵ a line break, ‹e3 81› bytes of a character that is not complete yet. \
         Surprisal is −log₂ p of the token under the prediction before it, entropy −Σ p log₂ p of the prediction after it; Δ and write \
         strength ‖Δ B xᵀ‖ belong to the selected layer. Prompt tokens are underlined, forced ones dotted; a line marks where the text \
         goes beyond the trained context."
            .into()
    }

    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>) {
        probes.extend(self.probe(cx));
    }

    fn ui(&mut self, ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        let length = cx.store.length();
        if length == 0 {
            let text = match (&cx.store.model, &cx.store.loading) {
                (_, Some(_)) => "Loading the model.".to_owned(),
                (Some(model), _) if !model.has_tokenizer && token_ids(cx.settings.prompt(Some(model))).is_none() => {
                    NO_TOKENIZER.to_owned()
                }
                (Some(_), _) => super::prompt::run_words(cx),
                (None, _) => "Choose a model above: a built-in one, or a folder.".to_owned(),
            };
            return panel::empty(ui, cx.theme, &text);
        }
        let values: Vec<Option<f32>> = (0..length).map(|t| self.value(cx, t)).collect();
        let seen =
            values.iter().flatten().filter(|v| v.is_finite()).fold(None, |r: Option<(f32, f32)>, v| {
                Some(r.map_or((*v, *v), |(low, high)| (low.min(*v), high.max(*v))))
            });
        let low = if matches!(self.settings.colouring, Colouring::Delta) { seen.map_or(0.0, |r| r.0) } else { 0.0 };
        let range = self.settings.locked.unwrap_or((low, seen.map_or(1.0, |r| r.1).max(low + 1e-9)));
        let clipped = (seen.is_some_and(|r| r.0 < range.0), seen.is_some_and(|r| r.1 > range.1));
        self.header(ui, cx, range, clipped);
        let live = cx.selection.query.is_none();
        // Whole lines only.
        let height = ((ui.available_height() / LINE).floor() * LINE).max(LINE);
        let scroll = egui::ScrollArea::vertical().id_salt("tokens").auto_shrink([false, false]);
        let mut scroll = scroll.max_height(height).min_scrolled_height(LINE);
        if let Some(offset) = self.scroll_to.take() {
            scroll = scroll.vertical_scroll_offset(offset);
        }
        scroll.show_viewport(ui, |ui, viewport| {
            self.flow.update(ui, cx, ui.available_width() - space::S);
            self.strip(ui, cx, viewport, &values, range, actions);
            self.follow(ui, cx, viewport, live);
        });
    }

    fn save(&self) -> serde_json::Value {
        serde_json::to_value(self.settings).unwrap_or_default()
    }

    fn restore(&mut self, saved: &serde_json::Value) {
        self.settings = serde_json::from_value(saved.clone()).unwrap_or_default();
    }
}

impl TokensView {
    fn strip(
        &self,
        ui: &mut Ui,
        cx: &ViewContext<'_>,
        viewport: Rect,
        values: &[Option<f32>],
        range: (f32, f32),
        actions: &mut Vec<Action>,
    ) {
        let size = vec2(ui.available_width(), self.flow.lines as f32 * LINE);
        let (rect, response) = ui.allocate_exact_size(size, Sense::click());
        let words = format!("Tokens by {}", self.name(cx));
        response.widget_info(|| WidgetInfo::labeled(Role::Document, true, &words));
        let normaliser = Normaliser::new(ColourMap::Sequential, self.settings.scale, range);
        let lines =
            (viewport.min.y / LINE).floor().max(0.0) as usize..(viewport.max.y / LINE).ceil().max(0.0) as usize + 1;
        let first = self.flow.places.partition_point(|(_, line)| *line < lines.start);
        let last = self.flow.places.partition_point(|(_, line)| *line < lines.end);
        let painter = Paint { ui, cx, normaliser };
        for (token, value) in values.iter().enumerate().take(last).skip(first) {
            painter.token(token, self.flow.rect(token, rect), &self.flow.labels[token], *value);
        }
        let hovered = response.hover_pos().and_then(|p| self.flow.token_at(p - rect.min.to_vec2()));
        if let Some(token) = hovered {
            actions.push(Action::Hover(Hover { query: Some(token), ..Hover::default() }));
            let text = self.describe(cx, token, values.get(token).copied().flatten());
            ui.ctx().accesskit_node_builder(response.id, |node| node.set_value(text.clone()));
            if !response.context_menu_opened() {
                panel::tag(ui, cx.theme, &text);
            }
            if response.clicked() {
                let shift = ui.input(|i| i.modifiers.shift);
                actions.push(if shift { Action::ExtendTo(token) } else { Action::SelectToken(Some(token)) });
            }
        }
        let menu = panel::Menu {
            view: ViewKind::Tokens,
            name: "tokens",
            value: hovered.map(|t| self.describe(cx, t, values.get(t).copied().flatten())),
            csv: &|| self.csv(cx),
        };
        panel::context_menu(&response, &menu, actions);
    }

    fn describe(&self, cx: &ViewContext<'_>, token: usize, value: Option<f32>) -> String {
        let record = &cx.store.tokens[token];
        let source = match record.source {
            TokenSource::Prompt => "of the prompt",
            TokenSource::Sampled => "generated",
            TokenSource::Forced => "forced",
        };
        let value = value.map_or_else(|| "not known".into(), |v| format::with_unit(v, self.settings.colouring.unit()));
        let mut text = format!(
            "{}\ntoken {token}, id {}, {source}\n{} {value}",
            cx.store.token_label(token),
            record.id,
            self.name(cx)
        );
        if cx.store.model.as_ref().and_then(|m| m.trained_context).is_some_and(|limit| token >= limit) {
            text.push_str("\nbeyond the trained context");
        }
        text
    }

    /// Keeps the newest token, or the pinned one, in sight when it changed.
    fn follow(&mut self, ui: &mut Ui, cx: &ViewContext<'_>, viewport: Rect, live: bool) {
        let Some(cursor) = cx.cursor() else { return };
        let id = ui.scope_id().with("followed");
        let target = (cursor, live, self.flow.lines);
        let before = ui.data(|d| d.get_temp::<(usize, bool, usize)>(id));
        if before == Some(target) {
            return;
        }
        ui.data_mut(|d| d.insert_temp(id, target));
        let Some((_, line)) = self.flow.places.get(cursor) else { return };
        let (top, bottom) = (*line as f32 * LINE, (line + 1) as f32 * LINE);
        if top < viewport.min.y || bottom > viewport.max.y {
            // In the next frame. Of a run there is one soon; egui's own scrolling would have every frame drawn again at once.
            self.scroll_to = Some(if top < viewport.min.y { top } else { bottom - viewport.height() });
            if cx.store.run != RunState::Running {
                ui.ctx().request_repaint();
            }
        }
    }
}

/// One token at a time.
struct Paint<'a, 'b> {
    ui: &'a Ui,
    cx: &'a ViewContext<'b>,
    normaliser: Normaliser,
}

impl Paint<'_, '_> {
    fn token(&self, token: usize, rect: Rect, label: &str, value: Option<f32>) {
        let (theme, store, painter) = (self.cx.theme, self.cx.store, self.ui.painter());
        let cell = rect.shrink2(vec2(0.5, 1.5));
        let read = token < store.position;
        let (fill, text) = match value.filter(|v| v.is_finite()) {
            Some(value) => {
                let fill = theme.map(ColourMap::Sequential).at(self.normaliser.at(value));
                (fill, Theme::text_on(fill))
            }
            None => (Color32::TRANSPARENT, if read { theme.text } else { theme.text_faint }),
        };
        painter.rect_filled(cell, 2.0, fill);
        let galley = painter.layout_no_wrap(label.to_owned(), theme.mono(), Color32::PLACEHOLDER);
        painter.galley(pos2(rect.min.x + 2.0, rect.center().y - 0.5 * galley.size().y), galley, text);
        match store.tokens.get(token).map(|t| t.source) {
            Some(TokenSource::Prompt) => {
                painter.hline(cell.x_range(), cell.max.y + 0.5, Stroke::new(1.5, theme.text_faint));
            }
            Some(TokenSource::Forced) => {
                painter.circle_filled(pos2(cell.center().x, cell.max.y + 0.5), 1.8, theme.warning);
            }
            _ => {}
        }
        if store.model.as_ref().and_then(|m| m.trained_context) == Some(token) {
            painter.vline(rect.min.x - 0.5, rect.y_range(), Stroke::new(2.0, theme.warning));
        }
        let selection = self.cx.selection;
        let range = selection.query.map(|a| {
            let b = selection.range_end.unwrap_or(a);
            a.min(b)..=a.max(b)
        });
        let frame = |stroke| painter.rect_stroke(cell, 2.0, stroke, egui::StrokeKind::Outside);
        if range.is_some_and(|r| r.contains(&token)) || selection.key == Some(token) {
            frame(Stroke::new(1.5, theme.accent));
        } else if self.cx.hover.query == Some(token) || self.cx.hover.key == Some(token) {
            frame(Stroke::new(1.0, theme.hover));
        } else if selection.query.is_none() && self.cx.cursor() == Some(token) {
            frame(Stroke::new(1.0, theme.good));
        }
    }
}

impl Flow {
    /// Measures new tokens and places all of them in lines of `width`.
    fn update(&mut self, ui: &Ui, cx: &ViewContext<'_>, width: f32) {
        let store = cx.store;
        let zoom = ui.pixels_per_point();
        if self.epoch != store.epoch || self.zoom != zoom {
            *self = Self { epoch: store.epoch, zoom, ..Self::default() };
        }
        let length = store.length();
        self.labels.truncate(length);
        self.widths.truncate(length);
        // The last few may have become whole characters.
        let from = self.labels.len().saturating_sub(4);
        let mut changed = None;
        for token in from..length {
            let label = label(store.token_label(token));
            if self.labels.get(token) == Some(&label) {
                continue;
            }
            let galley = ui.painter().layout_no_wrap(label.clone(), cx.theme.mono(), Color32::PLACEHOLDER);
            self.labels.truncate(token);
            self.widths.truncate(token);
            self.labels.push(label);
            self.widths.push((galley.size().x + 4.0).ceil());
            changed = changed.or(Some(token));
        }
        if self.width != width {
            self.width = width;
            self.places.clear();
        }
        self.places.truncate(changed.unwrap_or(length));
        for token in self.places.len()..length {
            let (left, line) = match token.checked_sub(1).and_then(|t| Some((t, *self.places.get(t)?))) {
                None => (0.0, 0),
                Some((before, (left, line))) => {
                    let left = left + self.widths[before];
                    let broken = store.token_raw(before).contains('\n');
                    if broken || left + self.widths[token] > width { (0.0, line + 1) } else { (left, line) }
                }
            };
            self.places.push((left, line));
        }
        self.lines = self.places.last().map_or(1, |(_, line)| line + 1);
    }

    fn rect(&self, token: usize, strip: Rect) -> Rect {
        let (left, line) = self.places[token];
        Rect::from_min_size(strip.min + vec2(left, line as f32 * LINE), vec2(self.widths[token], LINE))
    }

    fn token_at(&self, pos: egui::Pos2) -> Option<usize> {
        let line = (pos.y / LINE).floor();
        if line < 0.0 {
            return None;
        }
        let line = line as usize;
        let first = self.places.partition_point(|(_, l)| *l < line);
        let last = self.places.partition_point(|(_, l)| *l <= line);
        (first..last).find(|t| pos.x >= self.places[*t].0 && pos.x < self.places[*t].0 + self.widths[*t])
    }
}

/// Never empty, never wider than a line.
fn label(text: String) -> String {
    if text.is_empty() { "∅".into() } else { format::shorten(&text, 48) }
}
