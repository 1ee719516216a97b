//! The key to a heatmap's colours: ends, unit, scale, fixed or automatic range, and what is clipped.

use eframe::egui::{self, Align2, Mesh, Rect, Role, Sense, Shape, Ui, WidgetInfo, pos2, vec2};

use super::format;
use super::panel;
use super::scale::{Normaliser, ValueScale};
use crate::theme::{ColourMap, Theme, space};

/// What a legend says.
pub struct Legend<'a> {
    pub map: ColourMap,
    pub scale: ValueScale,
    /// In use now.
    pub range: (f32, f32),
    pub unit: &'a str,
    /// Fixed by the user instead of following the data.
    pub locked: bool,
    /// Values below or above the range.
    pub clipped: (bool, bool),
}

/// What the user changed on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LegendChange {
    /// Keep this range from now on.
    Lock((f32, f32)),
    /// Follow the data again.
    Unlock,
    Scale(ValueScale),
}

/// One row, `space::ROW` high, from the left.
pub fn legend(ui: &mut Ui, theme: &Theme, legend: &Legend<'_>) -> Option<LegendChange> {
    let mut change = None;
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = space::XS;
        ui.set_height(space::ROW);
        let (low, high) = Normaliser::new(legend.map, legend.scale, legend.range).ends();
        // The unit follows the upper end; clipped ends are marked with the comparison that still holds.
        text(ui, theme, &format!("{}{}", if legend.clipped.0 { "≤ " } else { "" }, format::digits(low, 3)));
        bar(ui, theme, legend);
        text(
            ui,
            theme,
            &format!("{}{} {}", if legend.clipped.1 { "≥ " } else { "" }, format::digits(high, 3), legend.unit),
        );
        if let [_, _, ..] = ValueScale::for_map(legend.map) {
            let options: Vec<(ValueScale, &str)> =
                ValueScale::for_map(legend.map).iter().map(|s| (*s, s.label())).collect();
            if let Some(scale) = panel::choice(ui, theme, legend.scale, &options) {
                change = Some(LegendChange::Scale(scale));
            }
        }
        let name = if legend.locked { "locked" } else { "auto" };
        let colour = if legend.locked { theme.text } else { theme.text_muted };
        let button =
            egui::Button::new(egui::RichText::new(name).font(theme.small()).color(colour)).frame(legend.locked);
        let response = ui.add(button).on_hover_text(if legend.locked {
            "The range is locked, so that colours compare over time and between models. Click to follow the data."
        } else {
            "The range follows what is in sight. Click to lock it."
        });
        response.widget_info(|| WidgetInfo::selected(Role::Switch, true, legend.locked, "Lock range"));
        if response.clicked() {
            change = Some(if legend.locked { LegendChange::Unlock } else { LegendChange::Lock(legend.range) });
        }
    });
    change
}

fn text(ui: &mut Ui, theme: &Theme, text: &str) {
    ui.label(egui::RichText::new(text.trim_end()).font(theme.small()).color(theme.text_muted));
}

fn bar(ui: &mut Ui, theme: &Theme, legend: &Legend<'_>) {
    const STOPS: usize = 32;
    let (rect, response) = ui.allocate_exact_size(vec2(72.0, 8.0), Sense::hover());
    let table = theme.map(legend.map);
    let mut mesh = Mesh::default();
    for k in 0..=STOPS {
        let t = k as f32 / STOPS as f32;
        let x = rect.min.x + t * rect.width();
        mesh.colored_vertex(pos2(x, rect.min.y), table.at(t));
        mesh.colored_vertex(pos2(x, rect.max.y), table.at(t));
        if k > 0 {
            let last = mesh.vertices.len() as u32 - 1;
            mesh.add_triangle(last - 3, last - 2, last - 1);
            mesh.add_triangle(last - 2, last - 1, last);
        }
    }
    ui.painter().add(Shape::mesh(mesh));
    for (clipped, x, align) in
        [(legend.clipped.0, rect.min.x, Align2::LEFT_CENTER), (legend.clipped.1, rect.max.x, Align2::RIGHT_CENTER)]
    {
        if clipped {
            let end = Rect::from_center_size(pos2(x, rect.center().y), vec2(3.0, rect.height() + 4.0));
            let end = align.align_size_within_rect(end.size(), rect.expand2(vec2(0.0, 2.0)));
            ui.painter().rect_filled(end, 0.0, theme.error);
        }
    }
    let words = format!(
        "{} colours from {} to {} {}, {}",
        match legend.map {
            ColourMap::Sequential => "Sequential",
            ColourMap::Diverging => "Signed",
            ColourMap::Cyclic => "Cyclic",
        },
        format::number(legend.range.0),
        format::number(legend.range.1),
        legend.unit,
        legend.scale.label()
    );
    response.widget_info(|| WidgetInfo::labeled(Role::Image, true, &words));
    response.on_hover_text(words);
}
