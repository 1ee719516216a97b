//! Docking: where the panels lie, saved between runs. Each panel's tab is its title bar.

use eframe::egui::{
    self, Popup, PopupCloseBehavior, Rect, Response, Role, Sense, Stroke, Ui, WidgetInfo, WidgetText, vec2,
};
use egui_tiles::{
    Behavior, Container, LinearDir, SimplificationOptions, TabState, Tile, TileId, Tiles, Tree, UiResponse,
};

use crate::action::Action;
use crate::theme::space;
use crate::view::{ViewContext, ViewKind, Views};

const BAR: f32 = 26.0;
/// Width of the buttons at the right of a title.
const TOOLS: f32 = 60.0;

/// The arrangement of panels.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    tree: Tree<ViewKind>,
    /// The panel that fills the window for now.
    #[serde(default)]
    pub maximised: Option<ViewKind>,
    /// The panel whose explanation is open.
    #[serde(skip)]
    pub explained: Option<ViewKind>,
}

impl Default for Layout {
    fn default() -> Self {
        Self { tree: default_tree(), maximised: None, explained: None }
    }
}

/// Prompt and performance, tokens over data, inspector and next token, as in the design.
fn default_tree() -> Tree<ViewKind> {
    use ViewKind::*;
    let mut tiles = Tiles::default();
    let mut split = |direction: LinearDir, parts: Vec<(Part, f32)>| -> Part {
        let mut ids = Vec::new();
        for (part, share) in parts {
            let id = match part {
                Part::Pane(kind) => {
                    let pane = tiles.insert_pane(kind);
                    tiles.insert_tab_tile(vec![pane])
                }
                Part::Tabs(kinds) => {
                    let panes = kinds.iter().map(|kind| tiles.insert_pane(*kind)).collect();
                    tiles.insert_tab_tile(panes)
                }
                Part::Tile(id) => id,
            };
            ids.push((id, share));
        }
        let mut linear = egui_tiles::Linear::new(direction, ids.iter().map(|(id, _)| *id).collect());
        for (id, share) in ids {
            linear.shares.set_share(id, share);
        }
        Part::Tile(tiles.insert_container(Container::Linear(linear)))
    };
    let (across, down) = (LinearDir::Horizontal, LinearDir::Vertical);
    let left = split(down, vec![(Part::Pane(Prompt), 0.52), (Part::Pane(Performance), 0.48)]);
    let time = split(down, vec![(Part::Pane(Layers), 0.27), (Part::Pane(State), 0.35), (Part::Pane(Gates), 0.38)]);
    let mixing = split(down, vec![(Part::Pane(Mixing), 0.62), (Part::Tabs(&[Heads, Reach]), 0.38)]);
    let data = split(across, vec![(time, 0.54), (mixing, 0.46)]);
    let middle = split(down, vec![(Part::Pane(Tokens), 0.18), (data, 0.82)]);
    let right = split(down, vec![(Part::Pane(Inspector), 0.58), (Part::Pane(Logits), 0.42)]);
    let root = match split(across, vec![(left, 0.165), (middle, 0.645), (right, 0.19)]) {
        Part::Tile(id) => id,
        _ => tiles.insert_pane(Layers),
    };
    Tree::new(eframe::egui::Id::unique("panels"), root, tiles)
}

enum Part {
    Pane(ViewKind),
    /// One before the others.
    Tabs(&'static [ViewKind]),
    Tile(TileId),
}

impl Layout {
    fn pane(&self, kind: ViewKind) -> Option<TileId> {
        self.tree.tiles.find_pane(&kind)
    }

    /// Whether the panel has a place (perhaps behind another tab).
    pub fn has(&self, kind: ViewKind) -> bool {
        self.pane(kind).is_some_and(|id| self.tree.is_visible(id))
    }

    /// The panels on the screen now.
    pub fn in_sight(&self) -> Vec<ViewKind> {
        if let Some(kind) = self.maximised {
            return vec![kind];
        }
        let active = self.tree.active_tiles();
        let pane = |id: &TileId| self.tree.tiles.get_pane(id).copied().filter(|_| self.tree.is_visible(*id));
        active.iter().filter_map(pane).collect()
    }

    /// Brings a panel to the front, back from hiding if need be.
    pub fn show(&mut self, kind: ViewKind) {
        if self.maximised.is_some() {
            self.maximised = Some(kind);
        }
        match self.pane(kind) {
            Some(id) => {
                let mut tile = Some(id);
                while let Some(id) = tile {
                    self.tree.set_visible(id, true);
                    tile = self.tree.tiles.parent_of(id);
                }
                self.tree.make_active(|_, tile| *tile == Tile::Pane(kind));
            }
            None => {
                let id = self.tree.tiles.insert_pane(kind);
                match self.tree.root() {
                    Some(root) => self.tree.move_tile_to_container(id, root, usize::MAX, false),
                    None => *self = Self::default(),
                }
            }
        }
    }

    pub fn hide(&mut self, kind: ViewKind) {
        if self.maximised == Some(kind) {
            self.maximised = None;
        }
        if let Some(id) = self.pane(kind) {
            self.tree.set_visible(id, false);
        }
    }

    pub fn maximise(&mut self, kind: ViewKind) {
        self.maximised = if self.maximised == Some(kind) { None } else { Some(kind) };
    }

    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Draws all panels in sight.
    pub fn ui(&mut self, ui: &mut Ui, views: &mut Views, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        let mut desk = Desk {
            views,
            cx,
            actions,
            explained: &mut self.explained,
            maximised: self.maximised.is_some(),
            siblings: 1,
            behind: 0.0,
        };
        if let Some(kind) = self.maximised {
            desk.alone(ui, kind);
        } else {
            self.tree.ui(&mut desk, ui);
        }
    }
}

/// The panels while they are drawn.
struct Desk<'a, 'b> {
    views: &'a mut Views,
    cx: &'a ViewContext<'b>,
    actions: &'a mut Vec<Action>,
    explained: &'a mut Option<ViewKind>,
    maximised: bool,
    /// Tabs in the bar being drawn, and the width that the titles behind the first take.
    siblings: usize,
    behind: f32,
}

impl Desk<'_, '_> {
    fn title(&self, kind: ViewKind) -> String {
        self.views.get(&kind).map_or_else(|| kind.name().to_owned(), |view| view.title(self.cx))
    }

    fn body(&mut self, ui: &mut Ui, kind: ViewKind) {
        let theme = self.cx.theme;
        let frame =
            egui::Frame::new().fill(theme.panel).inner_margin(egui::Margin { left: 8, right: 8, top: 4, bottom: 8 });
        frame.show(ui, |ui| {
            ui.set_min_size(ui.available_size());
            let clip = ui.clip_rect().intersect(ui.max_rect());
            ui.set_clip_rect(clip);
            ui.spacing_mut().item_spacing.y = space::XS;
            if let Some(view) = self.views.get_mut(&kind) {
                ui.push_id(kind, |ui| view.ui(ui, self.cx, self.actions));
            }
        });
    }

    /// One panel in the whole space.
    fn alone(&mut self, ui: &mut Ui, kind: ViewKind) {
        ui.spacing_mut().item_spacing.y = 0.0;
        let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), BAR), Sense::hover());
        let theme = self.cx.theme;
        ui.painter().rect_filled(rect, 0.0, theme.panel);
        let title = rect.with_max_x(rect.max.x - TOOLS);
        let response = ui.interact(title, ui.scope_id().with("alone"), Sense::click());
        let text = self.title(kind);
        response.widget_info(|| WidgetInfo::labeled(Role::Button, true, &text));
        let at = egui::pos2(title.min.x + space::S, title.center().y);
        ui.painter_at(title).text(at, egui::Align2::LEFT_CENTER, &text, theme.strong(), theme.text);
        let mut tools = ui
            .new_child(egui::UiBuilder::new().max_rect(rect).layout(egui::Layout::right_to_left(egui::Align::Center)));
        self.tools(&mut tools, kind);
        if response.double_clicked() {
            self.actions.push(Action::Maximise(kind));
        }
        self.body(ui, kind);
    }

    /// `?` and maximise, from the right.
    fn tools(&mut self, ui: &mut Ui, kind: ViewKind) {
        ui.spacing_mut().item_spacing.x = 0.0;
        ui.add_space(space::XS);
        let words = if self.maximised { "Restore" } else { "Maximise" };
        let response = icon(ui, self.cx, &format!("{words} {}", kind.name()), |painter, rect, stroke| {
            let (a, b) = (rect.shrink(6.5), 3.5);
            for (corner, dx, dy) in
                [(a.left_top(), b, b), (a.right_top(), -b, b), (a.left_bottom(), b, -b), (a.right_bottom(), -b, -b)]
            {
                painter.line_segment([corner, corner + vec2(dx, 0.0)], stroke);
                painter.line_segment([corner, corner + vec2(0.0, dy)], stroke);
            }
        });
        if response.on_hover_text(format!("{words} (double click on the title)")).clicked() {
            self.actions.push(Action::Maximise(kind));
        }
        let font = self.cx.theme.small();
        let response = icon(ui, self.cx, &format!("Explain {}", kind.name()), |painter, rect, stroke| {
            painter.text(rect.center(), egui::Align2::CENTER_CENTER, "?", font, stroke.color);
        });
        if response.clicked() {
            *self.explained = if *self.explained == Some(kind) { None } else { Some(kind) };
        }
        self.explain(&response, kind);
    }

    fn explain(&mut self, button: &Response, kind: ViewKind) {
        let mut open = *self.explained == Some(kind);
        if !open {
            return;
        }
        let theme = self.cx.theme;
        let text = self.views.get(&kind).map(|view| view.explanation(self.cx)).unwrap_or_default();
        Popup::from_response(button)
            .id(egui::Id::unique(("explanation", kind)))
            .open_bool(&mut open)
            .close_behavior(PopupCloseBehavior::CloseOnClickOutside)
            .show(|ui| {
                ui.set_max_width(440.0);
                ui.label(egui::RichText::new(kind.name()).font(theme.strong()));
                ui.add_space(space::XS);
                ui.label(egui::RichText::new(text).color(theme.text));
            });
        if !open && !button.clicked() {
            *self.explained = None;
        }
    }
}

/// A small square button drawn by `paint`.
fn icon(ui: &mut Ui, cx: &ViewContext<'_>, name: &str, paint: impl FnOnce(&egui::Painter, Rect, Stroke)) -> Response {
    let (rect, response) = ui.allocate_exact_size(vec2(22.0, 22.0), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Button, true, name));
    let lit = response.hovered() || response.has_focus();
    let colour = if lit { cx.theme.text } else { cx.theme.text_faint };
    paint(ui.painter(), rect, Stroke::new(1.2, colour));
    response
}

impl Behavior<ViewKind> for Desk<'_, '_> {
    fn pane_ui(&mut self, ui: &mut Ui, _tile: TileId, kind: &mut ViewKind) -> UiResponse {
        self.body(ui, *kind);
        UiResponse::None
    }

    fn tab_title_for_pane(&mut self, kind: &ViewKind) -> WidgetText {
        self.title(*kind).into()
    }

    fn tab_ui(
        &mut self,
        tiles: &mut Tiles<ViewKind>,
        ui: &mut Ui,
        id: egui::Id,
        tile: TileId,
        state: &TabState,
    ) -> Response {
        let theme = self.cx.theme;
        let kind = tiles.get_pane(&tile).copied();
        let text = match kind {
            // Behind others the short name has to do.
            Some(kind) if !state.active => kind.name().to_owned(),
            Some(kind) => self.title(kind),
            None => "Panels".to_owned(),
        };
        let (font, colour) = if state.active { (theme.strong(), theme.text) } else { (theme.body(), theme.text_muted) };
        // Never wider than its place: the bar would begin to scroll. Clipped to the bar, less the buttons.
        let width = ui.clip_rect().width();
        let fair = width / self.siblings as f32;
        let share = if state.active { fair.max(width - self.behind) } else { fair } - 2.0 * space::S - 2.0;
        let share = share.max(24.0);
        let mut job = egui::text::LayoutJob::simple_singleline(text.clone(), font, colour);
        job.wrap = egui::text::TextWrapping::truncate_at_width(share);
        let galley = ui.painter().layout_job(job);
        let width = galley.size().x + 2.0 * space::S;
        let (_, rect) = ui.allocate_space(vec2(width, ui.available_height()));
        let response = ui.interact(rect, id, Sense::click_and_drag());
        response.widget_info(|| WidgetInfo::selected(Role::Tab, true, state.active, &text));
        if !state.is_being_dragged {
            let at = egui::pos2(rect.min.x + space::S, rect.center().y - 0.5 * galley.size().y);
            ui.painter().galley(at, galley, colour);
            if state.active && self.siblings > 1 {
                ui.painter().hline(
                    rect.shrink2(vec2(space::S, 0.0)).x_range(),
                    rect.max.y - 1.0,
                    Stroke::new(1.5, theme.text_faint),
                );
            }
        }
        let Some(kind) = kind else { return response };
        if response.double_clicked() {
            self.actions.push(Action::Maximise(kind));
        }
        response.context_menu(|ui| {
            for (name, action) in [
                ("Maximise", Action::Maximise(kind)),
                ("Hide", Action::HideView(kind)),
                ("Explain this view", Action::Explain(kind)),
                ("Reset layout", Action::ResetLayout),
            ] {
                if ui.button(name).clicked() {
                    self.actions.push(action);
                    ui.close();
                }
            }
        });
        response
    }

    fn top_bar_right_ui(
        &mut self,
        tiles: &Tiles<ViewKind>,
        ui: &mut Ui,
        _id: TileId,
        tabs: &egui_tiles::Tabs,
        _scroll: &mut f32,
    ) {
        // Drawn before the titles, which share the bar.
        self.siblings = tabs.children.len().max(1);
        let behind = tabs.children.iter().filter(|id| Some(**id) != tabs.active).filter_map(|id| tiles.get_pane(id));
        let width = |name: &str| {
            let galley = ui.painter().layout_no_wrap(name.to_owned(), self.cx.theme.body(), self.cx.theme.text);
            galley.size().x + 2.0 * space::S + 2.0
        };
        self.behind = behind.map(|kind| width(kind.name())).sum();
        if let Some(Tile::Pane(kind)) = tabs.active.and_then(|id| tiles.get(id)) {
            self.tools(ui, *kind);
        }
    }

    fn tab_bar_height(&self, _style: &egui::Style) -> f32 {
        BAR
    }

    fn tab_bar_color(&self, _visuals: &egui::Visuals) -> egui::Color32 {
        self.cx.theme.panel
    }

    fn tab_bar_hline_stroke(&self, _visuals: &egui::Visuals) -> Stroke {
        Stroke::NONE
    }

    fn gap_width(&self, _style: &egui::Style) -> f32 {
        2.0
    }

    fn resize_stroke(&self, _style: &egui::Style, state: egui_tiles::ResizeState) -> Stroke {
        let theme = self.cx.theme;
        match state {
            egui_tiles::ResizeState::Idle => Stroke::new(2.0, theme.backdrop),
            egui_tiles::ResizeState::Hovering => Stroke::new(2.0, theme.text_faint),
            egui_tiles::ResizeState::Dragging => Stroke::new(2.0, theme.text_muted),
        }
    }

    fn min_size(&self) -> f32 {
        96.0
    }

    fn simplification_options(&self) -> SimplificationOptions {
        SimplificationOptions { all_panes_must_have_tabs: true, ..SimplificationOptions::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_layout_has_every_panel_and_survives_saving() {
        let layout = Layout::default();
        let saved = serde_json::to_string(&layout).expect("saves");
        let layout: Layout = serde_json::from_str(&saved).expect("restores");
        assert!(ViewKind::DOCKED.iter().all(|kind| layout.has(*kind)));
    }

    #[test]
    fn hidden_panels_come_back() {
        let mut layout = Layout::default();
        layout.hide(ViewKind::Gates);
        assert!(!layout.has(ViewKind::Gates) && layout.has(ViewKind::State));
        layout.show(ViewKind::Gates);
        assert!(layout.has(ViewKind::Gates));
        layout.maximise(ViewKind::Mixing);
        assert_eq!(layout.in_sight(), [ViewKind::Mixing]);
        layout.hide(ViewKind::Mixing);
        assert_eq!(layout.maximised, None);
    }
}
