//! Layer map: one quantity of every layer over all tokens.

use eframe::egui::{self, Align2, pos2};
use statescope_engine::protocol::{ModelInfo, Probe};

use crate::action::Action;
use crate::theme::{ColourMap, Theme, space};
use crate::view::quantity::cells::StackedCells;
use crate::view::quantity::plate::{self, Colours};
use crate::view::quantity::{LayerQuantity, Subject, csv_text, exact, quoted, retention_words};
use crate::view::{View, ViewContext, ViewKind};
use crate::widget::heatmap::{Heatmap, ValueScale};
use crate::widget::panel;

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct LayersView {
    quantity: LayerQuantity,
    /// Each row divided by its own largest value.
    per_layer: bool,
    colours: Colours,
}

impl Default for LayersView {
    fn default() -> Self {
        Self { quantity: LayerQuantity::Write, per_layer: true, colours: Colours::default() }
    }
}

impl View for LayersView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        let layers = cx.store.model.as_deref().map_or(0, |model| model.layers.len());
        format!("Layer map · {}, {} · {layers} layers", self.quantity.label(), self.quantity.reduction())
    }

    fn explanation(&self, _: &ViewContext<'_>) -> String {
        format!(
            "Each row is a layer, each column a token; the colour is the {} of that layer at that token ({}). \
             {} Hatched cells are not known: not computed yet, or a quantity this kind of layer does not have.",
            self.quantity.label(),
            self.quantity.formula(),
            if self.per_layer {
                "Each row is divided by its own largest value, so that quiet layers show their structure too."
            } else {
                "All layers share one colour scale."
            }
        )
    }

    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>) {
        let Some(model) = cx.store.model.as_deref() else { return };
        for (layer, info) in model.layers.iter().enumerate() {
            if info.parts.first().is_some_and(|mixer| self.quantity.exists_in(mixer.kind)) {
                probes.push(self.quantity.probe(layer));
            }
        }
    }

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        self.toolbar(ui, cx);
        let Some(model) = cx.store.model.as_deref() else {
            panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
            return;
        };
        if cx.store.length() == 0 || model.layers.is_empty() {
            panel::empty(ui, cx.theme, "Press Space to read the prompt and run.");
            return;
        }
        let cells = self.cells(cx, model);
        let height = (ui.available_height() - space::ROW - space::XS).max(24.0);
        let selected = Subject::of(cx).map(|subject| subject.layer);
        let unit_range = self.per_layer && self.colours.scale == ValueScale::Linear;
        let describe = |layer: usize, token: usize, _: Option<f32>| self.words(cx, model, layer, token);
        let map = Heatmap::new("layer map", &cells)
            .map(ColourMap::Sequential)
            .scale(self.colours.scale)
            .range(self.colours.locked.or(unit_range.then_some((0.0, 1.0))))
            .highlight_row(cx.hover.layer)
            .cursor_row(selected)
            .label(format!("Layer map, {}", self.quantity.label()))
            .describe(&describe);
        let response = plate::map_over_time(ui, cx, height, map, actions);
        self.names(ui, cx, model, response.rect, selected);
        let hovered = response.hovered.map(|(row, token, _)| (row, token));
        plate::time_actions(ui, hovered, response.clicked, actions, |row, _| (Some(row), None));
        let value = hovered.and_then(|(row, token)| cx.store.series(&self.quantity.probe(row))?.value(token, 0));
        let csv = || self.csv(cx, model);
        plate::menu(&response.response, ViewKind::Layers, "layer-map", value, &csv, actions);
        let unit = if self.per_layer { "of the layer's largest" } else { self.quantity.unit() };
        self.colours.legend(ui, cx, ColourMap::Sequential, unit, &response);
    }

    fn save(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn restore(&mut self, saved: &serde_json::Value) {
        if let Ok(view) = serde_json::from_value(saved.clone()) {
            *self = view;
        }
    }
}

impl LayersView {
    fn toolbar(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>) {
        ui.horizontal(|ui| {
            let options = LayerQuantity::ALL.map(|quantity| (quantity, quantity.label()));
            if let Some(quantity) = panel::drop_down(ui, "Quantity of the layer map", self.quantity, &options) {
                self.quantity = quantity;
                self.colours.locked = None;
            }
            if let Some(per_layer) =
                panel::choice(ui, cx.theme, self.per_layer, &[(true, "each layer its own scale"), (false, "one scale")])
            {
                self.per_layer = per_layer;
                self.colours.locked = None;
            }
            if let Some(backfill) = cx.store.backfill.filter(|b| b.total > 0) {
                panel::caption(ui, cx.theme, &format!("reading again {} of {} tokens", backfill.done, backfill.total));
            }
        });
    }

    fn cells<'a>(&self, cx: &ViewContext<'a>, model: &ModelInfo) -> StackedCells<'a> {
        let rows: Vec<_> = (0..model.layers.len()).map(|layer| cx.store.series(&self.quantity.probe(layer))).collect();
        let divisors = match self.per_layer {
            true => rows
                .iter()
                .map(|series| {
                    let (low, high) = series.map_or((0.0, 1.0), |s| s.range());
                    let size = low.abs().max(high.abs());
                    if size > 0.0 { size } else { 1.0 }
                })
                .collect(),
            false => Vec::new(),
        };
        StackedCells { rows, divisors, tokens: cx.store.length() }
    }

    /// Layer number and kind beside each row; where the quantity does not exist, the reason across the row.
    fn names(&self, ui: &egui::Ui, cx: &ViewContext<'_>, model: &ModelInfo, rect: egui::Rect, selected: Option<usize>) {
        let font = cx.theme.mono();
        plate::row_names(ui, rect, model.layers.len(), &font, |layer| {
            let kind = model.layers[layer].mixer().kind;
            let colour = if selected == Some(layer) { cx.theme.accent } else { cx.theme.kind_colour(kind) };
            (format!("{layer} {}", Theme::kind_glyph(kind)), colour)
        });
        let height = rect.height() / model.layers.len() as f32;
        if height < font.size + 1.0 {
            return;
        }
        for (layer, info) in model.layers.iter().enumerate() {
            let reason = self.quantity.absence(info.mixer().kind);
            if reason.is_empty() {
                continue;
            }
            let y = rect.top() + height * (layer as f32 + 0.5);
            let at = pos2(rect.left() + space::S, y);
            let galley = ui.painter().layout_no_wrap(reason.to_owned(), cx.theme.small(), cx.theme.text_muted);
            let ground = Align2::LEFT_CENTER.anchor_size(at, galley.size());
            ui.painter_at(rect).rect_filled(ground.expand2(egui::vec2(3.0, 0.0)), 2.0, cx.theme.well);
            ui.painter_at(rect).galley(ground.min, galley, cx.theme.text_muted);
        }
    }

    fn words(&self, cx: &ViewContext<'_>, model: &ModelInfo, layer: usize, token: usize) -> String {
        let Some(kind) = model.layers.get(layer).map(|info| info.mixer().kind) else { return String::new() };
        let place = format!("layer {layer} ({}), token {token} {}", kind.label(), quoted(cx.store, token));
        let absence = self.quantity.absence(kind);
        if !absence.is_empty() {
            return format!("{place}\n{absence}");
        }
        let value = cx.store.series(&self.quantity.probe(layer)).and_then(|series| series.value(token, 0));
        match value {
            None => format!("{place}\n{}: not known yet", self.quantity.label()),
            Some(value) => {
                let unit = self.quantity.unit();
                let words = match self.quantity {
                    LayerQuantity::Decay => format!("\n{}", retention_words("the layer's average", value)),
                    _ => String::new(),
                };
                format!("{place}\n{} {} {unit}{words}", self.quantity.label(), exact(value))
            }
        }
    }

    /// One line per token: its position, its text, one column per layer.
    fn csv(&self, cx: &ViewContext<'_>, model: &ModelInfo) -> String {
        let mut text = String::from("position,token");
        (0..model.layers.len()).for_each(|layer| text.push_str(&format!(",layer {layer}")));
        for t in 0..cx.store.length() {
            text.push_str(&format!("\n{t},{}", csv_text(&cx.store.token_text(t))));
            for layer in 0..model.layers.len() {
                let value = cx.store.series(&self.quantity.probe(layer)).and_then(|series| series.value(t, 0));
                text.push_str(&format!(",{}", value.map(exact).unwrap_or_default()));
            }
        }
        text
    }
}
