//! Errors: a sentence, what to do next, and details to copy.

use eframe::egui::{self, Panel, Ui};

use super::ViewContext;
use crate::action::Action;
use crate::theme::space;

/// Begun with a capital, as a sentence is; a path, a key or a name stays as it is.
fn sentence(message: &str) -> String {
    let word = message.split(' ').next().unwrap_or_default();
    if !word.bytes().all(|b| b.is_ascii_lowercase()) {
        return message.to_owned();
    }
    let mut rest = message.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// A strip under the model bar while there is an error.
pub fn banner(ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
    let Some(error) = &cx.store.error else { return };
    let theme = cx.theme;
    let frame =
        egui::Frame::new().fill(theme.raised).stroke(egui::Stroke::NONE).inner_margin(egui::Margin::symmetric(12, 8));
    let shown = Panel::top("error").frame(frame).show_separator_line(false).show(ui, |ui| {
        ui.horizontal_top(|ui| {
            ui.label(egui::RichText::new("⚠").color(theme.error));
            let buttons = 190.0;
            ui.allocate_ui(egui::vec2((ui.available_width() - buttons).max(120.0), 0.0), |ui| {
                ui.vertical(|ui| {
                    ui.add(egui::Label::new(egui::RichText::new(sentence(&error.message)).color(theme.text)).wrap());
                    if !error.details.is_empty() && error.details != error.message {
                        egui::CollapsingHeader::new(
                            egui::RichText::new("Details").font(theme.small()).color(theme.text_muted),
                        )
                        .id_salt("error details")
                        .show(ui, |ui| {
                            let text = egui::RichText::new(&error.details).font(theme.mono()).color(theme.text_muted);
                            ui.add(egui::Label::new(text).wrap().selectable(true));
                        });
                    }
                });
            });
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Min), |ui| {
                if ui.button("Dismiss").clicked() {
                    actions.push(Action::DismissError);
                }
                if ui.button("Copy details").clicked() {
                    actions.push(Action::Copy(format!("{}\n{}", error.message, error.details).trim_end().to_owned()));
                }
            });
        });
    });
    let rect = shown.response.rect;
    let edge = egui::Rect::from_min_size(rect.min, egui::vec2(3.0, rect.height()));
    ui.painter().rect_filled(edge, 0.0, theme.error);
    ui.add_space(space::XS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_begin_with_a_capital_and_names_do_not() {
        assert_eq!(sentence("the prompt is empty"), "The prompt is empty");
        for as_it_is in ["/a/b is no model", "rope_scaling is not known", "builtin:x is none", ""] {
            assert_eq!(sentence(as_it_is), as_it_is);
        }
    }
}
