//! Mamba-2: the selected head's state large, all heads as small maps beside it.

use eframe::egui::{self, Rect, Sense, pos2, vec2};
use statescope_engine::protocol::{MixerKind, Probe};

use super::{head_probe, is_pooled, menu, norm_probe, overview_probe};
use crate::action::Action;
use crate::theme::{ColourMap, space};
use crate::view::ViewContext;
use crate::view::quantity::cells::PlaneCells;
use crate::view::quantity::plate::{self, Colours, Place};
use crate::view::quantity::{Subject, exact, quoted, short};
use crate::widget::heatmap::{Heatmap, hatch};

/// Gap between small maps, and the height of their names.
const GAP: f32 = 6.0;
const NAME: f32 = plate::TILE_NAME;

pub fn ui(
    ui: &mut egui::Ui,
    cx: &ViewContext<'_>,
    subject: &Subject<'_>,
    colours: &mut Colours,
    height: f32,
    actions: &mut Vec<Action>,
) {
    let m = subject.mixer;
    let (whole, _) =
        ui.allocate_exact_size(vec2(ui.available_width(), (height - space::ROW - space::XS).max(40.0)), Sense::hover());
    // Cells of the large map are square where the panel allows; the small maps take what is left.
    let aspect = m.state_dim as f32 / m.head_dim.max(1) as f32;
    let room = whole.width() - space::GUTTER;
    let large_width = (whole.height() * aspect).min(room * 0.5).max(48.0);
    let left = whole.left() + space::GUTTER;
    let large = Rect::from_min_size(pos2(left, whole.top()), vec2(large_width, whole.height()));
    let small = Rect::from_min_max(pos2(large.right() + space::M, whole.top()), whole.max);
    let probe = head_probe(subject);
    let range = colours.locked.or_else(|| cx.store.latest(&overview_probe(subject)).map(|reading| reading.range));
    let response = large_map(ui, cx, subject, &probe, *colours, range, large, actions);
    small_maps(ui, cx, subject, *colours, range, small, actions);
    match response {
        Some(response) => colours.legend(ui, cx, ColourMap::Diverging, "", &response),
        None => ui.add_space(space::ROW),
    }
}

/// What rows and columns of a head's state are called.
fn axes(kind: MixerKind) -> (&'static str, &'static str) {
    if kind == MixerKind::Mamba2 { ("P", "N") } else { ("V", "K") }
}

#[allow(clippy::too_many_arguments)]
fn large_map(
    ui: &mut egui::Ui,
    cx: &ViewContext<'_>,
    subject: &Subject<'_>,
    probe: &Probe,
    colours: Colours,
    range: Option<(f32, f32)>,
    rect: Rect,
    actions: &mut Vec<Action>,
) -> Option<crate::widget::heatmap::HeatmapResponse> {
    let m = subject.mixer;
    ui.painter().text(
        pos2(rect.left() - 6.0, rect.top()),
        egui::Align2::RIGHT_TOP,
        subject.head_name(),
        cx.theme.small(),
        cx.theme.accent,
    );
    let (down, right) = axes(subject.kind());
    for (k, line) in [format!("{down} ↓"), format!("{right} →")].into_iter().enumerate() {
        let at = pos2(rect.left() - 6.0, rect.top() + 18.0 + 15.0 * k as f32);
        ui.painter().text(at, egui::Align2::RIGHT_TOP, line, cx.theme.small(), cx.theme.text_faint);
    }
    let Some(reading) = cx.store.latest(probe) else {
        hatch(ui, cx.theme, rect);
        return None;
    };
    let index = if is_pooled(subject) { 0 } else { subject.head };
    let generation = cx.store.latest_generation(probe);
    let plane = PlaneCells::of(&reading.values, index, m.head_dim, m.state_dim, generation);
    let token = reading.positions.start;
    let who = subject.head_name();
    let describe = |p: usize, n: usize, value: Option<f32>| {
        let value = value.map_or_else(|| "not known".to_owned(), exact);
        format!(
            "S[{} = {p}, {} = {n}] = {value}\nlayer {}, {who}, after token {token} {}",
            down.to_lowercase(),
            right.to_lowercase(),
            subject.layer,
            quoted(cx.store, token)
        )
    };
    let map = Heatmap::new("state of the head", &plane)
        .map(ColourMap::Diverging)
        .scale(colours.scale)
        .range(range)
        .size(rect.size())
        .label(format!("State of {who}, layer {}", subject.layer))
        .describe(&describe);
    let response = plate::inside(ui, rect, |ui| map.show(ui, cx.theme));
    menu(&response, cx, probe, actions);
    Some(response)
}

fn small_maps(
    ui: &mut egui::Ui,
    cx: &ViewContext<'_>,
    subject: &Subject<'_>,
    colours: Colours,
    range: Option<(f32, f32)>,
    area: Rect,
    actions: &mut Vec<Action>,
) {
    let probe = overview_probe(subject);
    let heads = subject.mixer.heads;
    let Some(reading) = cx.store.latest(&probe) else {
        hatch(ui, cx.theme, area);
        return;
    };
    let [rows, cols] = match reading.shape[..] {
        [_, rows, cols] => [rows, cols],
        _ => return,
    };
    let generation = cx.store.latest_generation(&probe);
    for (head, cell) in tiles(area, heads, cols as f32 / rows.max(1) as f32).into_iter().enumerate() {
        let selected = head == subject.head;
        let norm = norm_probe(subject);
        let norm = subject.cursor.and_then(|t| cx.store.series(&norm)?.value(t, head)).map_or_else(String::new, short);
        let rect = plate::tile_header(ui, cx, cell, &head.to_string(), &norm, selected);
        let plane = PlaneCells::of(&reading.values, head, rows, cols, generation);
        let describe = |_: usize, _: usize, value: Option<f32>| {
            let value = value.map_or_else(|| "not known".to_owned(), exact);
            format!("head {head}: {value}\nlargest entry here; click to look at this head")
        };
        let map = Heatmap::new(("state head", head), &plane)
            .map(ColourMap::Diverging)
            .scale(colours.scale)
            .range(range)
            .size(rect.size())
            .label(format!("State of head {head}, layer {}", subject.layer))
            .describe(&describe);
        let response = plate::inside(ui, rect, |ui| map.show(ui, cx.theme));
        plate::frame(ui, cx, response.rect, selected, plate::hovered_head(cx, subject) == Some(head));
        if response.hovered.is_some() {
            actions.push(Place::of(subject, Some(head)).hover(None, None));
        }
        if response.clicked.is_some() {
            actions.push(Action::SelectHead(head));
        }
    }
}

/// `count` tiles of about `aspect` (width over height) in as many columns as make them largest.
pub fn tiles(area: Rect, count: usize, aspect: f32) -> Vec<Rect> {
    if count == 0 || area.width() < 8.0 || area.height() < NAME + 8.0 {
        return Vec::new();
    }
    let size = |columns: usize| {
        let lines = count.div_ceil(columns);
        let width = (area.width() + GAP) / columns as f32 - GAP;
        let height = (area.height() + GAP) / lines as f32 - GAP - NAME;
        (width.min(height * aspect), width, height)
    };
    let columns = (1..=count).max_by(|a, b| size(*a).0.total_cmp(&size(*b).0).then(b.cmp(a))).unwrap_or(1);
    let (_, width, height) = size(columns);
    // Stretched up to a half beyond square cells rather than leaving the panel empty.
    let width = width.min(height * aspect * 1.5).max(4.0);
    let height = height.min(width / aspect * 1.5).max(4.0);
    (0..count)
        .map(|k| {
            let (line, column) = (k / columns, k % columns);
            let min =
                pos2(area.left() + (width + GAP) * column as f32, area.top() + (height + NAME + GAP) * line as f32);
            Rect::from_min_size(min, vec2(width, height + NAME))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_stay_inside_and_apart() {
        for (width, height, count) in [(400.0, 120.0, 8), (100.0, 300.0, 5), (300.0, 300.0, 64), (60.0, 40.0, 1)] {
            let area = Rect::from_min_size(pos2(10.0, 20.0), vec2(width, height));
            let all = tiles(area, count, 1.0);
            assert_eq!(all.len(), count);
            for (k, tile) in all.iter().enumerate() {
                assert!(area.expand(0.5).contains_rect(*tile), "{tile:?} of {area:?}");
                assert!(all[..k].iter().all(|other| !other.intersects(*tile)));
            }
        }
        assert!(tiles(Rect::NOTHING, 4, 1.0).is_empty());
    }
}
