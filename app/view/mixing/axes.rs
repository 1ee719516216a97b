//! Names along the two axes of a matrix: tokens where there is room, else positions at round distances.

use eframe::egui::{self, Align2, Color32, Pos2, Rangef, Rect, Ui, epaint::TextShape, pos2};

use crate::theme::Theme;
use crate::view::ViewContext;
use crate::widget::format;
use crate::widget::time::TimeMap;

/// Pixels from one name to the next.
const PITCH: f32 = 14.0;
/// Height that names of columns take.
pub const TOP: f32 = 46.0;
/// Characters of a name at most.
const LONGEST: usize = 7;

/// Whether single tokens can be named at this zoom.
pub fn names_fit(pixels_per_token: f32) -> bool {
    pixels_per_token >= PITCH
}

/// Height of the column axis above the matrix.
pub fn top(pixels_per_token: f32, theme: &Theme) -> f32 {
    if names_fit(pixels_per_token) { TOP } else { theme.small().size + 4.0 }
}

/// Draws both axes around `rect`. `query` and `key` are highlighted.
pub fn draw(
    ui: &Ui,
    cx: &ViewContext<'_>,
    rect: Rect,
    window: &std::ops::Range<f64>,
    query: Option<usize>,
    key: Option<usize>,
) {
    let columns = TimeMap::new(rect.x_range(), window.clone());
    let rows = TimeMap::new(Rangef::new(rect.top(), rect.bottom()), window.clone());
    let names = names_fit(columns.pixels_per_token());
    let step = if names { 1 } else { round_step(40.0 / columns.pixels_per_token().max(1e-3)) };
    let first = window.start.floor().max(0.0) as usize;
    let last = (window.end.ceil().max(0.0) as usize).min(cx.store.length());
    for token in (first.div_ceil(step) * step..last).step_by(step) {
        let text = if names { format::shorten(&cx.store.token_label(token), LONGEST) } else { token.to_string() };
        let (x, y) = (columns.centre(token), rows.centre(token));
        if x < rect.left() || x > rect.right() || y > rect.bottom() {
            continue;
        }
        // The names of the pinned tokens stand over the numbers, which make room.
        let crowded = |at: f32, pinned: Option<usize>, along: &TimeMap, room: f32| {
            !names && pinned.is_some_and(|pinned| (along.centre(pinned) - at).abs() < room)
        };
        if !crowded(y, query, &rows, 15.0) {
            row_name(ui, cx, rect, y, &text, colour(cx, query == Some(token)));
        }
        if !crowded(x, key, &columns, 40.0) {
            column_name(ui, cx, rect, x, &text, colour(cx, key == Some(token)), names);
        }
    }
    if !names {
        // The pinned ones by name, whatever the zoom.
        for (token, is_row) in [(query, true), (key, false)] {
            let Some(token) = token.filter(|t| (first..last).contains(t)) else { continue };
            let text = format::shorten(&cx.store.token_label(token), LONGEST);
            if is_row {
                plaque(ui, cx, pos2(rect.left() - 4.0, rows.centre(token)), Align2::RIGHT_CENTER, &text);
            } else {
                plaque(ui, cx, pos2(columns.centre(token), rect.top() - 2.0), Align2::CENTER_BOTTOM, &text);
            }
        }
    }
}

fn colour(cx: &ViewContext<'_>, strong: bool) -> Color32 {
    if strong { cx.theme.accent } else { cx.theme.text_faint }
}

fn row_name(ui: &Ui, cx: &ViewContext<'_>, rect: Rect, y: f32, text: &str, colour: Color32) {
    ui.painter().text(pos2(rect.left() - 4.0, y), Align2::RIGHT_CENTER, text, cx.theme.mono(), colour);
}

fn column_name(ui: &Ui, cx: &ViewContext<'_>, rect: Rect, x: f32, text: &str, colour: Color32, upright: bool) {
    if !upright {
        ui.painter().text(pos2(x, rect.top() - 2.0), Align2::CENTER_BOTTOM, text, cx.theme.small(), colour);
        return;
    }
    let galley = ui.painter().layout_no_wrap(text.to_owned(), cx.theme.mono(), colour);
    // Turned a quarter to the left: reads upwards, ends at the matrix.
    let at: Pos2 = pos2(x - 0.5 * galley.size().y, rect.top() - 3.0);
    ui.painter().add(TextShape::new(at, galley, colour).with_angle(-std::f32::consts::FRAC_PI_2));
}

/// A name on its own ground, so that it reads over others.
fn plaque(ui: &Ui, cx: &ViewContext<'_>, at: Pos2, align: Align2, text: &str) {
    let galley = ui.painter().layout_no_wrap(text.to_owned(), cx.theme.mono(), cx.theme.accent);
    let rect = align.anchor_size(at, galley.size());
    ui.painter().rect_filled(rect.expand2(egui::vec2(3.0, 0.0)), 2.0, cx.theme.panel);
    ui.painter().galley(rect.min, galley, cx.theme.accent);
}

/// The next of 1, 2, 5, 10, 20 … that is at least `least`.
pub fn round_step(least: f32) -> usize {
    let mut unit = 1usize;
    loop {
        for step in [unit, 2 * unit, 5 * unit] {
            if step as f32 >= least || step >= 1 << 40 {
                return step;
            }
        }
        unit *= 10;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn steps_are_round() {
        assert_eq!([0.3, 1.0, 1.1, 3.0, 7.0, 130.0].map(super::round_step), [1, 1, 2, 5, 10, 200]);
    }
}
