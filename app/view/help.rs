//! The keys, over everything.

use eframe::egui::{self, Align2};

use crate::keymap::Entry;
use crate::theme::{Theme, space};

const MOUSE: [(&str, &str); 9] = [
    ("Hover", "Exact value; the same token, layer and head light up everywhere"),
    ("Click", "Pin; Esc releases"),
    ("Shift and click", "Extend the pin to a range"),
    ("Double click", "Fit all tokens; on a title: maximise"),
    ("Ctrl and wheel", "Zoom in time"),
    ("Shift and wheel", "Move in time"),
    ("Middle drag", "Move in time"),
    ("Right click", "Copy, export, explain"),
    ("Drag a title", "Dock the panel elsewhere"),
];

/// The overlay, while `open`.
pub fn help(ctx: &egui::Context, theme: &Theme, keys: &[Entry], open: &mut bool) {
    if !*open {
        return;
    }
    let mut stay = true;
    egui::Window::new(egui::RichText::new("Keys and help").font(theme.strong()))
        .open(&mut stay)
        .collapsible(false)
        .resizable(false)
        .anchor(Align2::CENTER_CENTER, [0.0, 0.0])
        .show(ctx, |ui| {
            let limit = ctx.content_rect().height() - 140.0;
            egui::ScrollArea::vertical().max_height(limit).min_scrolled_height(limit).show(ui, |ui| {
                ui.horizontal_top(|ui| {
                    ui.vertical(|ui| {
                        section(ui, theme, "Run", &listed(keys, "Run"));
                        section(ui, theme, "Window", &listed(keys, "Window"));
                        section(ui, theme, "Model", &listed(keys, "Model"));
                    });
                    ui.add_space(space::L);
                    ui.vertical(|ui| section(ui, theme, "Look", &listed(keys, "Look")));
                    ui.add_space(space::L);
                    ui.vertical(|ui| {
                        section(ui, theme, "Panels", &listed(keys, "Panels"));
                        let mouse: Vec<(String, String)> =
                            MOUSE.iter().map(|(k, n)| ((*k).into(), (*n).into())).collect();
                        section(ui, theme, "Pointer", &mouse);
                    });
                });
            });
        });
    *open = stay;
}

/// Keys and names of a group; keys that do the same share a line.
fn listed(keys: &[Entry], group: &str) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    for entry in keys.iter().filter(|e| e.group == group && !e.keys.is_empty()) {
        match lines.iter_mut().find(|(_, name)| *name == entry.name) {
            Some((keys, _)) if keys.split("  ").any(|k| k == entry.keys) => {}
            Some((keys, _)) => *keys = format!("{keys}  {}", entry.keys),
            None => lines.push((entry.keys.into(), entry.name.clone())),
        }
    }
    lines
}

fn section(ui: &mut egui::Ui, theme: &Theme, title: &str, lines: &[(String, String)]) {
    ui.label(egui::RichText::new(title).font(theme.strong()));
    egui::Grid::new(("help", title)).num_columns(2).spacing([space::M, space::XS]).show(ui, |ui| {
        for (keys, name) in lines {
            ui.label(egui::RichText::new(keys).font(theme.mono()).color(theme.text));
            ui.add(
                egui::Label::new(egui::RichText::new(name).color(theme.text_muted))
                    .wrap_mode(egui::TextWrapMode::Extend),
            );
            ui.end_row();
        }
    });
    ui.add_space(space::M);
}
