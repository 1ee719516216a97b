//! The bottom bar: where in the text we are. Drag scrubs, nothing runs again until asked.

use eframe::egui::{
    self, Painter, Pos2, Rangef, Rect, Response, RichText, Role, Sense, Shape, Stroke, Ui, WidgetInfo, pos2, vec2,
};
use statescope_engine::protocol::{FinishReason, RunState, TokenSource};

use super::ViewContext;
use crate::action::Action;
use crate::selection::Hover;
use crate::theme::space;
use crate::widget::time::{self, TimeMap};
use crate::widget::{format, panel};

pub fn timeline(ui: &mut Ui, cx: &ViewContext<'_>, note: Option<&str>, actions: &mut Vec<Action>) {
    ui.horizontal(|ui| {
        ui.set_height(24.0);
        ui.spacing_mut().item_spacing.x = space::XS;
        buttons(ui, cx, actions);
        ui.add_space(space::S);
        // A note may need more room than the usual words.
        let wanted = if note.is_some() { 560.0_f32 } else { 340.0 };
        let width = wanted.min(0.45 * ui.available_width());
        track(ui, cx, (ui.available_width() - width - space::M).max(60.0), actions);
        ui.add_space(space::S);
        let words = words(cx, note);
        ui.add(egui::Label::new(RichText::new(words).color(cx.theme.text_muted)).truncate());
    });
}

fn buttons(ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
    let ready = cx.store.model.is_some();
    if button(ui, cx, "One token back", ",", ready, |p, c, s| triangle(p, c, -4.5, s)).clicked() {
        actions.push(Action::StepBack);
    }
    let running = cx.store.run == RunState::Running;
    let name = if running { "Pause" } else { "Run" };
    let clicked = button(ui, cx, name, "Space", ready, |p, c, colour| {
        if running {
            for x in [-3.0, 3.0] {
                p.rect_filled(Rect::from_center_size(c + vec2(x, 0.0), vec2(3.0, 11.0)), 0.5, colour);
            }
        } else {
            triangle(p, c, 6.5, colour);
        }
    });
    if clicked.clicked() {
        actions.push(if running { Action::Pause } else { Action::Run });
    }
    if button(ui, cx, "One token", ".", ready, |p, c, s| triangle(p, c, 4.5, s)).clicked() {
        actions.push(Action::StepForward);
    }
    let live = cx.selection.query.is_none();
    let text = RichText::new("● live").color(if live { cx.theme.good } else { cx.theme.text_muted });
    let response =
        ui.add(egui::Button::new(text).fill(if live { cx.theme.control } else { egui::Color32::TRANSPARENT }));
    response.widget_info(|| WidgetInfo::selected(Role::Switch, true, live, "Live"));
    if response.on_hover_text("Follow the newest token (L)").clicked() {
        actions.push(Action::SelectToken(if live { cx.cursor() } else { None }));
    }
    let pinned = cx.selection.query.is_some_and(|t| t + 1 < cx.store.length());
    if ui
        .add_enabled(pinned, egui::Button::new("Continue from here"))
        .on_hover_text("Goes back to the pinned token and makes tokens from there (C)")
        .clicked()
    {
        actions.push(Action::ContinueFromHere);
    }
}

fn button(
    ui: &mut Ui,
    cx: &ViewContext<'_>,
    name: &str,
    key: &str,
    enabled: bool,
    paint: impl FnOnce(&Painter, Pos2, egui::Color32),
) -> Response {
    let sense = if enabled { Sense::click() } else { Sense::hover() };
    let (rect, response) = ui.allocate_exact_size(vec2(28.0, 24.0), sense);
    response.widget_info(|| WidgetInfo::labeled(Role::Button, enabled, name));
    let theme = cx.theme;
    if enabled && (response.hovered() || response.has_focus()) {
        ui.painter().rect_filled(rect, f32::from(space::RADIUS), theme.control);
    }
    paint(ui.painter(), rect.center(), if enabled { theme.text } else { theme.text_faint });
    response.on_hover_text(format!("{name} ({key})"))
}

/// Pointing right for a positive size, left for a negative one.
fn triangle(painter: &Painter, centre: Pos2, size: f32, colour: egui::Color32) {
    let points = vec![
        centre + vec2(size, 0.0),
        centre + vec2(-0.7 * size, 0.9 * size.abs()),
        centre + vec2(-0.7 * size, -0.9 * size.abs()),
    ];
    painter.add(Shape::convex_polygon(points, colour, Stroke::NONE));
}

fn track(ui: &mut Ui, cx: &ViewContext<'_>, width: f32, actions: &mut Vec<Action>) {
    let (rect, response) = ui.allocate_exact_size(vec2(width, 24.0), Sense::click_and_drag());
    let (theme, store) = (cx.theme, cx.store);
    let length = store.length();
    // The whole text, also while the other views are zoomed: they show which stretch is in sight.
    let map = TimeMap::new(rect.x_range().shrink(4.0), 0.0..length.max(1) as f64);
    let line = Rect::from_x_y_ranges(map.x, Rangef::new(rect.center().y - 3.0, rect.center().y + 3.0));
    let painter = ui.painter_at(rect);
    painter.rect_filled(line, 3.0, theme.control);
    if length > 0 {
        let prompt = store.tokens.iter().take_while(|t| t.source == TokenSource::Prompt).count();
        painter.rect_filled(
            line.with_max_x(map.x(store.position.min(length) as f64)),
            3.0,
            theme.text_faint.gamma_multiply(0.6),
        );
        painter.rect_filled(line.with_max_x(map.x(prompt.min(store.position) as f64)), 3.0, theme.text_faint);
        for token in store.tokens.iter().filter(|t| t.source == TokenSource::Forced).map(|t| t.position) {
            painter.circle_filled(pos2(map.centre(token), line.min.y - 4.0), 2.0, theme.warning);
        }
        if let Some(limit) = store.model.as_ref().and_then(|m| m.trained_context).filter(|c| *c < length) {
            painter.vline(map.x(limit as f64), rect.y_range().shrink(4.0), Stroke::new(1.0, theme.warning));
        }
        if let crate::selection::TimeAxis::Window(window) = cx.time {
            let seen = Rangef::new(map.x(window.start), map.x(window.end.min(length as f64)));
            painter.hline(seen, line.max.y + 4.0, Stroke::new(2.0, theme.text_muted));
        }
        let range = cx.selection.query.zip(cx.selection.range_end).map(|(a, b)| a.min(b)..a.max(b) + 1);
        time::draw_cursor(&painter, &map, rect.y_range().shrink(2.0), theme, None, cx.hover.query, range);
        if let Some(cursor) = cx.cursor() {
            let colour = if cx.selection.query.is_some() { theme.accent } else { theme.good };
            painter.circle_filled(pos2(map.centre(cursor), line.center().y), 6.0, colour);
        }
    }
    let at = cx.cursor().unwrap_or(0);
    response.widget_info(|| WidgetInfo::slider(true, at as f64, "Timeline"));
    let Some(token) = response.hover_pos().or(response.interact_pointer_pos()).and_then(|p| {
        // Dragging past an end keeps the end.
        map.index(p.x.clamp(map.x.min, map.x.max - 0.01), length)
    }) else {
        return;
    };
    actions.push(Action::Hover(Hover { query: Some(token), ..Hover::default() }));
    if response.hovered() || response.dragged() {
        panel::tag(ui, theme, &format!("token {token}  {}", store.token_label(token)));
    }
    let shift = ui.input(|i| i.modifiers.shift);
    if response.dragged_by(egui::PointerButton::Primary) || response.clicked() {
        actions.push(if shift { Action::ExtendTo(token) } else { Action::SelectToken(Some(token)) });
    }
}

/// token 411 · 512 in all · running
fn words(cx: &ViewContext<'_>, note: Option<&str>) -> String {
    if let Some(note) = note {
        return note.to_owned();
    }
    let store = cx.store;
    if store.length() == 0 {
        return match (store.model.is_some(), store.loading.is_some()) {
            (_, true) => "Loading the model".into(),
            (true, _) => "Press space to run".into(),
            (false, _) => "No model".into(),
        };
    }
    // Counted from 0, as in every panel.
    let mut text = match cx.cursor() {
        Some(cursor) => format!("token {} · ", format::thousands(cursor)),
        None => String::new(),
    };
    text.push_str(&format!("{} in all", format::thousands(store.length())));
    if let (Some(a), Some(b)) = (cx.selection.query, cx.selection.range_end) {
        text.push_str(&format!(" · range {}–{}", a.min(b), a.max(b)));
    }
    text.push_str(" · ");
    text.push_str(match (store.run, store.finish) {
        (RunState::Running, _) => "running",
        (RunState::Reading, _) => "reading",
        (_, Some(FinishReason::EndOfText)) => "text ended",
        (_, Some(FinishReason::Length)) => "run ended",
        (_, Some(FinishReason::Stopped)) => "stopped",
        (RunState::Paused, None) => "paused",
        (RunState::Empty, None) => "no model",
    });
    if let Some(backfill) = store.backfill.filter(|b| b.total > 0 && b.done < b.total) {
        text.push_str(&format!(" · reading back {:.0} %", 100.0 * backfill.done as f32 / backfill.total as f32));
    }
    text
}
