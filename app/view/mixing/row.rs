//! One row of the matrix as bars over tokens: what the pinned token reads.

use eframe::egui::{self, Rangef, Rect, Role, Sense, Ui, WidgetInfo, pos2};

use crate::theme::Theme;
use crate::view::quantity::spread_of;
use crate::widget::format;
use crate::widget::scale::Normaliser;
use crate::widget::time::TimeMap;

/// Draws `values[j]` of row `i` into `rect`, whose columns are those of the matrix above. Returns the key under the pointer and
/// whether it was clicked.
#[allow(clippy::too_many_arguments)]
pub fn bars(
    ui: &Ui,
    theme: &Theme,
    rect: Rect,
    map: &TimeMap,
    normaliser: &Normaliser,
    i: usize,
    values: Option<&[f32]>,
    key: Option<usize>,
) -> (Option<usize>, bool) {
    let response = ui.interact(rect, ui.scope_id().with("matrix row"), Sense::click());
    response
        .widget_info(|| WidgetInfo::labeled(Role::Image, true, format!("row {i} of the matrix as bars over tokens")));
    let painter = ui.painter_at(rect);
    painter.rect_filled(rect, 0.0, theme.well);
    let Some(values) = values else {
        crate::widget::heatmap::hatch(ui, theme, rect);
        return (None, false);
    };
    let first = (map.window.start.floor().max(0.0) as usize).min(values.len());
    let last = (map.window.end.ceil().max(0.0) as usize).clamp(first, values.len());
    let seen = &values[first..last];
    // Heights on the scale of the map above: what is visible there is visible here.
    let zero = normaliser.at(0.0).clamp(0.0, 1.0);
    let (low, high) = seen
        .iter()
        .filter(|v| v.is_finite())
        .map(|v| normaliser.at(*v).clamp(0.0, 1.0))
        .fold((zero, zero), |(low, high), t| (low.min(t), high.max(t)));
    let extremes = spread_of(seen);
    if high > low {
        let inner = rect.shrink2(egui::vec2(0.0, 3.0));
        let y = |t: f32| inner.bottom() - inner.height() * (t - low) / (high - low);
        painter.hline(rect.x_range(), y(zero), egui::Stroke::new(1.0, theme.grid));
        // One bar a pixel column where tokens outnumber pixels: the value of largest size.
        let mut pixel: Option<(i32, f32, Rangef)> = None;
        let draw = |value: f32, x: Rangef| {
            let t = normaliser.at(value).clamp(0.0, 1.0);
            let bar = Rect::from_x_y_ranges(x, Rangef::new(y(t.max(zero)), y(t.min(zero))));
            painter.rect_filled(bar, 0.0, if value < 0.0 { theme.line_colour(0, 4) } else { theme.line_colour(1, 4) });
        };
        for (j, value) in (first..).zip(seen).filter(|(_, v)| v.is_finite()) {
            let column = map.column(j);
            let x = column.center().floor() as i32;
            let gap = if column.span() > 4.0 { 0.5 } else { 0.0 };
            let span = Rangef::new(column.min + gap, (column.max - gap).max(column.min + 1.0));
            pixel = match pixel {
                Some((at, kept, span)) if at == x => {
                    Some((at, if value.abs() > kept.abs() { *value } else { kept }, span))
                }
                other => {
                    if let Some((_, kept, span)) = other {
                        draw(kept, span);
                    }
                    Some((x, *value, span))
                }
            };
        }
        if let Some((_, kept, span)) = pixel {
            draw(kept, span);
        }
    }
    if let Some(key) = key.filter(|key| (first..last).contains(key)) {
        let x = map.column(key);
        painter.rect_stroke(
            Rect::from_x_y_ranges(Rangef::new(x.min, x.max.max(x.min + 1.0)), rect.y_range()),
            0.0,
            egui::Stroke::new(1.0, theme.accent),
            egui::StrokeKind::Inside,
        );
    }
    let x = rect.left() - 6.0;
    if let Some([smallest, _, largest]) = extremes {
        painter_text(ui, theme, pos2(x, rect.top()), egui::Align2::RIGHT_TOP, &format::digits(largest, 3));
        if smallest < 0.0 {
            painter_text(ui, theme, pos2(x, rect.bottom()), egui::Align2::RIGHT_BOTTOM, &format::digits(smallest, 3));
        }
    }
    let hovered = response.hover_pos().and_then(|pointer| map.index(pointer.x, values.len()));
    (hovered, response.clicked() && hovered.is_some())
}

fn painter_text(ui: &Ui, theme: &Theme, at: egui::Pos2, align: egui::Align2, text: &str) {
    ui.painter().text(at, align, text, theme.small(), theme.text_faint);
}
