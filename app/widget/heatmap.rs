//! A table of numbers as a texture: recoloured only when data, range, scale, size or window changed.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use eframe::egui::{
    self, Align2, Color32, ColorImage, Id, Rangef, Rect, Response, Sense, Stroke, StrokeKind, TextureHandle,
    TextureOptions, Ui, Vec2, pos2,
};

use super::format;
use super::plot::{self, visible};
use super::scale::Normaliser;
use crate::theme::{Theme, space};

mod hatch;
mod pool;

pub use super::scale::ValueScale;
pub use crate::theme::ColourMap;
pub use hatch::hatch;
pub use pool::{Cells, Row, Settled};

use pool::{Mark, Pooled, bin, pool};

/// Texels that a texture grows by.
const ROOM: usize = 64;

type Describe<'a> = &'a dyn Fn(usize, usize, Option<f32>) -> String;
type RowLabel<'a> = &'a dyn Fn(usize) -> String;

/// A heatmap to be shown.
pub struct Heatmap<'a> {
    salt: Id,
    cells: &'a dyn Cells,
    map: ColourMap,
    scale: ValueScale,
    range: Option<(f32, f32)>,
    x_window: Option<Range<f64>>,
    y_window: Option<Range<f64>>,
    size: Option<Vec2>,
    gutter: f32,
    row_label: Option<RowLabel<'a>>,
    highlight: (Option<usize>, Option<usize>),
    cursor: (Option<usize>, Option<usize>),
    label: String,
    describe: Option<Describe<'a>>,
}

/// What was drawn, and what the pointer did on it.
pub struct HeatmapResponse {
    pub response: Response,
    /// Row, column and value under the pointer.
    pub hovered: Option<(usize, usize, Option<f32>)>,
    pub clicked: Option<(usize, usize)>,
    pub range_used: (f32, f32),
    /// Whether values lie below or above the range.
    pub clipped: (bool, bool),
    /// Of the cells, without gutter.
    pub rect: Rect,
}

#[derive(Clone, PartialEq)]
struct PoolKey {
    generation: u64,
    rows: Range<usize>,
    cols: Range<usize>,
    /// Cells per texel.
    bins: (usize, usize),
    settled: Option<Settled>,
}

impl PoolKey {
    /// Rows of texels that are as they were when this key was true.
    fn kept(&self, now: &PoolKey, cells: &dyn Cells) -> usize {
        let (Some(before), Some(settled)) = (self.settled, now.settled) else { return 0 };
        let same = (before.since, self.rows.start, self.cols.start, self.bins)
            == (settled.since, now.rows.start, now.cols.start, now.bins);
        let rows = before.rows.min(self.rows.end).min(now.rows.end).saturating_sub(now.rows.start) / now.bins.0;
        let last = now.rows.start + (rows * now.bins.0).saturating_sub(1);
        let whole = self.cols.end == now.cols.end || cells.end(last) <= self.cols.end && self.cols.end < now.cols.end;
        if same && whole { rows } else { 0 }
    }
}

#[derive(Clone, PartialEq)]
struct ColourKey {
    map: ColourMap,
    scale: ValueScale,
    range: (u32, u32),
    dark: bool,
}

#[derive(Default)]
struct Cache {
    pool_key: Option<PoolKey>,
    pooled: Pooled,
    colour_key: Option<ColourKey>,
    clipped: (bool, bool),
    texture: Option<TextureHandle>,
}

impl<'a> Heatmap<'a> {
    pub fn new(id_salt: impl std::hash::Hash + std::fmt::Debug, cells: &'a dyn Cells) -> Self {
        Self {
            salt: Id::unique(("heatmap", &id_salt)),
            cells,
            map: ColourMap::Sequential,
            scale: ValueScale::Linear,
            range: None,
            x_window: None,
            y_window: None,
            size: None,
            gutter: 0.0,
            row_label: None,
            highlight: (None, None),
            cursor: (None, None),
            label: "Heatmap".into(),
            describe: None,
        }
    }

    pub fn map(mut self, map: ColourMap) -> Self {
        self.map = map;
        self
    }

    pub fn scale(mut self, scale: ValueScale) -> Self {
        self.scale = scale;
        self
    }

    /// None: the smallest and largest value in sight.
    pub fn range(mut self, range: Option<(f32, f32)>) -> Self {
        self.range = range;
        self
    }

    /// Columns in sight; without it all of them.
    pub fn x_window(mut self, window: Range<f64>) -> Self {
        self.x_window = Some(window);
        self
    }

    /// Rows in sight; without it all of them.
    pub fn y_window(mut self, window: Range<f64>) -> Self {
        self.y_window = Some(window);
        self
    }

    /// Gutter included; without it all the space left.
    pub fn size(mut self, size: Vec2) -> Self {
        self.size = Some(size);
        self
    }

    /// Leaves `space::GUTTER` at the left, so that columns line up with the other views over tokens, and names rows there.
    pub fn row_labels(mut self, label: RowLabel<'a>) -> Self {
        self.gutter = space::GUTTER;
        self.row_label = Some(label);
        self
    }

    /// Space at the left of the cells.
    pub fn gutter(mut self, gutter: f32) -> Self {
        self.gutter = gutter;
        self
    }

    /// What the pointer is on, here or in another view.
    pub fn highlight_row(mut self, row: Option<usize>) -> Self {
        self.highlight.0 = row;
        self
    }

    pub fn highlight_col(mut self, col: Option<usize>) -> Self {
        self.highlight.1 = col;
        self
    }

    /// What is pinned.
    pub fn cursor_row(mut self, row: Option<usize>) -> Self {
        self.cursor.0 = row;
        self
    }

    pub fn cursor_col(mut self, col: Option<usize>) -> Self {
        self.cursor.1 = col;
        self
    }

    /// The name for AccessKit.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Value, indices and meaning of a cell in words: the tag at the pointer, and the value that AccessKit reads.
    pub fn describe(mut self, describe: Describe<'a>) -> Self {
        self.describe = Some(describe);
        self
    }

    pub fn show(self, ui: &mut Ui, theme: &Theme) -> HeatmapResponse {
        let size = self.size.unwrap_or_else(|| ui.available_size()).max(Vec2::splat(8.0));
        let (_, outer) = ui.allocate_space(size);
        let rect =
            snap(Rect::from_min_max(pos2(outer.min.x + self.gutter, outer.min.y), outer.max), ui.pixels_per_point());
        let id = ui.make_persistent_id(self.salt);
        let response = ui.interact(rect, id, Sense::click_and_drag());
        let x = self.x_window.clone().unwrap_or(0.0..self.cells.cols() as f64);
        let y = self.y_window.clone().unwrap_or(0.0..self.cells.rows() as f64);
        let grid = Grid { rect, x, y, rows: self.cells.rows(), cols: self.cells.cols() };

        let cache = ui.ctx().data_mut(|d| d.get_temp_mut_or_default::<Arc<Mutex<Cache>>>(id).clone());
        let mut cache = cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let range_used = self.update(ui, theme, &grid, &mut cache);
        self.paint(ui, theme, &grid, &cache);

        let hovered =
            response.hover_pos().and_then(|p| grid.cell_at(p)).map(|(row, col)| (row, col, self.cells.value(row, col)));
        let clicked =
            (response.clicked()).then(|| response.interact_pointer_pos()).flatten().and_then(|p| grid.cell_at(p));
        self.say(ui, theme, &response, hovered);
        HeatmapResponse { response, hovered, clicked, range_used, clipped: cache.clipped, rect }
    }

    /// Brings the texture up to date and returns the range in use.
    fn update(&self, ui: &Ui, theme: &Theme, grid: &Grid, cache: &mut Cache) -> (f32, f32) {
        let pixels = grid.rect.size() * ui.pixels_per_point();
        let bins = (span_bin(&grid.y, pixels.y), span_bin(&grid.x, pixels.x));
        let rows = aligned(visible(&grid.y, grid.rows), bins.0);
        let cols = aligned(visible(&grid.x, grid.cols), bins.1);
        let key = PoolKey { generation: self.cells.generation(), rows, cols, bins, settled: self.cells.settled() };
        let fresh = cache.pool_key.as_ref() != Some(&key);
        let mut kept = 0;
        if fresh {
            kept = cache.pool_key.as_ref().map_or(0, |before| before.kept(&key, self.cells));
            pool(&mut cache.pooled, self.cells, key.rows.clone(), key.cols.clone(), key.bins, kept);
            cache.pool_key = Some(key);
        }
        let range = self.range.or_else(|| cache.pooled.range()).unwrap_or((0.0, 1.0));
        let colours = ColourKey {
            map: self.map,
            scale: self.scale,
            range: (range.0.to_bits(), range.1.to_bits()),
            dark: theme.is_dark(),
        };
        let recoloured = cache.colour_key.as_ref() != Some(&colours);
        if fresh || recoloured {
            cache.colour_key = Some(colours);
            self.recolour(ui, theme, range, cache, if recoloured { 0 } else { kept });
        }
        range
    }

    /// Colours the texels below the first `kept` rows, which the texture has already.
    fn recolour(&self, ui: &Ui, theme: &Theme, range: (f32, f32), cache: &mut Cache, kept: usize) {
        let (table, normaliser) = (theme.map(self.map), Normaliser::new(self.map, self.scale, range));
        let slack = 1e-4;
        let pooled = &cache.pooled;
        let (width, height) = (pooled.width, pooled.height);
        if width * height == 0 {
            return;
        }
        // A table that grows has room in its texture.
        let room = |texels: usize| if self.cells.settled().is_some() { texels.next_multiple_of(ROOM) } else { texels };
        let size = [room(width), room(height)];
        let fits = cache.texture.as_ref().is_some_and(|texture| texture.size() == size);
        let first = if fits { kept } else { 0 };
        if first == height {
            return;
        }
        let (mut below, mut above) = if first > 0 { cache.clipped } else { (false, false) };
        let pixels = pooled.values[first * width..].iter().zip(&pooled.marks[first * width..]);
        let pixels = pixels.map(|(value, mark)| match mark {
            Mark::Known => {
                let t = normaliser.at(*value);
                below |= t < -slack;
                above |= t > 1.0 + slack;
                table.at(t)
            }
            Mark::Unknown => Color32::TRANSPARENT,
            Mark::Blank => theme.well,
            Mark::NotFinite => theme.error,
        });
        let mut image = ColorImage::new([width, height - first], pixels.collect());
        cache.clipped = (below, above);
        match &mut cache.texture {
            Some(texture) if fits && first > 0 => texture.set_partial([0, first], image, TextureOptions::NEAREST),
            texture => {
                if size != [width, height] {
                    image = on_ground(&image, size, theme.well);
                }
                match texture {
                    Some(texture) if fits => texture.set_partial([0, 0], image, TextureOptions::NEAREST),
                    Some(texture) => texture.set(image, TextureOptions::NEAREST),
                    None => *texture = Some(ui.ctx().load_texture("heatmap", image, TextureOptions::NEAREST)),
                }
            }
        }
    }

    fn paint(&self, ui: &Ui, theme: &Theme, grid: &Grid, cache: &Cache) {
        let painter = ui.painter_at(grid.rect);
        painter.rect_filled(grid.rect, 0.0, theme.well);
        if let (Some(key), Some(texture), true) =
            (&cache.pool_key, &cache.texture, cache.pooled.width * cache.pooled.height > 0)
        {
            let cells = Rect::from_x_y_ranges(
                Rangef::new(grid.left(key.cols.start), grid.left(key.cols.start + cache.pooled.width * key.bins.1)),
                Rangef::new(grid.top(key.rows.start), grid.top(key.rows.start + cache.pooled.height * key.bins.0)),
            );
            // A short last block must not look like cells that do not exist.
            let end = pos2(grid.left(key.cols.end), grid.top(key.rows.end));
            let painter = painter.with_clip_rect(grid.rect.intersect(Rect::from_min_max(grid.rect.min, end)));
            if cache.pooled.unknown() {
                hatch(ui, theme, cells.intersect(painter.clip_rect()));
            }
            let part = |used: usize, of: usize| used as f32 / of.max(1) as f32;
            let [across, down] = texture.size();
            let used = pos2(part(cache.pooled.width, across), part(cache.pooled.height, down));
            painter.image(texture.id(), cells, Rect::from_min_max(pos2(0.0, 0.0), used), Color32::WHITE);
        }
        let faint = Stroke::new(1.0, theme.hover.gamma_multiply(0.6));
        let pinned = Stroke::new(1.0, theme.accent);
        for (cell, stroke) in [(self.highlight, faint), (self.cursor, pinned)] {
            self.paint_band(&painter, grid, cell, stroke);
        }
        if let Some(label) = self.row_label {
            self.paint_row_labels(ui, theme, grid, label);
        }
    }

    /// A row, a column, or both with their crossing framed.
    fn paint_band(
        &self,
        painter: &egui::Painter,
        grid: &Grid,
        (row, col): (Option<usize>, Option<usize>),
        stroke: Stroke,
    ) {
        let band = |rect: Rect| {
            if rect.width() < 4.0 {
                painter.vline(rect.center().x, rect.y_range(), stroke);
            } else if rect.height() < 4.0 {
                painter.hline(rect.x_range(), rect.center().y, stroke);
            } else {
                painter.rect_stroke(rect, 0.0, stroke, StrokeKind::Inside);
            }
        };
        if let Some(row) = row.filter(|r| *r < grid.rows) {
            band(Rect::from_x_y_ranges(grid.rect.x_range(), Rangef::new(grid.top(row), grid.top(row + 1))));
        }
        if let Some(col) = col.filter(|c| *c < grid.cols) {
            band(Rect::from_x_y_ranges(Rangef::new(grid.left(col), grid.left(col + 1)), grid.rect.y_range()));
        }
    }

    fn paint_row_labels(&self, ui: &Ui, theme: &Theme, grid: &Grid, label: RowLabel<'_>) {
        let painter = ui.painter();
        let height = (f64::from(grid.rect.height()) / (grid.y.end - grid.y.start).max(1e-9)) as f32;
        // As many names as fit without touching.
        let step = (theme.small().size * 1.15 / height.max(1e-3)).ceil().max(1.0) as usize;
        for row in visible(&grid.y, grid.rows) {
            let strong = self.cursor.0 == Some(row) || self.highlight.0 == Some(row);
            let crowded = self.cursor.0.is_some_and(|c| c != row && c.abs_diff(row) < step);
            if !(strong || row.is_multiple_of(step) && !crowded) {
                continue;
            }
            let y = 0.5 * (grid.top(row) + grid.top(row + 1));
            if !grid.rect.y_range().contains(y) {
                continue;
            }
            let colour = if self.cursor.0 == Some(row) {
                theme.accent
            } else if strong {
                theme.text
            } else {
                theme.text_faint
            };
            painter.text(pos2(grid.rect.min.x - 6.0, y), Align2::RIGHT_CENTER, label(row), theme.small(), colour);
        }
    }

    /// Tag and AccessKit value.
    fn say(&self, ui: &Ui, theme: &Theme, response: &Response, hovered: Option<(usize, usize, Option<f32>)>) {
        let words = |row: usize, col: usize, value: Option<f32>| match self.describe {
            Some(describe) => describe(row, col, value),
            None => format!("row {row}, column {col}: {}", value.map_or_else(|| "not known".into(), format::number)),
        };
        let pinned = match self.cursor {
            (Some(row), Some(col)) if row < self.cells.rows() && col < self.cells.cols() => {
                Some((row, col, self.cells.value(row, col)))
            }
            _ => None,
        };
        let text = hovered.or(pinned).map(|(row, col, value)| words(row, col, value));
        plot::say(ui, theme, response, &self.label, text, hovered.is_some());
    }
}

/// Where the cells lie on the screen.
struct Grid {
    rect: Rect,
    x: Range<f64>,
    y: Range<f64>,
    rows: usize,
    cols: usize,
}

impl Grid {
    fn left(&self, col: usize) -> f32 {
        place(col as f64, &self.x, self.rect.x_range())
    }

    fn top(&self, row: usize) -> f32 {
        place(row as f64, &self.y, self.rect.y_range())
    }

    fn cell_at(&self, pos: egui::Pos2) -> Option<(usize, usize)> {
        let along = |p: f32, window: &Range<f64>, pixels: Rangef, count: usize| {
            let cell =
                window.start + f64::from((p - pixels.min) / pixels.span().max(1e-3)) * (window.end - window.start);
            (cell >= 0.0 && cell < count as f64).then_some(cell as usize)
        };
        let row = along(pos.y, &self.y, self.rect.y_range(), self.rows)?;
        Some((row, along(pos.x, &self.x, self.rect.x_range(), self.cols)?))
    }
}

/// The image in the upper left of a larger one.
fn on_ground(image: &ColorImage, size: [usize; 2], ground: Color32) -> ColorImage {
    let mut pixels = vec![ground; size[0] * size[1]];
    for (to, from) in pixels.chunks_exact_mut(size[0]).zip(image.pixels.chunks_exact(image.width())) {
        to[..from.len()].copy_from_slice(from);
    }
    ColorImage::new(size, pixels)
}

fn place(cell: f64, window: &Range<f64>, pixels: Rangef) -> f32 {
    let share = (cell - window.start) / (window.end - window.start).max(1e-9);
    pixels.min + (share * f64::from(pixels.span())) as f32
}

/// Cells per texel where a window of cells is drawn on `pixels`.
fn span_bin(window: &Range<f64>, pixels: f32) -> usize {
    bin((window.end - window.start).ceil().max(0.0) as usize, pixels.max(1.0) as usize)
}

/// The range begun at a multiple of `bin`.
fn aligned(range: Range<usize>, bin: usize) -> Range<usize> {
    range.start / bin * bin..range.end
}

fn snap(rect: Rect, pixels_per_point: f32) -> Rect {
    let round = |v: f32| (v * pixels_per_point).round() / pixels_per_point;
    Rect::from_min_max(pos2(round(rect.min.x), round(rect.min.y)), pos2(round(rect.max.x), round(rect.max.y)))
}
