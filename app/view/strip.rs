//! The layer strip: the whole model as one row of cells, a glyph a mixer, so that a hybrid's pattern is seen at a glance. Click selects.

use eframe::egui::{
    self, Align2, Panel, Rect, RichText, Role, Sense, Stroke, StrokeKind, Ui, Vec2, WidgetInfo, pos2, vec2,
};
use statescope_engine::protocol::{FeedForwardInfo, Geometry, LayerInfo, MixerKind, ModelInfo};

use super::ViewContext;
use crate::action::Action;
use crate::theme::{Theme, space};
use crate::view::quantity::plate::Place;
use crate::view::quantity::{Subject, window_words};
use crate::widget::{format, panel};

/// Height of a line of cells.
const LINE: f32 = 22.0;
/// Between layers.
const GAP: f32 = 2.0;
/// Width of a mixer's place in a cell: below it the strip wraps, from `NAMED` on it has the layer's number.
const NARROWEST: f32 = 11.0;
const NAMED: f32 = 34.0;
const WIDEST: f32 = 48.0;
/// What stands at the right, words or one button a mixer.
const WORDS: f32 = 280.0;
const BUTTONS: f32 = 290.0;

pub fn layer_strip(ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
    let (Some(model), Some(subject)) = (cx.store.model.as_deref(), Subject::of(cx)) else { return };
    let frame =
        egui::Frame::new().fill(cx.theme.panel).inner_margin(egui::Margin { left: 8, right: 8, top: 0, bottom: 4 });
    Panel::top("layer strip").frame(frame).show_separator_line(false).show(ui, |ui| {
        let several = model.layers.iter().any(|layer| layer.parts.len() > 1);
        let right = if several { BUTTONS } else { WORDS }.min(0.4 * ui.available_width());
        let counts: Vec<usize> = model.layers.iter().map(|layer| layer.parts.len()).collect();
        let (cells, size) = places(&counts, ui.available_width() - right - space::M);
        ui.horizontal_top(|ui| {
            let (area, _) = ui.allocate_exact_size(size, Sense::hover());
            for (layer, cell) in cells.iter().enumerate() {
                cell_ui(ui, cx, model, layer, cell.translate(area.min.to_vec2()), &subject, actions);
            }
            ui.add_space(space::S);
            ui.allocate_ui_with_layout(vec2(right, LINE), egui::Layout::left_to_right(egui::Align::Center), |ui| {
                mixers(ui, cx, &subject, actions)
            });
        });
    });
}

/// Cells of layers with so many mixers in a strip of `width`, relative to its corner, and the size of all. What does not fit on one line is
/// spread evenly over several.
fn places(parts: &[usize], width: f32) -> (Vec<Rect>, Vec2) {
    let unit_on = |lines: usize| {
        let line = |layers: &[usize]| {
            let units = layers.iter().sum::<usize>().max(1) as f32;
            ((width - GAP * (layers.len() - 1) as f32) / units).clamp(0.0, WIDEST).floor()
        };
        parts.chunks(parts.len().div_ceil(lines).max(1)).map(line).fold(WIDEST, f32::min)
    };
    let lines = (1..=parts.len().max(1)).find(|lines| unit_on(*lines) >= NARROWEST).unwrap_or(parts.len().max(1));
    let unit = unit_on(lines).max(NARROWEST);
    let (mut cells, mut size) = (Vec::with_capacity(parts.len()), Vec2::ZERO);
    for layers in parts.chunks(parts.len().div_ceil(lines).max(1)) {
        let top = if cells.is_empty() { 0.0 } else { size.y + GAP };
        let mut left = 0.0;
        for count in layers {
            let cell = unit * *count as f32;
            cells.push(Rect::from_min_size(pos2(left, top), vec2(cell, LINE)));
            left += cell + GAP;
        }
        size = vec2(size.x.max(left - GAP), top + LINE);
    }
    (cells, size)
}

/// One layer: its mixers side by side.
fn cell_ui(
    ui: &mut Ui,
    cx: &ViewContext<'_>,
    model: &ModelInfo,
    layer: usize,
    cell: Rect,
    subject: &Subject<'_>,
    actions: &mut Vec<Action>,
) {
    let (theme, info) = (cx.theme, &model.layers[layer]);
    let radius = f32::from(space::RADIUS) - 1.0;
    ui.painter().rect_filled(cell, radius, theme.well);
    if info.parts.len() > 1 {
        ui.painter().rect_stroke(cell, radius, theme.hairline_stroke(), StrokeKind::Inside);
    }
    let experts = info.feed_forward.is_some_and(|f| f.experts.is_some());
    let unit = cell.width() / info.parts.len().max(1) as f32;
    for (part, mixer) in info.parts.iter().enumerate() {
        let left = cell.left() + unit * part as f32;
        let rect = Rect::from_min_size(pos2(left, cell.top()), vec2(unit, cell.height()));
        let selected = layer == subject.layer && part == subject.part;
        let response = ui.interact(rect, ui.scope_id().with(("layer cell", layer, part)), Sense::click());
        let name = button_name(layer, part, info);
        response.widget_info(|| WidgetInfo::selected(Role::Button, true, selected, &name));
        if part > 0 {
            ui.painter().vline(left, cell.shrink(4.0).y_range(), theme.hairline_stroke());
        }
        if response.hovered() || response.has_focus() {
            ui.painter().rect_filled(rect, radius, theme.control);
        }
        let colour = theme.kind_colour(mixer.kind);
        let centre = if part == 0 && unit >= NAMED {
            let number = pos2(rect.left() + 6.0, rect.center().y);
            let faint = if selected { theme.text } else { theme.text_faint };
            ui.painter().text(number, Align2::LEFT_CENTER, layer.to_string(), theme.small(), faint);
            pos2(rect.right() - 12.0, rect.center().y)
        } else {
            rect.center()
        };
        let font = if unit < 14.0 { theme.small() } else { theme.body() };
        ui.painter().text(centre, Align2::CENTER_CENTER, Theme::kind_glyph(mixer.kind), font, colour);
        if experts {
            expert_mark(ui, theme, if info.parts.len() > 1 { cell.center().x } else { centre.x }, cell.bottom());
        }
        let pointed = cx.hover.layer == Some(layer) && cx.hover.part.is_none_or(|p| p == part);
        if selected {
            ui.painter().rect_stroke(rect, radius, Stroke::new(1.5, theme.accent), StrokeKind::Inside);
        } else if pointed {
            ui.painter().rect_stroke(
                rect,
                radius,
                Stroke::new(1.0, theme.hover.gamma_multiply(0.6)),
                StrokeKind::Inside,
            );
        }
        let place = Place { layer: Some(layer), part: Some(part), head: None };
        if response.hovered() {
            actions.push(place.hover(None, None));
        }
        if response.clicked() {
            place.select(actions);
        }
        response.on_hover_ui(|ui| details(ui, theme, layer, part, info));
    }
}

/// Three dots under a layer whose tokens go to some of several experts.
fn expert_mark(ui: &Ui, theme: &Theme, centre: f32, bottom: f32) {
    for k in [-1.0, 0.0, 1.0] {
        ui.painter().circle_filled(pos2(centre + 3.5 * k, bottom - 3.0), 1.1, theme.text_muted);
    }
}

/// 'Layer 3: Mamba-2', and which of several mixers.
fn button_name(layer: usize, part: usize, info: &LayerInfo) -> String {
    let kind = info.parts.get(part).map_or("", |mixer| mixer.kind.label());
    match info.parts.len() {
        0 | 1 => format!("Layer {layer}: {kind}"),
        count => format!("Layer {layer}: {kind}, mixer {} of {count}", part + 1),
    }
}

/// All of a layer, one line a mixer.
fn details(ui: &mut Ui, theme: &Theme, layer: usize, part: usize, info: &LayerInfo) {
    ui.label(RichText::new(format!("Layer {layer}")).font(theme.strong()).color(theme.text));
    for (index, mixer) in info.parts.iter().enumerate() {
        let mut job = egui::text::LayoutJob::default();
        let colour = if index == part { theme.text } else { theme.text_muted };
        let glyph = egui::TextFormat::simple(theme.body(), theme.kind_colour(mixer.kind));
        job.append(Theme::kind_glyph(mixer.kind), 0.0, glyph);
        job.append(&mixer_words(mixer), space::XS, egui::TextFormat::simple(theme.small(), colour));
        ui.label(job);
    }
    let mut lines = Vec::new();
    lines.extend(info.feed_forward.map(|f| feed_forward_words(&f)));
    lines.push(format!("{} parameters", format::count(info.parameters)));
    for line in lines {
        ui.label(RichText::new(line).font(theme.small()).color(theme.text_muted));
    }
}

/// 'Mamba-2: 8 heads × 16, state 8.4 kB'.
fn mixer_words(mixer: &Geometry) -> String {
    let kind = mixer.kind.label();
    if mixer.kind == MixerKind::FeedForward {
        return format!("{kind} alone: no mixer");
    }
    let heads = format::plural(mixer.heads, mixer.kind.head_noun());
    let width = if mixer.head_dim > 1 { format!(" of {}", mixer.head_dim) } else { String::new() };
    let mut words = format!("{kind}: {heads}{width}");
    if mixer.kind == MixerKind::Attention && mixer.groups < mixer.heads {
        words.push_str(&format!(", {}", format::plural(mixer.groups, "KV head")));
    }
    if mixer.window.is_some() {
        words.push_str(&format!(", {}", window_words(mixer)));
    }
    if mixer.state_bytes > 0 {
        words.push_str(&format!(", state {}", format::bytes(mixer.state_bytes)));
    }
    if mixer.kv_bytes_per_token > 0 {
        words.push_str(&format!(", KV {} a token", format::bytes(mixer.kv_bytes_per_token)));
    }
    words
}

fn feed_forward_words(info: &FeedForwardInfo) -> String {
    let width = format::thousands(info.width);
    match info.experts {
        Some((all, taken)) => format!("{taken} of {all} experts a token, {width} wide each"),
        None => format!("feed-forward {width} wide"),
    }
}

/// The mixers of the layer looked at: where there are several, a button for each.
fn mixers(ui: &mut Ui, cx: &ViewContext<'_>, subject: &Subject<'_>, actions: &mut Vec<Action>) {
    let parts = &subject.info().parts;
    if parts.len() < 2 {
        let heads = match subject.kind().mixes() {
            true => format!(" · {}", format::plural(subject.mixer.heads, subject.kind().head_noun())),
            false => String::new(),
        };
        let text = RichText::new(format!("{}{heads}", subject.layer_name())).font(cx.theme.small());
        ui.add(egui::Label::new(text.color(cx.theme.text_muted)).truncate());
        return;
    }
    panel::caption(ui, cx.theme, &format!("layer {}", subject.layer));
    let names: Vec<String> =
        parts.iter().map(|mixer| format!("{} {}", Theme::kind_glyph(mixer.kind), mixer.kind.label())).collect();
    let options: Vec<(usize, &str)> = names.iter().map(String::as_str).enumerate().collect();
    if let Some(part) = panel::choice(ui, cx.theme, subject.part, &options) {
        actions.push(Action::SelectPart(part));
    }
    panel::caption(ui, cx.theme, "M").on_hover_text("M: the next mixer of the layer");
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::sync::Arc;

    use egui_kittest::Harness;
    use egui_kittest::kittest::Queryable;
    use statescope_engine::protocol::{DeviceInfo, Dtype, Event, ModelSource};

    use super::*;
    use crate::selection::{Hover, Selection, TimeAxis};
    use crate::settings::Settings;
    use crate::store::Store;
    use crate::theme::{Ground, install_fonts};

    #[test]
    fn cells_stay_inside_and_apart() {
        for (count, parts, width) in [(1, 1, 900.0), (6, 1, 1200.0), (64, 1, 900.0), (64, 2, 900.0), (128, 2, 700.0)] {
            let (cells, size) = places(&vec![parts; count], width);
            assert_eq!(cells.len(), count);
            assert!(size.x <= width, "{size:?} of {width}");
            for (k, cell) in cells.iter().enumerate() {
                assert!(cell.width() >= NARROWEST * parts as f32 && cell.right() <= size.x && cell.bottom() <= size.y);
                assert!(cells[..k].iter().all(|other| !other.shrink(0.1).intersects(*cell)));
            }
        }
        assert_eq!(places(&[1; 64], 900.0).1.y, LINE, "64 layers fit on one line");
    }

    fn mixer(kind: MixerKind) -> Geometry {
        Geometry {
            kind,
            heads: 4,
            head_dim: 8,
            state_dim: 8,
            groups: 2,
            rank: 1,
            decay_dim: 0,
            conv_taps: 0,
            gated: false,
            window: Some(64),
            state_bytes: 0,
            kv_bytes_per_token: 128,
        }
    }

    fn layer(kinds: &[MixerKind]) -> LayerInfo {
        LayerInfo { parts: kinds.iter().copied().map(mixer).collect(), feed_forward: None, parameters: 1 }
    }

    /// Every half of a cell is a button of its own name, and so is every mixer of the layer looked at.
    #[test]
    fn a_click_selects_layer_and_mixer() {
        let model = ModelInfo {
            source: ModelSource::Builtin("hybrid".into()),
            name: "hybrid".into(),
            format: "safetensors".into(),
            model_type: "hybrid".into(),
            layers: vec![
                layer(&[MixerKind::FeedForward]),
                layer(&[MixerKind::Mamba2, MixerKind::Attention]),
                layer(&[MixerKind::Mamba1, MixerKind::DeltaRule, MixerKind::ShortConv]),
            ],
            hidden_size: 32,
            vocab_size: 64,
            meta_tokens: 0,
            tied_embeddings: true,
            parameters: 2,
            dtype: Dtype::F32,
            weights_bytes: 8,
            state_bytes: 0,
            kv_bytes_per_token: 128,
            trained_context: None,
            has_tokenizer: false,
            end_tokens: Vec::new(),
            device: DeviceInfo::default(),
        };
        let mut store = Store::default();
        store.apply(Event::Loaded(Arc::new(model)));
        let selection = Selection { layer: 1, ..Selection::default() };
        let (theme, settings) = (Theme::new(Ground::Dark), Settings::default());
        let (hover, time) = (Hover::default(), TimeAxis::Fit);
        let (taken, ready) = (RefCell::new(Vec::new()), Cell::new(false));
        let mut harness = Harness::builder().with_size(vec2(900.0, 80.0)).build_ui(|ui| {
            if !ready.replace(true) {
                // The glyphs of our own fonts are there from the next frame on.
                return install_fonts(ui.ctx(), false);
            }
            let (store, selection, hover, time, theme, settings) =
                (&store, &selection, &hover, &time, &theme, &settings);
            let cx = ViewContext { store, selection, hover, time, theme, settings, frame_ms: None };
            layer_strip(ui, &cx, &mut taken.borrow_mut());
        });
        harness.run_steps(2);
        for (name, wanted) in [
            ("Layer 0: feed-forward", [Action::SelectLayer(0), Action::SelectPart(0)].as_slice()),
            ("Layer 1: attention, mixer 2 of 2", &[Action::SelectLayer(1), Action::SelectPart(1)]),
            ("▲ attention", &[Action::SelectPart(1)]),
        ] {
            harness.get_by_label(name).click();
            harness.run_steps(2);
            let mut actions = taken.take();
            actions.retain(|action| !matches!(action, Action::Hover(_)));
            assert_eq!(actions, wanted, "{name}");
        }
    }

    #[test]
    fn names_say_layer_kind_and_mixer() {
        let feed_forward = FeedForwardInfo { width: 96, experts: Some((8, 2)) };
        let both = LayerInfo {
            parts: vec![mixer(MixerKind::Mamba2), mixer(MixerKind::Attention)],
            feed_forward: Some(feed_forward),
            parameters: 1,
        };
        assert_eq!(button_name(3, 1, &both), "Layer 3: attention, mixer 2 of 2");
        assert_eq!(
            button_name(0, 0, &LayerInfo { parts: both.parts[..1].to_vec(), ..both.clone() }),
            "Layer 0: Mamba-2"
        );
        let words = mixer_words(&both.parts[1]);
        assert_eq!(words, "attention: 4 heads of 8, 2 KV heads, sliding window of 64 tokens, KV 128 B a token");
        assert_eq!(feed_forward_words(&feed_forward), "2 of 8 experts a token, 96 wide each");
    }
}
