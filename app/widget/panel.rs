//! What surrounds data in a panel: the tag at the pointer, the menu of the right button, words where there is nothing to draw.

use eframe::egui::{
    self, Align2, Color32, Id, LayerId, Order, Rect, Response, Role, Sense, Ui, WidgetInfo, pos2, vec2,
};

use crate::action::Action;
use crate::theme::{Theme, space};
use crate::view::ViewKind;

/// What the right button offers on a view.
pub struct Menu<'a> {
    pub view: ViewKind,
    /// File name for export, without extension.
    pub name: &'a str,
    /// The value under the pointer when the menu was opened, if any.
    pub value: Option<String>,
    /// The view's data, made only when asked for.
    pub csv: &'a dyn Fn() -> String,
}

/// Copy value, copy as CSV, export, explain.
pub fn context_menu(response: &Response, menu: &Menu<'_>, actions: &mut Vec<Action>) {
    // The pointer moves on while the menu is open; the value it was opened on is kept.
    let id = response.id.with("menu value");
    if response.secondary_clicked() {
        response.ctx.data_mut(|d| d.insert_temp(id, menu.value.clone()));
    }
    response.context_menu(|ui| {
        ui.set_min_width(180.0);
        let value = ui.data(|d| d.get_temp::<Option<String>>(id)).flatten();
        if ui.add_enabled(value.is_some(), egui::Button::new("Copy value")).clicked() {
            actions.extend(value.map(Action::Copy));
            ui.close();
        }
        if ui.button("Copy as CSV").clicked() {
            actions.push(Action::Copy((menu.csv)()));
            ui.close();
        }
        if ui.button("Export this view…").clicked() {
            actions.push(Action::ExportCsv { name: menu.name.to_owned(), csv: (menu.csv)() });
            ui.close();
        }
        if ui.button("Explain this view").clicked() {
            actions.push(Action::Explain(menu.view));
            ui.close();
        }
    });
}

/// Words in the middle of a panel that has nothing to draw: what is missing and what to do.
pub fn empty(ui: &mut Ui, theme: &Theme, text: &str) {
    let rect = ui.available_rect_before_wrap();
    let response = ui.allocate_rect(rect, Sense::hover());
    let width = (rect.width() - 2.0 * space::M).clamp(40.0, 420.0);
    let mut job = egui::text::LayoutJob::simple(text.to_owned(), theme.body(), theme.text_muted, width);
    job.halign = egui::Align::Center;
    let galley = ui.painter().layout_job(job);
    let pos = pos2(rect.center().x, rect.center().y - 0.5 * galley.size().y);
    ui.painter_at(rect).galley(pos, galley, theme.text_muted);
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, text));
}

/// The small tag at the pointer. Lines are separated by line breaks; the first is the strongest.
pub fn tag(ui: &Ui, theme: &Theme, text: &str) {
    let Some(pointer) = ui.ctx().pointer_latest_pos() else { return };
    let painter = ui.ctx().layer_painter(LayerId::new(Order::Tooltip, Id::unique("tag")));
    let mut job = egui::text::LayoutJob::default();
    job.wrap.max_width = 360.0;
    for (k, line) in text.lines().enumerate() {
        let (font, colour) = if k == 0 { (theme.mono(), theme.text) } else { (theme.small(), theme.text_muted) };
        let line = if k == 0 { line.to_owned() } else { format!("\n{line}") };
        job.append(&line, 0.0, egui::TextFormat::simple(font, colour));
    }
    let galley = painter.layout_job(job);
    let screen = ui.ctx().content_rect().shrink(space::XS);
    let size = galley.size() + vec2(2.0 * space::S, 2.0 * space::XS);
    let mut min = pointer + vec2(14.0, 16.0);
    if min.x + size.x > screen.max.x {
        min.x = pointer.x - 10.0 - size.x;
    }
    if min.y + size.y > screen.max.y {
        min.y = pointer.y - 10.0 - size.y;
    }
    let rect = Rect::from_min_size(min.max(screen.min), size);
    painter.rect(rect, f32::from(space::RADIUS), theme.raised, theme.hairline_stroke(), egui::StrokeKind::Outside);
    painter.galley(rect.min + vec2(space::S, space::XS), galley, theme.text);
}

/// A small caption over a part of a panel; says nothing to the pointer.
pub fn caption(ui: &mut Ui, theme: &Theme, text: &str) -> Response {
    ui.label(egui::RichText::new(text).font(theme.small()).color(theme.text_muted))
}

/// A row of choices of which one is taken; returns the newly taken one.
pub fn choice<T: PartialEq + Copy>(ui: &mut Ui, theme: &Theme, current: T, options: &[(T, &str)]) -> Option<T> {
    let mut taken = None;
    ui.scope(|ui| {
        ui.spacing_mut().item_spacing.x = 1.0;
        for (value, name) in options {
            let on = *value == current;
            let text =
                egui::RichText::new(*name).font(theme.small()).color(if on { theme.text } else { theme.text_muted });
            let fill = if on { theme.control } else { Color32::TRANSPARENT };
            let button = egui::Button::new(text).fill(fill).selected(false).min_size(vec2(0.0, space::ROW - 2.0));
            let response = ui.add(button);
            response.widget_info(|| WidgetInfo::selected(Role::RadioButton, true, on, *name));
            if response.clicked() && !on {
                taken = Some(*value);
            }
        }
    });
    taken
}

/// Panels narrower than this have drop-downs instead of rows of choices.
pub const NARROW: f32 = 420.0;

/// A row of choices where the panel has room for it, else a drop-down.
pub fn pick<T: PartialEq + Copy>(
    ui: &mut Ui,
    theme: &Theme,
    name: &str,
    current: T,
    options: &[(T, &str)],
) -> Option<T> {
    if ui.max_rect().width() < NARROW {
        drop_down(ui, name, current, options)
    } else {
        choice(ui, theme, current, options)
    }
}

/// A drop-down of choices; returns the newly taken one.
pub fn drop_down<T: PartialEq + Copy>(ui: &mut Ui, name: &str, current: T, options: &[(T, &str)]) -> Option<T> {
    let mut taken = None;
    let text = options.iter().find(|(value, _)| *value == current).map_or("–", |(_, text)| *text);
    let response = egui::ComboBox::from_id_salt(name)
        .selected_text(text)
        .width(0.0)
        .show_ui(ui, |ui| {
            for (value, text) in options {
                if ui.selectable_label(*value == current, *text).clicked() {
                    taken = Some(*value);
                }
            }
        })
        .response;
    response.widget_info(|| WidgetInfo::labeled(Role::ComboBox, true, format!("{name}: {text}")));
    taken
}

/// A glyph centred in `rect`.
pub fn glyph(ui: &Ui, theme: &Theme, rect: Rect, text: &str, colour: Color32) {
    ui.painter().text(rect.center(), Align2::CENTER_CENTER, text, theme.body(), colour);
}
