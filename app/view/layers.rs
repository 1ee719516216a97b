//! Layer map: one quantity of every layer over all tokens.

use eframe::egui::{self, Align2, pos2};
use statescope_engine::protocol::{MixerKind, ModelInfo, Probe};

use crate::action::Action;
use crate::theme::{ColourMap, Theme, space};
use crate::view::quantity::cells::StackedCells;
use crate::view::quantity::plate::{self, Colours, Place};
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
            "Each row is a layer (of a layer with several mixers, one row a mixer), each column a token; the colour is the {} at that token ({}). \
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
        let rows = self.rows(model).into_iter().filter(|row| self.exists(model, *row));
        probes.extend(rows.map(|row| self.quantity.probe(row.layer, row.part)));
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
        let rows = self.rows(model);
        let cells = self.cells(cx, &rows);
        let height = (ui.available_height() - space::ROW - space::XS).max(24.0);
        let selected = Subject::of(cx).and_then(|s| row_of(&rows, Some(s.layer), Some(s.part)));
        let pointed = row_of(&rows, cx.hover.layer, cx.hover.part);
        let unit_range = self.per_layer && self.colours.scale == ValueScale::Linear;
        let describe = |row: usize, token: usize, _: Option<f32>| self.words(cx, model, &rows, row, token);
        let map = Heatmap::new("layer map", &cells)
            .map(ColourMap::Sequential)
            .scale(self.colours.scale)
            .range(self.colours.locked.or(unit_range.then_some((0.0, 1.0))))
            .highlight_row(pointed)
            .cursor_row(selected)
            .label(format!("Layer map, {}", self.quantity.label()))
            .describe(&describe);
        let response = plate::map_over_time(ui, cx, height, map, actions);
        self.names(ui, cx, model, &rows, response.rect, selected);
        let hovered = response.hovered.map(|(row, token, _)| (row, token));
        plate::time_actions(ui, hovered, response.clicked, actions, |row, _| rows[row].place());
        let value = hovered.and_then(|(row, token)| self.value(cx, rows[row], token));
        let csv = || self.csv(cx, model, &rows);
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
            let options: Vec<_> = self.offered(cx).into_iter().map(|quantity| (quantity, quantity.label())).collect();
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

    /// What some layer of the model has, and what is chosen.
    fn offered(&self, cx: &ViewContext<'_>) -> Vec<LayerQuantity> {
        let parts = || cx.store.model.iter().flat_map(|model| &model.layers).flat_map(|layer| &layer.parts);
        let offered = |quantity: &LayerQuantity| {
            *quantity == self.quantity
                || parts().any(|mixer| quantity.exists_in(mixer.kind))
                || cx.store.model.is_none()
        };
        LayerQuantity::ALL.into_iter().filter(offered).collect()
    }

    /// One for each mixer that has the quantity; a layer without any has one that says why.
    fn rows(&self, model: &ModelInfo) -> Vec<MapRow> {
        let mut rows = Vec::new();
        for (layer, info) in model.layers.iter().enumerate() {
            let parts = self.quantity.parts_of(info);
            let whole = parts.is_empty() || self.quantity == LayerQuantity::Resid;
            match parts.is_empty() {
                true => rows.push(MapRow { layer, part: 0, whole }),
                false => rows.extend(parts.into_iter().map(|part| MapRow { layer, part, whole })),
            }
        }
        rows
    }

    fn exists(&self, model: &ModelInfo, row: MapRow) -> bool {
        self.quantity.exists_in(model.layers[row.layer].parts[row.part].kind)
    }

    fn value(&self, cx: &ViewContext<'_>, row: MapRow, token: usize) -> Option<f32> {
        cx.store.series(&self.quantity.probe(row.layer, row.part))?.value(token, 0)
    }

    fn cells<'a>(&self, cx: &ViewContext<'a>, rows: &[MapRow]) -> StackedCells<'a> {
        let rows: Vec<_> = rows.iter().map(|row| cx.store.series(&self.quantity.probe(row.layer, row.part))).collect();
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
    fn names(
        &self,
        ui: &egui::Ui,
        cx: &ViewContext<'_>,
        model: &ModelInfo,
        rows: &[MapRow],
        rect: egui::Rect,
        selected: Option<usize>,
    ) {
        let font = cx.theme.mono();
        plate::row_names(ui, rect, rows.len(), &font, |row| {
            let kind = rows[row].kind(model);
            let colour = if selected == Some(row) { cx.theme.accent } else { cx.theme.kind_colour(kind) };
            (format!("{} {}", rows[row].layer, Theme::kind_glyph(kind)), colour)
        });
        let height = rect.height() / rows.len() as f32;
        if height < font.size + 1.0 {
            return;
        }
        for (index, row) in rows.iter().enumerate() {
            let reason = self.quantity.absence(row.kind(model));
            if reason.is_empty() {
                continue;
            }
            let y = rect.top() + height * (index as f32 + 0.5);
            let at = pos2(rect.left() + space::S, y);
            let galley = ui.painter().layout_no_wrap(reason.to_owned(), cx.theme.small(), cx.theme.text_muted);
            let ground = Align2::LEFT_CENTER.anchor_size(at, galley.size());
            ui.painter_at(rect).rect_filled(ground.expand2(egui::vec2(3.0, 0.0)), 2.0, cx.theme.well);
            ui.painter_at(rect).galley(ground.min, galley, cx.theme.text_muted);
        }
    }

    fn words(&self, cx: &ViewContext<'_>, model: &ModelInfo, rows: &[MapRow], row: usize, token: usize) -> String {
        let Some(row) = rows.get(row).copied() else { return String::new() };
        let kind = row.kind(model);
        let place = format!("layer {} ({}), token {token} {}", row.layer, kind.label(), quoted(cx.store, token));
        let absence = self.quantity.absence(kind);
        if !absence.is_empty() {
            return format!("{place}\n{absence}");
        }
        match self.value(cx, row, token) {
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

    /// One line per token: its position, its text, one column per row of the map.
    fn csv(&self, cx: &ViewContext<'_>, model: &ModelInfo, rows: &[MapRow]) -> String {
        let mut text = String::from("position,token");
        for row in rows {
            let several = !row.whole && model.layers[row.layer].parts.len() > 1;
            let kind = if several { format!(" {}", row.kind(model).label()) } else { String::new() };
            text.push_str(&format!(",layer {}{kind}", row.layer));
        }
        for t in 0..cx.store.length() {
            text.push_str(&format!("\n{t},{}", csv_text(&cx.store.token_text(t))));
            for row in rows {
                text.push_str(&format!(",{}", self.value(cx, *row, t).map(exact).unwrap_or_default()));
            }
        }
        text
    }
}

/// A mixer of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MapRow {
    layer: usize,
    part: usize,
    /// Stands for the layer, not for one of its mixers.
    whole: bool,
}

impl MapRow {
    fn kind(self, model: &ModelInfo) -> MixerKind {
        model.layers[self.layer].parts[self.part].kind
    }

    /// A row that stands for the whole layer leaves the mixer looked at as it is.
    fn place(self) -> Place {
        Place { layer: Some(self.layer), part: (!self.whole).then_some(self.part), head: None }
    }
}

/// The row of a mixer, else of its layer.
fn row_of(rows: &[MapRow], layer: Option<usize>, part: Option<usize>) -> Option<usize> {
    let of_layer = |row: &MapRow| Some(row.layer) == layer;
    rows.iter().position(|row| of_layer(row) && Some(row.part) == part).or_else(|| rows.iter().position(of_layer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_mixer_or_its_layer() {
        let row = |layer, part, whole| MapRow { layer, part, whole };
        let rows = [row(0, 0, true), row(1, 0, false), row(1, 1, false)];
        assert_eq!(row_of(&rows, Some(1), Some(1)), Some(2));
        assert_eq!(row_of(&rows, Some(0), Some(1)), Some(0));
        assert_eq!((row_of(&rows, Some(1), None), row_of(&rows, None, None)), (Some(1), None));
        assert_eq!(rows[2].place(), Place { layer: Some(1), part: Some(1), head: None });
        assert_eq!(rows[0].place().part, None);
    }
}
