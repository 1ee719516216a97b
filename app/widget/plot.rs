//! What heatmaps and lines have in common: which cells of a window there are, and how the pointer and AccessKit are told what is there.

use std::ops::Range;

use eframe::egui::{Response, Role, Ui, WidgetInfo};

use super::panel;
use crate::theme::Theme;

/// The whole cells that a window touches, of `count`.
pub fn visible(window: &Range<f64>, count: usize) -> Range<usize> {
    let start = (window.start.floor().max(0.0) as usize).min(count);
    start..(window.end.ceil().max(0.0) as usize).clamp(start, count)
}

/// Names the plot, says `text` of what is hovered or else pinned, and shows it at the pointer if it is `hovered`.
pub fn say(ui: &Ui, theme: &Theme, response: &Response, label: &str, text: Option<String>, hovered: bool) {
    response.widget_info(|| WidgetInfo::labeled(Role::Image, ui.is_enabled(), label));
    let Some(text) = text else { return };
    if hovered && !response.context_menu_opened() {
        panel::tag(ui, theme, &text);
    }
    ui.ctx().accesskit_node_builder(response.id, |node| node.set_value(text));
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_window_shows_whole_cells_that_exist() {
        assert_eq!(super::visible(&(1.5..3.2), 10), 1..4);
        assert_eq!(super::visible(&(-4.0..99.0), 10), 0..10);
        assert_eq!(super::visible(&(20.0..30.0), 10), 10..10);
    }
}
