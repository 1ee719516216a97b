//! Performance: how fast, where a token's time goes, how memory grows with the context, what was bounded.

use eframe::egui::{self, Align2, Role, Sense, WidgetInfo, pos2, vec2};
use statescope_engine::protocol::{ModelInfo, Probe};

use crate::action::Action;
use crate::store::PerformancePoint;
use crate::theme::space;
use crate::view::quantity::short;
use crate::view::{View, ViewContext, model_bar};
use crate::widget::{format, panel};

#[derive(Default)]
pub struct PerformanceView;

impl View for PerformanceView {
    fn title(&self, _: &ViewContext<'_>) -> String {
        "Performance".into()
    }

    fn explanation(&self, _: &ViewContext<'_>) -> String {
        "Speed and memory as measured, averaged over the last tokens: time per token = model + probes + transfer. \
         A recurrent state has the same size after one token and after a million, so its curve is flat; a KV cache grows by the same \
         number of bytes with each token. Only measured points are drawn. Frame is the processor time that the window takes to draw itself once."
            .into()
    }

    fn probes(&self, _: &ViewContext<'_>, _: &mut Vec<Probe>) {}

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, _: &mut Vec<Action>) {
        let Some(model) = cx.store.model.as_deref() else {
            panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
            return;
        };
        egui::ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            let p = &cx.store.performance;
            let per_s = |v: f32| {
                if v > 0.0 { format::rate(v) } else { "–".into() }
            };
            line(ui, cx, "making text", &per_s(p.tokens_per_s));
            line(ui, cx, "reading a prompt", &per_s(p.prefill_tokens_per_s));
            time_bar(ui, cx);
            ui.add_space(space::S);
            line(
                ui,
                cx,
                "recurrent state",
                &format::bytes(if p.state_bytes > 0 { p.state_bytes } else { model.state_bytes }),
            );
            line(ui, cx, "KV cache", &format::bytes(p.kv_bytes));
            match (growth(model), model.kv_bytes_per_token) {
                (0, 0) => {}
                (0, _) => line(ui, cx, "more a token", "none beyond its window"),
                (n, _) => line(ui, cx, "more a token", &format::bytes(n)),
            }
            memory_curve(ui, cx);
            ui.add_space(space::S);
            if let Some(ms) = cx.frame_ms {
                line(ui, cx, "frame", &format::milliseconds(ms));
            }
            if !model.device.name.is_empty() {
                line(ui, cx, "GPU memory", &model_bar::memory(&model.device, p.device_bytes));
            }
            line(ui, cx, "record of past tokens", &format::bytes(p.tape_bytes));
            line(ui, cx, "snapshots for seeking", &format::bytes(p.snapshot_bytes));
            line(ui, cx, "held by the window", &format::bytes(cx.store.reading_bytes()));
            for what in &model.device.on_cpu {
                let text = format!("On the CPU, between two copies: {what}.");
                ui.label(egui::RichText::new(text).color(cx.theme.warning));
            }
            let notes = cx.store.bounded_notes();
            if notes.is_empty() {
                ui.label(egui::RichText::new("Nothing was bounded or dropped.").color(cx.theme.text_muted));
            }
            for note in notes {
                ui.label(egui::RichText::new(note).color(cx.theme.warning));
            }
        });
    }
}

/// Bytes that the KV cache grows by per token for as long as the text goes: a sliding window stops growing once it is full.
fn growth(model: &ModelInfo) -> usize {
    let parts = model.layers.iter().flat_map(|layer| &layer.parts);
    parts.filter(|mixer| mixer.window.is_none()).map(|mixer| mixer.kv_bytes_per_token).sum()
}

/// A name on the left, its value on the right.
fn line(ui: &mut egui::Ui, cx: &ViewContext<'_>, name: &str, value: &str) {
    let font = egui::TextStyle::Body.resolve(ui.style());
    let height = ui.text_style_height(&egui::TextStyle::Body) + 2.0;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, format!("{name} = {value}")));
    let used = ui.painter().text(rect.right_center(), Align2::RIGHT_CENTER, value, font.clone(), cx.theme.text);
    let mut job = egui::text::LayoutJob::simple_singleline(name.to_owned(), font, cx.theme.text_muted);
    job.wrap = egui::text::TextWrapping::truncate_at_width((used.left() - space::XS - rect.left()).max(0.0));
    let galley = ui.painter().layout_job(job);
    let at = Align2::LEFT_CENTER.anchor_size(rect.left_center(), galley.size()).min;
    ui.painter().galley(at, galley, cx.theme.text_muted);
}

/// Milliseconds a token as one stacked bar with its legend.
fn time_bar(ui: &mut egui::Ui, cx: &ViewContext<'_>) {
    let p = &cx.store.performance;
    let parts = [
        ("model", p.model_ms, cx.theme.line_colour(0, 4)),
        ("probes", p.probes_ms, cx.theme.line_colour(1, 4)),
        ("transfer", p.transfer_ms, cx.theme.line_colour(2, 4)),
    ];
    let total: f32 = parts.iter().map(|(_, ms, _)| ms.max(0.0)).sum();
    line(ui, cx, "time per token", &if total > 0.0 { format::milliseconds(total) } else { "–".into() });
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 10.0), Sense::hover());
    ui.painter().rect_filled(rect, 2.0, cx.theme.well);
    let words: Vec<String> =
        parts.iter().map(|(name, ms, _)| format!("{name} {}", format::milliseconds(*ms))).collect();
    if total > 0.0 {
        let mut left = rect.left();
        for (_, ms, colour) in parts {
            let width = rect.width() * ms.max(0.0) / total;
            ui.painter().rect_filled(egui::Rect::from_min_size(pos2(left, rect.top()), vec2(width, 10.0)), 0.0, colour);
            left += width;
        }
    }
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, format!("time per token: {}", words.join(", "))));
    response.on_hover_text(words.join("\n"));
    ui.horizontal_wrapped(|ui| {
        for (word, (_, _, colour)) in words.iter().zip(parts) {
            // One piece, so that a line does not break between colour and word.
            let galley = ui.painter().layout_no_wrap(word.clone(), cx.theme.small(), cx.theme.text);
            let (rect, _) = ui.allocate_exact_size(galley.size() + vec2(12.0, 2.0), Sense::hover());
            let dot = egui::Rect::from_center_size(rect.left_center() + vec2(4.0, 0.0), vec2(8.0, 8.0));
            ui.painter().rect_filled(dot, 2.0, colour);
            ui.painter().galley(rect.left_top() + vec2(12.0, 1.0), galley, cx.theme.text);
        }
    });
}

/// State and KV bytes against the context, as measured.
fn memory_curve(ui: &mut egui::Ui, cx: &ViewContext<'_>) {
    let height = 66.0;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::hover());
    let theme = cx.theme;
    let log = &cx.store.performance_log;
    let painter = ui.painter_at(rect);
    painter.rect_stroke(rect, 0.0, egui::Stroke::new(1.0, theme.hairline), egui::StrokeKind::Inside);
    let font = egui::TextStyle::Small.resolve(ui.style());
    response.widget_info(|| WidgetInfo::labeled(Role::Image, true, "state and KV bytes against context length"));
    let (Some(last), true) = (log.back(), log.len() > 1) else {
        painter.text(rect.center(), Align2::CENTER_CENTER, "press Space to run", font, theme.text_muted);
        return;
    };
    let top = log.iter().map(|p| p.state_bytes.max(p.kv_bytes)).max().unwrap_or(0).max(1);
    let plot = rect.shrink2(vec2(6.0, 16.0));
    let curve = |of: fn(&PerformancePoint) -> usize, colour: egui::Color32| {
        let points = log
            .iter()
            .map(|p| {
                let x = plot.left() + plot.width() * p.length as f32 / last.length.max(1) as f32;
                pos2(x, plot.bottom() - plot.height() * of(p) as f32 / top as f32)
            })
            .collect();
        painter.add(egui::Shape::line(points, egui::Stroke::new(1.5, colour)));
    };
    curve(|p| p.state_bytes, theme.line_colour(0, 4));
    curve(|p| p.kv_bytes, theme.line_colour(3, 4));
    painter.text(rect.left_top() + vec2(4.0, 1.0), Align2::LEFT_TOP, "state", font.clone(), theme.line_colour(0, 4));
    painter.text(
        rect.left_top() + vec2(40.0, 1.0),
        Align2::LEFT_TOP,
        "KV cache",
        font.clone(),
        theme.line_colour(3, 4),
    );
    painter.text(
        rect.right_top() + vec2(-4.0, 1.0),
        Align2::RIGHT_TOP,
        format::bytes(top),
        font.clone(),
        theme.text_muted,
    );
    painter.text(rect.left_bottom() + vec2(4.0, -1.0), Align2::LEFT_BOTTOM, "0 tokens", font.clone(), theme.text_muted);
    let end = format!("{} tokens", format::thousands(last.length));
    painter.text(rect.right_bottom() + vec2(-4.0, -1.0), Align2::RIGHT_BOTTOM, end, font, theme.text_muted);
    if let Some(pointer) = response.hover_pos() {
        let wanted = (pointer.x - plot.left()) / plot.width().max(1.0) * last.length as f32;
        let nearest =
            log.iter().min_by(|a, b| (a.length as f32 - wanted).abs().total_cmp(&(b.length as f32 - wanted).abs()));
        if let Some(p) = nearest {
            response.on_hover_text(format!(
                "after {} tokens: state {}, KV cache {}, {} tokens/s",
                format::thousands(p.length),
                format::bytes(p.state_bytes),
                format::bytes(p.kv_bytes),
                short(p.tokens_per_s)
            ));
        }
    }
}
