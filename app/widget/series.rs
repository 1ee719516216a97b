//! Lines over the shared time axis. Where tokens outnumber pixels each pixel shows the smallest and the largest value.

use std::ops::Range;
use std::sync::Arc;

use eframe::egui::{
    self, Align2, Color32, Galley, Id, Pos2, Rangef, Rect, Response, Sense, Shape, Stroke, Ui, Vec2, pos2,
};

use super::format;
use super::heatmap::hatch;
use super::plot::{self, visible};
use super::time::{self, TimeMap};
use crate::theme::{Theme, space};

/// Several numbers per token.
pub trait Lines {
    fn count(&self) -> usize;
    /// Tokens.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// None: not known.
    fn value(&self, line: usize, token: usize) -> Option<f32>;
    fn colour(&self, line: usize) -> Color32;
    fn name(&self, line: usize) -> String;
}

type Describe<'a> = &'a dyn Fn(usize, usize, Option<f32>) -> String;

/// A plot to be shown. Its data area leaves `space::GUTTER` at the left, like a heatmap with row labels.
pub struct SeriesPlot<'a> {
    salt: Id,
    lines: &'a dyn Lines,
    unit: &'a str,
    log: bool,
    range: Option<(f32, f32)>,
    x_window: Option<Range<f64>>,
    size: Option<Vec2>,
    cursor: Option<usize>,
    hover: Option<usize>,
    pinned: Option<Range<usize>>,
    selected: Option<usize>,
    highlight: Option<usize>,
    label: String,
    describe: Option<Describe<'a>>,
}

/// What was drawn, and what the pointer did on it.
pub struct SeriesResponse {
    pub response: Response,
    /// Nearest line, token and value under the pointer.
    pub hovered: Option<(usize, usize, Option<f32>)>,
    pub clicked: Option<(usize, usize)>,
    pub range_used: (f32, f32),
    /// Of the data, without gutter.
    pub rect: Rect,
    pub map: TimeMap,
}

impl<'a> SeriesPlot<'a> {
    pub fn new(id_salt: impl std::hash::Hash + std::fmt::Debug, lines: &'a dyn Lines) -> Self {
        Self {
            salt: Id::unique(("series", &id_salt)),
            lines,
            unit: "",
            log: false,
            range: None,
            x_window: None,
            size: None,
            cursor: None,
            hover: None,
            pinned: None,
            selected: None,
            highlight: None,
            label: "Lines over tokens".into(),
            describe: None,
        }
    }

    pub fn unit(mut self, unit: &'a str) -> Self {
        self.unit = unit;
        self
    }

    pub fn log(mut self, log: bool) -> Self {
        self.log = log;
        self
    }

    /// None: what is in sight.
    pub fn range(mut self, range: Option<(f32, f32)>) -> Self {
        self.range = range;
        self
    }

    pub fn x_window(mut self, window: Range<f64>) -> Self {
        self.x_window = Some(window);
        self
    }

    /// Gutter included; without it all the space left.
    pub fn size(mut self, size: Vec2) -> Self {
        self.size = Some(size);
        self
    }

    /// The pinned token.
    pub fn cursor(mut self, token: Option<usize>) -> Self {
        self.cursor = token;
        self
    }

    /// The token that the pointer is on, here or in another view.
    pub fn hover(mut self, token: Option<usize>) -> Self {
        self.hover = token;
        self
    }

    /// A pinned range of tokens.
    pub fn pinned_range(mut self, range: Option<Range<usize>>) -> Self {
        self.pinned = range;
        self
    }

    /// The line of the selection, drawn over the others.
    pub fn selected_line(mut self, line: Option<usize>) -> Self {
        self.selected = line;
        self
    }

    pub fn highlight_line(mut self, line: Option<usize>) -> Self {
        self.highlight = line;
        self
    }

    /// The name for AccessKit.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Line, token, value → words for tag and AccessKit.
    pub fn describe(mut self, describe: Describe<'a>) -> Self {
        self.describe = Some(describe);
        self
    }

    pub fn show(self, ui: &mut Ui, theme: &Theme) -> SeriesResponse {
        let size = self.size.unwrap_or_else(|| ui.available_size()).max(Vec2::splat(16.0));
        let (_, outer) = ui.allocate_space(size);
        let rect = Rect::from_min_max(
            pos2((outer.min.x + space::GUTTER).round(), outer.min.y),
            pos2(outer.max.x.round(), outer.max.y),
        );
        let response = ui.interact(rect, ui.make_persistent_id(self.salt), Sense::click_and_drag());
        let window = self.x_window.clone().unwrap_or(0.0..self.lines.len().max(1) as f64);
        let map = TimeMap::new(rect.x_range(), window);
        let tokens = visible(&map.window, self.lines.len());
        let (low, high) = self.range.or_else(|| self.seen(tokens.clone())).unwrap_or((0.0, 1.0));
        let axis = Axis::new(rect.y_range(), low, high, self.log);
        let painter = ui.painter_at(rect);
        painter.rect_filled(rect, 0.0, theme.well);
        self.paint_unknown(ui, theme, &map, rect, tokens.clone());
        self.paint_axis(ui, theme, rect, &axis);
        let order = (0..self.lines.count()).filter(|l| Some(*l) != self.selected && Some(*l) != self.highlight);
        let faded = self.selected.is_some() && self.lines.count() > 1;
        for line in order {
            let colour = self.lines.colour(line);
            let colour = if faded { colour.gamma_multiply(0.55) } else { colour };
            self.paint_line(&painter, &map, &axis, tokens.clone(), line, Stroke::new(1.0, colour));
        }
        for line in [self.selected, self.highlight].into_iter().flatten().filter(|l| *l < self.lines.count()) {
            self.paint_line(&painter, &map, &axis, tokens.clone(), line, Stroke::new(2.0, self.lines.colour(line)));
        }
        time::draw_cursor(&painter, &map, rect.y_range(), theme, self.cursor, self.hover, self.pinned.clone());
        let hovered = response.hover_pos().and_then(|p| {
            let token = map.index(p.x, self.lines.len())?;
            let line = self.nearest(token, p.y, &axis)?;
            Some((line, token, self.lines.value(line, token)))
        });
        self.paint_dot(&painter, &map, &axis, hovered);
        self.say(ui, theme, &response, hovered);
        let clicked = response.clicked().then_some(hovered).flatten().map(|(line, token, _)| (line, token));
        SeriesResponse { response, hovered, clicked, range_used: (low, high), rect, map }
    }

    fn seen(&self, tokens: Range<usize>) -> Option<(f32, f32)> {
        let mut range: Option<(f32, f32)> = None;
        for line in 0..self.lines.count() {
            for token in tokens.clone() {
                let Some(value) = self.lines.value(line, token).filter(|v| v.is_finite() && (!self.log || *v > 0.0))
                else {
                    continue;
                };
                let (low, high) = range.unwrap_or((value, value));
                range = Some((low.min(value), high.max(value)));
            }
        }
        range
    }

    fn known(&self, token: usize) -> bool {
        (0..self.lines.count().min(4)).any(|line| self.lines.value(line, token).is_some())
    }

    fn paint_unknown(&self, ui: &Ui, theme: &Theme, map: &TimeMap, rect: Rect, tokens: Range<usize>) {
        let mut start = None;
        for token in tokens.clone().chain([tokens.end]) {
            let unknown = token < tokens.end && !self.known(token);
            match (start, unknown) {
                (None, true) => start = Some(token),
                (Some(first), false) => {
                    let x = Rangef::new(map.x(first as f64), map.x(token as f64));
                    hatch(ui, theme, Rect::from_x_y_ranges(x, rect.y_range()).intersect(rect));
                    start = None;
                }
                _ => {}
            }
        }
    }

    fn paint_axis(&self, ui: &Ui, theme: &Theme, rect: Rect, axis: &Axis) {
        let painter = ui.painter();
        let font = theme.small();
        if axis.low < 0.0 && axis.high > 0.0 && !axis.log {
            painter.hline(rect.x_range(), axis.y(0.0), Stroke::new(1.0, theme.grid));
        }
        let x = rect.min.x - 6.0;
        // As many digits as there is room for at the left.
        let number = |value: f32| {
            let galley = |digits| painter.layout_no_wrap(format::digits(value, digits), font.clone(), theme.text_faint);
            let room = x - ui.clip_rect().left();
            [3, 2].map(galley).into_iter().find(|galley| galley.size().x <= room).unwrap_or_else(|| galley(1))
        };
        let put = |at: Pos2, anchor: Align2, galley: Arc<Galley>| {
            painter.galley(anchor.anchor_size(at, galley.size()).min, galley, theme.text_faint);
        };
        put(pos2(x, rect.min.y), Align2::RIGHT_TOP, number(axis.high));
        if rect.height() > 2.2 * font.size {
            put(pos2(x, rect.max.y), Align2::RIGHT_BOTTOM, number(axis.low));
        }
        if rect.height() > 3.6 * font.size && !self.unit.is_empty() {
            let unit = format::shorten(self.unit, 8);
            painter.text(pos2(x, rect.center().y), Align2::RIGHT_CENTER, unit, font, theme.text_faint);
        }
    }

    fn paint_line(
        &self,
        painter: &egui::Painter,
        map: &TimeMap,
        axis: &Axis,
        tokens: Range<usize>,
        line: usize,
        stroke: Stroke,
    ) {
        let mut points = Vec::new();
        let flush = |points: &mut Vec<egui::Pos2>| match points.len() {
            0 => {}
            1 => {
                painter.circle_filled(points[0], 1.5, stroke.color);
                points.clear();
            }
            _ => {
                painter.add(Shape::line(std::mem::take(points), stroke));
            }
        };
        if map.pixels_per_token() >= 1.0 {
            for token in tokens {
                match self.lines.value(line, token).filter(|v| v.is_finite()) {
                    Some(value) => points.push(pos2(map.centre(token), axis.y(value))),
                    None => flush(&mut points),
                }
            }
            return flush(&mut points);
        }
        // The extremes of every two pixels: finer than that only costs time.
        let mut pixel: Option<(i32, f32, f32)> = None;
        let at = |pixel: i32, value: f32| pos2((2 * pixel + 1) as f32, axis.y(value));
        for token in tokens {
            let x = (0.5 * map.centre(token)).floor() as i32;
            let value = self.lines.value(line, token).filter(|v| v.is_finite());
            if let Some((last, low, high)) = pixel
                && (last != x || value.is_none())
            {
                points.extend([at(last, high), at(last, low)]);
                pixel = None;
            }
            match (value, pixel) {
                (Some(v), Some((last, low, high))) => pixel = Some((last, low.min(v), high.max(v))),
                (Some(v), None) => pixel = Some((x, v, v)),
                (None, _) => flush(&mut points),
            }
        }
        if let Some((last, low, high)) = pixel {
            points.extend([at(last, high), at(last, low)]);
        }
        flush(&mut points);
    }

    fn nearest(&self, token: usize, y: f32, axis: &Axis) -> Option<usize> {
        (0..self.lines.count())
            .filter_map(|line| Some((line, (axis.y(self.lines.value(line, token)?) - y).abs())))
            .filter(|(_, distance)| distance.is_finite())
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(line, _)| line)
            .or((self.lines.count() > 0).then_some(0))
    }

    fn paint_dot(
        &self,
        painter: &egui::Painter,
        map: &TimeMap,
        axis: &Axis,
        hovered: Option<(usize, usize, Option<f32>)>,
    ) {
        if let Some((line, token, Some(value))) = hovered.filter(|(.., v)| v.is_some_and(f32::is_finite)) {
            painter.circle_filled(pos2(map.centre(token), axis.y(value)), 3.0, self.lines.colour(line));
        }
    }

    fn say(&self, ui: &Ui, theme: &Theme, response: &Response, hovered: Option<(usize, usize, Option<f32>)>) {
        let pinned = self.cursor.filter(|t| *t < self.lines.len()).map(|token| {
            let line = self.selected.unwrap_or(0);
            (line, token, (line < self.lines.count()).then(|| self.lines.value(line, token)).flatten())
        });
        let words = |(line, token, value): (usize, usize, Option<f32>)| match self.describe {
            Some(describe) => describe(line, token, value),
            None => {
                let value = value.map_or_else(|| "not known".into(), |v| format::with_unit(v, self.unit));
                format!("{value}\n{}, token {token}", self.lines.name(line))
            }
        };
        let text = hovered.or(pinned).filter(|(line, ..)| *line < self.lines.count()).map(words);
        plot::say(ui, theme, response, &self.label, text, hovered.is_some());
    }
}

/// Values to pixels.
struct Axis {
    pixels: Rangef,
    low: f32,
    high: f32,
    log: bool,
}

impl Axis {
    fn new(pixels: Rangef, low: f32, high: f32, log: bool) -> Self {
        let (low, high) = if log { (low.max(high.abs() * 1e-6).max(f32::MIN_POSITIVE), high) } else { (low, high) };
        Self { pixels: pixels.shrink(3.0), low, high, log }
    }

    fn y(&self, value: f32) -> f32 {
        let share = if self.high <= self.low {
            0.5
        } else if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.pixels.max - share * self.pixels.span()
    }
}
