//! What every plot over tokens shares: the gutter, the one time axis, the same cursor, and the same answers to hover and click.
//! Also the colour settings that a legend changes.

use eframe::egui::{self, Align2, Color32, FontId, Rect, Ui, UiBuilder, pos2, vec2};

use crate::action::Action;
use crate::selection::Hover;
use crate::theme::{ColourMap, space};
use crate::view::ViewContext;
use crate::view::quantity::Subject;
use crate::widget::heatmap::{Heatmap, HeatmapResponse, ValueScale};
use crate::widget::legend::{self, Legend, LegendChange};
use crate::widget::panel::{self, Menu};
use crate::widget::series::{SeriesPlot, SeriesResponse};
use crate::widget::time::{self, TimeMap};

/// How a heatmap is coloured; saved with its view.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Colours {
    pub scale: ValueScale,
    /// Colours stay what they are, so that they compare over time and between models.
    pub locked: Option<(f32, f32)>,
}

impl Colours {
    pub fn new(scale: ValueScale) -> Self {
        Self { scale, locked: None }
    }

    /// The chosen scale as far as `map` has it: a signed map has no plain logarithm, one for magnitudes no signed one.
    pub fn scale_for(&self, map: ColourMap) -> ValueScale {
        match (map, self.scale) {
            (ColourMap::Diverging, ValueScale::Log) => ValueScale::Symlog,
            (ColourMap::Sequential, ValueScale::Symlog) => ValueScale::Log,
            (ColourMap::Cyclic, _) => ValueScale::Linear,
            (_, scale) => scale,
        }
    }

    /// Draws the legend of `response` and takes up what was changed on it.
    pub fn legend(
        &mut self,
        ui: &mut Ui,
        cx: &ViewContext<'_>,
        map: ColourMap,
        unit: &str,
        response: &HeatmapResponse,
    ) {
        let change = legend::legend(
            ui,
            cx.theme,
            &Legend {
                map,
                scale: self.scale_for(map),
                range: response.range_used,
                unit,
                locked: self.locked.is_some(),
                clipped: response.clipped,
            },
        );
        match change {
            Some(LegendChange::Lock(range)) => self.locked = Some(range),
            Some(LegendChange::Unlock) => self.locked = None,
            Some(LegendChange::Scale(scale)) => self.scale = scale,
            None => {}
        }
    }
}

/// The visible tokens.
pub fn window(cx: &ViewContext<'_>) -> std::ops::Range<f64> {
    cx.time.visible(cx.store.length())
}

/// The pinned range of tokens, if Shift made one.
pub fn pinned_range(cx: &ViewContext<'_>) -> Option<std::ops::Range<usize>> {
    let (a, b) = (cx.selection.query?, cx.selection.range_end?);
    Some(a.min(b)..a.max(b) + 1)
}

fn cursor(cx: &ViewContext<'_>) -> Option<usize> {
    Subject::of(cx).and_then(|subject| subject.cursor)
}

/// A heatmap over the shared time axis, as wide as the panel, gutter included.
pub fn map_over_time(
    ui: &mut Ui,
    cx: &ViewContext<'_>,
    height: f32,
    heatmap: Heatmap<'_>,
    actions: &mut Vec<Action>,
) -> HeatmapResponse {
    let response = heatmap
        .gutter(space::GUTTER)
        .x_window(window(cx))
        .size(vec2(ui.available_width(), height))
        .cursor_col(cursor(cx))
        .highlight_col(cx.hover.query)
        .show(ui, cx.theme);
    zoom(ui, cx, &response.response, response.rect, actions);
    response
}

/// Lines over the shared time axis, as wide as the panel, gutter included.
pub fn lines_over_time(
    ui: &mut Ui,
    cx: &ViewContext<'_>,
    height: f32,
    plot: SeriesPlot<'_>,
    actions: &mut Vec<Action>,
) -> SeriesResponse {
    let response = plot
        .x_window(window(cx))
        .size(vec2(ui.available_width(), height))
        .cursor(cursor(cx))
        .hover(cx.hover.query)
        .pinned_range(pinned_range(cx))
        .show(ui, cx.theme);
    zoom(ui, cx, &response.response, response.rect, actions);
    response
}

/// Wheel, pinch and drag move the shared time axis.
pub fn zoom(ui: &Ui, cx: &ViewContext<'_>, response: &egui::Response, rect: Rect, actions: &mut Vec<Action>) {
    let map = TimeMap::new(rect.x_range(), window(cx));
    if let Some(axis) = time::interact(ui, response, &map, cx.store.length()) {
        actions.push(Action::SetTimeAxis(axis));
    }
}

/// Where a row of a plot is in the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub layer: Option<usize>,
    pub part: Option<usize>,
    pub head: Option<usize>,
}

impl Place {
    pub fn of(subject: &Subject<'_>, head: Option<usize>) -> Self {
        Self { layer: Some(subject.layer), part: Some(subject.part), head }
    }

    /// What selects it.
    pub fn select(self, actions: &mut Vec<Action>) {
        actions.extend(self.layer.map(Action::SelectLayer));
        actions.extend(self.part.map(Action::SelectPart));
        actions.extend(self.head.map(Action::SelectHead));
    }

    /// What lights it up, with a token if the pointer is on one.
    pub fn hover(self, query: Option<usize>, key: Option<usize>) -> Action {
        Action::Hover(Hover { layer: self.layer, part: self.part, head: self.head, query, key })
    }
}

/// Whether the pointer is on a head of this mixer, here or in another view.
pub fn hovered_head(cx: &ViewContext<'_>, subject: &Subject<'_>) -> Option<usize> {
    let here = cx.hover.layer.is_none_or(|layer| layer == subject.layer)
        && cx.hover.part.is_none_or(|part| part == subject.part);
    cx.hover.head.filter(|_| here)
}

/// Hover highlights the token, click pins it; Shift extends to a range. A cell is (row, token); `place` says what a row is.
pub fn time_actions(
    ui: &Ui,
    hovered: Option<(usize, usize)>,
    clicked: Option<(usize, usize)>,
    actions: &mut Vec<Action>,
    place: impl Fn(usize, usize) -> Place,
) {
    if let Some((row, token)) = hovered {
        actions.push(place(row, token).hover(Some(token), None));
    }
    if let Some((row, token)) = clicked {
        place(row, token).select(actions);
        let extend = ui.input(|input| input.modifiers.shift);
        actions.push(if extend { Action::ExtendTo(token) } else { Action::SelectToken(Some(token)) });
    }
}

/// The menu of the right button: `value` is what is under the pointer.
pub fn menu(
    response: &egui::Response,
    view: crate::view::ViewKind,
    name: &str,
    value: Option<f32>,
    csv: &dyn Fn() -> String,
    actions: &mut Vec<Action>,
) {
    panel::context_menu(response, &Menu { view, name, value: value.map(super::exact), csv }, actions);
}

/// Height of the names above small maps.
pub const TILE_NAME: f32 = 17.0;

/// Names a small map at its upper edge, left and right, where there is room; returns where the map goes. The selected one is always named,
/// then over its neighbours, which have no names either.
pub fn tile_header(ui: &Ui, cx: &ViewContext<'_>, tile: Rect, left: &str, right: &str, selected: bool) -> Rect {
    let name = tile.with_max_y(tile.top() + TILE_NAME - 2.0);
    let (strong, faint) =
        if selected { (cx.theme.accent, cx.theme.accent) } else { (cx.theme.text, cx.theme.text_faint) };
    let painter = ui.painter();
    let layout = |text: &str, colour| painter.layout_no_wrap(text.to_owned(), cx.theme.small(), colour);
    let (left, right) = (layout(left, strong), layout(right, faint));
    let (used, room) = (left.size().x, name.width());
    if used <= room || selected {
        painter.galley(Align2::LEFT_CENTER.anchor_size(name.left_center(), left.size()).min, left, strong);
    }
    if used + right.size().x + 4.0 <= room {
        painter.galley(Align2::RIGHT_CENTER.anchor_size(name.right_center(), right.size()).min, right, faint);
    }
    tile.with_min_y(tile.top() + TILE_NAME)
}

/// Decades that a logarithmic map of weights shows unless its range is locked; smaller ones are marked as clipped.
const DECADES: f32 = 1e-4;

/// The automatic range of a map of weights, where the smallest value says little: a few decades below the largest.
pub fn auto_range(map: ColourMap, scale: ValueScale, (low, high): (f32, f32)) -> Option<(f32, f32)> {
    let size = low.abs().max(high.abs());
    (map == ColourMap::Sequential && scale == ValueScale::Log && size > 0.0).then_some((size * DECADES, size))
}

/// The frame of a small map: the selection's, or the pointer's.
pub fn frame(ui: &Ui, cx: &ViewContext<'_>, rect: Rect, selected: bool, hovered: bool) {
    let stroke = match (selected, hovered) {
        (true, _) => egui::Stroke::new(1.5, cx.theme.accent),
        (_, true) => egui::Stroke::new(1.0, cx.theme.hover.gamma_multiply(0.6)),
        _ => return,
    };
    ui.painter().rect_stroke(rect, 0.0, stroke, egui::StrokeKind::Outside);
}

/// Runs `add` in a child that fills `rect` exactly, without spacing.
pub fn inside<R>(ui: &mut Ui, rect: Rect, add: impl FnOnce(&mut Ui) -> R) -> R {
    let mut child = ui.new_child(UiBuilder::new().max_rect(rect));
    child.spacing_mut().item_spacing = egui::Vec2::ZERO;
    add(&mut child)
}

/// Runs `add` in what is left of a row, from its right end.
pub fn beside<R>(ui: &mut Ui, rect: Rect, add: impl FnOnce(&mut Ui) -> R) -> R {
    let mut child = ui.new_child(UiBuilder::new().max_rect(rect));
    add(&mut child)
}

/// A mark left of row `row`, for rows too thin to be framed.
pub fn row_mark(ui: &Ui, cx: &ViewContext<'_>, cells: Rect, rows: usize, row: Option<usize>) {
    let Some(row) = row.filter(|row| *row < rows) else { return };
    let y = cells.top() + cells.height() * (row as f32 + 0.5) / rows as f32;
    let mark = Rect::from_center_size(pos2(cells.left() - 5.0, y), vec2(6.0, 3.0));
    ui.painter().rect_filled(mark, 1.0, cx.theme.accent);
}

/// Coloured names beside the rows of a heatmap; as many as fit without touching.
pub fn row_names(ui: &Ui, cells: Rect, rows: usize, font: &FontId, mut name: impl FnMut(usize) -> (String, Color32)) {
    if rows == 0 {
        return;
    }
    let height = cells.height() / rows as f32;
    let line = font.size + 2.0;
    let every = (line / height).ceil().max(1.0) as usize;
    let mut above = f32::NEG_INFINITY;
    for row in (0..rows).step_by(every) {
        let (text, colour) = name(row);
        let lowest = (cells.bottom() - line * 0.5).max(cells.top() + line * 0.5);
        let y = (cells.top() + height * (row as f32 + 0.5)).clamp(cells.top() + line * 0.5, lowest);
        // The first and the last are moved inside and may come near their neighbours.
        if y - above >= font.size {
            ui.painter().text(pos2(cells.left() - 6.0, y), Align2::RIGHT_CENTER, text, font.clone(), colour);
            above = y;
        }
    }
}
