//! The time axis shared by layer map, gates, norms, matrix columns and timeline: token t covers t..t+1.

use std::ops::Range;

use eframe::egui::{self, PointerButton, Rangef, Response, Stroke, Ui};

use crate::selection::TimeAxis;
use crate::theme::Theme;

/// Tokens seen at once at least.
const CLOSEST: f64 = 4.0;

/// Tokens to pixels and back.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeMap {
    pub x: Rangef,
    pub window: Range<f64>,
}

impl TimeMap {
    pub fn new(x: Rangef, window: Range<f64>) -> Self {
        Self { x, window }
    }

    pub fn x(&self, token: f64) -> f32 {
        let share = (token - self.window.start) / self.span();
        self.x.min + (share * f64::from(self.x.span())) as f32
    }

    pub fn token(&self, x: f32) -> f64 {
        let share = f64::from((x - self.x.min) / self.x.span().max(1.0));
        self.window.start + share * self.span()
    }

    /// The token under `x`, if it is one of `length`.
    pub fn index(&self, x: f32, length: usize) -> Option<usize> {
        let token = self.token(x).floor();
        (token >= 0.0 && token < length as f64).then_some(token as usize)
    }

    /// The pixels that a token covers.
    pub fn column(&self, token: usize) -> Rangef {
        Rangef::new(self.x(token as f64), self.x(token as f64 + 1.0))
    }

    /// The middle of a token.
    pub fn centre(&self, token: usize) -> f32 {
        self.x(token as f64 + 0.5)
    }

    pub fn pixels_per_token(&self) -> f32 {
        (f64::from(self.x.span()) / self.span()) as f32
    }

    fn span(&self) -> f64 {
        (self.window.end - self.window.start).max(1e-9)
    }
}

/// Zoom (Ctrl and wheel, or pinch), pan (Shift and wheel, or drag with the middle button), fit (double click). Returns the new axis.
pub fn interact(ui: &Ui, response: &Response, map: &TimeMap, length: usize) -> Option<TimeAxis> {
    if response.double_clicked() {
        return Some(TimeAxis::Fit);
    }
    let mut shift = 0.0;
    if response.dragged_by(PointerButton::Middle) {
        shift -= response.drag_delta().x;
    }
    let mut zoom = 1.0;
    if response.contains_pointer() {
        let (factor, scroll) = ui.input(|i| (i.zoom_delta(), i.smooth_scroll_delta().x));
        zoom = factor;
        shift -= scroll;
        if factor != 1.0 || scroll != 0.0 {
            // Not also scrolled by whatever lies around.
            ui.input_mut(|i| i.smooth_scroll_delta.x = 0.0);
        }
    }
    if zoom == 1.0 && shift == 0.0 {
        return None;
    }
    let anchor = response.hover_pos().map_or(0.5 * (map.window.start + map.window.end), |p| map.token(p.x));
    Some(moved(&map.window, anchor, f64::from(zoom), f64::from(shift / map.pixels_per_token()), length))
}

/// `window` zoomed around `anchor` and shifted, kept within the text; `Fit` once everything is in sight.
pub fn moved(window: &Range<f64>, anchor: f64, zoom: f64, shift: f64, length: usize) -> TimeAxis {
    let all = TimeAxis::Fit.visible(length);
    let span = ((window.end - window.start) / zoom).clamp(CLOSEST.min(all.end), all.end);
    if span >= all.end * 0.999 {
        return TimeAxis::Fit;
    }
    let share = (anchor - window.start) / (window.end - window.start).max(1e-9);
    let start = (anchor - share * span + shift).clamp(0.0, all.end - span);
    TimeAxis::Window(start..start + span)
}

/// Keeps `token` in sight of a fixed window by sliding it.
pub fn reveal(axis: &TimeAxis, token: usize) -> Option<TimeAxis> {
    let TimeAxis::Window(window) = axis else { return None };
    let (t, span) = (token as f64, window.end - window.start);
    if t >= window.start && t + 1.0 <= window.end {
        return None;
    }
    let start = if t < window.start { t } else { t + 1.0 - span };
    Some(TimeAxis::Window(start.max(0.0)..start.max(0.0) + span))
}

/// The cursor, the pointer's token and a pinned range, as lines through `y`.
pub fn draw_cursor(
    painter: &egui::Painter,
    map: &TimeMap,
    y: Rangef,
    theme: &Theme,
    cursor: Option<usize>,
    hover: Option<usize>,
    range: Option<Range<usize>>,
) {
    if let Some(range) = range {
        let x = Rangef::new(map.x(range.start as f64), map.x(range.end as f64));
        painter.rect_filled(egui::Rect::from_x_y_ranges(x, y), 0.0, theme.accent.gamma_multiply(0.14));
    }
    for (token, colour) in [(hover, theme.hover.gamma_multiply(0.55)), (cursor, theme.accent)] {
        let Some(token) = token else { continue };
        let column = map.column(token);
        if column.max < map.x.min || column.min > map.x.max {
            continue;
        }
        let stroke = Stroke::new(1.0, colour);
        if column.span() > 5.0 {
            painter.vline(column.min.max(map.x.min), y, stroke);
            painter.vline(column.max.min(map.x.max) - 1.0, y, stroke);
        } else {
            painter.vline(column.center(), y, stroke);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_tokens_round_trip() {
        let map = TimeMap::new(Rangef::new(52.0, 652.0), 10.0..60.0);
        for token in [10usize, 11, 37, 59] {
            assert_eq!(map.index(map.centre(token), 60), Some(token));
            assert!((map.token(map.x(token as f64)) - token as f64).abs() < 1e-4);
        }
        assert_eq!(map.index(map.centre(59), 59), None);
        assert_eq!(map.index(0.0, 60), Some(5));
        assert_eq!(TimeMap::new(Rangef::new(0.0, 0.0), 0.0..1.0).index(5.0, 0), None);
    }

    #[test]
    fn zoom_keeps_the_anchor_and_ends_in_fit() {
        let TimeAxis::Window(window) = moved(&(0.0..1000.0), 400.0, 2.0, 0.0, 1000) else { panic!("window") };
        assert!((window.start - 200.0).abs() < 1e-9 && (window.end - 700.0).abs() < 1e-9);
        assert_eq!(moved(&window, 400.0, 0.1, 0.0, 1000), TimeAxis::Fit);
        let TimeAxis::Window(window) = moved(&window, 400.0, 1.0, 5000.0, 1000) else { panic!("window") };
        assert!((window.end - 1000.0).abs() < 1e-9);
        assert_eq!(moved(&(0.0..32.0), 3.0, 1.0, 2.0, 0), TimeAxis::Fit);
        assert_eq!(reveal(&TimeAxis::Window(10.0..20.0), 25), Some(TimeAxis::Window(16.0..26.0)));
        assert_eq!(reveal(&TimeAxis::Window(10.0..20.0), 15), None);
    }
}
