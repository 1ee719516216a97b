//! The command palette: every command by name.

use eframe::egui::{self, Align2, Key, Modifiers, Role, WidgetInfo};

use super::ViewContext;
use crate::action::Action;
use crate::keymap::{Entry, Now};
use crate::theme::space;

const ROWS: usize = 12;

/// Open or not, what is typed, which line is chosen.
#[derive(Default)]
pub struct Palette {
    open: bool,
    fresh: bool,
    query: String,
    chosen: usize,
}

impl Palette {
    pub fn is_open(&self) -> bool {
        self.open
    }

    pub fn toggle(&mut self) {
        self.open = !self.open;
        self.fresh = true;
        self.query.clear();
        self.chosen = 0;
    }

    pub fn ui(&mut self, ctx: &egui::Context, cx: &ViewContext<'_>, keys: &[Entry], actions: &mut Vec<Action>) {
        if !self.open {
            return;
        }
        let found = search(keys, &self.query);
        let (up, down, enter, escape) = ctx.input_mut(|i| {
            let mut take = |key| i.consume_key(Modifiers::NONE, key);
            (take(Key::ArrowUp), take(Key::ArrowDown), take(Key::Enter), take(Key::Escape))
        });
        let again = ctx.input_mut(|i| i.consume_key(Modifiers::COMMAND, Key::K));
        if escape || again {
            self.open = false;
            return;
        }
        let last = found.len().saturating_sub(1);
        if down {
            self.chosen = (self.chosen + 1).min(last);
        }
        if up {
            self.chosen = self.chosen.saturating_sub(1);
        }
        self.chosen = self.chosen.min(last);
        let mut taken = enter.then(|| found.get(self.chosen).copied()).flatten();
        let theme = cx.theme;
        let area = egui::Area::new(egui::Id::unique("commands"))
            .order(egui::Order::Foreground)
            .anchor(Align2::CENTER_TOP, [0.0, 88.0])
            .show(ctx, |ui| {
                egui::Frame::popup(ui.style()).inner_margin(egui::Margin::same(8)).show(ui, |ui| {
                    ui.set_width(440.0);
                    let edit = egui::TextEdit::singleline(&mut self.query)
                        .hint_text("Type a command")
                        .desired_width(f32::INFINITY)
                        .margin(egui::vec2(space::S, 6.0));
                    let response = ui.add(edit);
                    response.widget_info(|| WidgetInfo::labeled(Role::SearchInput, true, "Command"));
                    if self.fresh {
                        response.request_focus();
                        self.fresh = false;
                    }
                    if response.changed() {
                        self.chosen = 0;
                    }
                    ui.add_space(space::XS);
                    // The chosen line is always among those shown.
                    let first = (self.chosen + 1).saturating_sub(ROWS);
                    for (k, index) in found.iter().enumerate().skip(first).take(ROWS) {
                        let entry = &keys[*index];
                        if line(ui, cx, entry, k == self.chosen) {
                            taken = Some(*index);
                        }
                    }
                    if found.is_empty() {
                        ui.label(egui::RichText::new("No command of that name.").color(theme.text_muted));
                    }
                });
            });
        let outside = ctx.input(|i| i.pointer.any_pressed()) && !area.response.contains_pointer();
        if let Some(index) = taken {
            let now = Now { store: cx.store, selection: cx.selection };
            actions.extend((keys[index].act)(&now));
            self.open = false;
        } else if outside {
            self.open = false;
        }
    }
}

fn line(ui: &mut egui::Ui, cx: &ViewContext<'_>, entry: &Entry, chosen: bool) -> bool {
    let theme = cx.theme;
    let (rect, response) = ui.allocate_exact_size(egui::vec2(ui.available_width(), 24.0), egui::Sense::click());
    response.widget_info(|| WidgetInfo::selected(Role::MenuItem, true, chosen, &entry.name));
    if chosen || response.hovered() {
        ui.painter().rect_filled(rect, f32::from(space::RADIUS), if chosen { theme.hairline } else { theme.control });
    }
    let inner = rect.shrink2(egui::vec2(space::S, 0.0));
    ui.painter().text(inner.left_center(), Align2::LEFT_CENTER, &entry.name, theme.body(), theme.text);
    ui.painter().text(inner.right_center(), Align2::RIGHT_CENTER, entry.keys, theme.mono(), theme.text_faint);
    response.clicked()
}

/// Entries whose name has all the words typed, each once, those that begin with them first.
fn search(keys: &[Entry], query: &str) -> Vec<usize> {
    let words: Vec<String> = query.to_lowercase().split_whitespace().map(str::to_owned).collect();
    let mut found: Vec<(bool, usize)> = Vec::new();
    for (k, entry) in keys.iter().enumerate() {
        let name = entry.name.to_lowercase();
        let known = found.iter().any(|(_, other)| keys[*other].name == entry.name);
        if !known && words.iter().all(|word| name.contains(word.as_str())) {
            found.push((!words.first().is_some_and(|w| name.starts_with(w.as_str())), k));
        }
    }
    found.sort_by_key(|(later, k)| (*later, *k));
    found.into_iter().map(|(_, k)| k).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_any_order_find_a_command() {
        let keys = crate::keymap::table();
        let found = search(&keys, "matrix max");
        assert_eq!(found.iter().map(|k| keys[*k].name.as_str()).collect::<Vec<_>>(), ["Maximise mixing matrix"]);
        let names: Vec<&str> = search(&keys, "").iter().map(|k| keys[*k].name.as_str()).collect();
        let mut unique = names.clone();
        unique.dedup();
        assert_eq!(names, unique);
    }
}
