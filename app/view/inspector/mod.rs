//! Inspector: the exact numbers at the selection, and the update equation with this step's numbers in it.
//!
//! Every number is a label whose accessible text is `name = value`, the value the shortest that reads back as the same f32, for
//! example `Δ = 0.043105707`, `decay = 0.9202011`, `M[12, 5] = -0.0031`. Mamba-1's factors are `decay n=0` and so on.

mod equation;
mod facts;

use eframe::egui::{self, Align2, RichText, Role, Sense, WidgetInfo, vec2};
use statescope_engine::protocol::{MixerKind, Probe};

use crate::action::Action;
use crate::theme::{Theme, space};
use crate::view::quantity::{Subject, exact, percent};
use crate::view::{View, ViewContext};
use crate::widget::panel;
use facts::Fact;

/// Keys listed for a row.
const LARGEST: usize = 8;

#[derive(Default)]
pub struct InspectorView;

impl View for InspectorView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        match Subject::of(cx) {
            Some(subject) if !subject.kind().mixes() => format!("Inspector · {}", subject.layer_name()),
            // The section headings name layer and head in full; this panel is narrow.
            Some(subject) => match subject.cursor {
                Some(token) => format!("Inspector · L{} {} · token {token}", subject.layer, subject.head_name()),
                None => format!("Inspector · L{} {}", subject.layer, subject.head_name()),
            },
            None => "Inspector".into(),
        }
    }

    fn explanation(&self, _: &ViewContext<'_>) -> String {
        "The numbers of the selected layer, head and token in full f32 precision, as the model computed them. \
         Every mixer is S_t = decay · S_{t−1} + write, y_t = read of S_t; the equation shows which numbers this step put in. \
         M_ij is the weight with which token i reads token j, y_i = Σ_j M_ij v_j; point at a matrix cell to see it here."
            .into()
    }

    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>) {
        if let Some(subject) = Subject::of(cx) {
            facts::probes(&subject, probes);
        }
    }

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        let Some(subject) = Subject::of(cx) else {
            panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
            return;
        };
        let Some(token) = subject.cursor else {
            panel::empty(ui, cx.theme, "No token has been read yet. Press Space to run.");
            return;
        };
        let step = facts::step(cx.store, &subject, token);
        let about_token = facts::token_facts(cx, token);
        let about_head = facts::head_facts(cx, &subject, &step);
        let lines = equation::lines(&step);
        let cell = facts::cell(cx, &subject);
        let about_cell = facts::cell_facts(cx.store, &subject, token, cell);
        egui::ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            ui.spacing_mut().item_spacing.y = 1.0;
            // Always there and of one height, so that nothing jumps while the pointer crosses a matrix.
            if subject.kind().mixes() {
                section(ui, cx.theme, "matrix cell", || copied("matrix cell", &about_cell), actions);
                table(ui, cx.theme, &about_cell);
            }
            let heading = match subject.kind().mixes() {
                true => format!("{}, {}", subject.layer_name(), subject.head_name()),
                false => subject.layer_name(),
            };
            section(ui, cx.theme, &heading, || copied(&heading, &about_head), actions);
            ui.add_space(2.0);
            for line in &lines {
                ui.add(egui::Label::new(RichText::new(line).font(cx.theme.mono()).color(cx.theme.text)).wrap());
            }
            let words = || lines.join("\n");
            if ui.button("Copy equation").on_hover_text("Copy the equation with these numbers").clicked() {
                actions.push(Action::Copy(words()));
            }
            ui.add_space(space::XS);
            table(ui, cx.theme, &about_head);
            row_section(ui, cx, &subject, token, actions);
            section(ui, cx.theme, "token", || copied("token", &about_token), actions);
            table(ui, cx.theme, &about_token);
        });
    }
}

/// The tokens that row `i` reads most.
fn row_section(ui: &mut egui::Ui, cx: &ViewContext<'_>, subject: &Subject<'_>, i: usize, actions: &mut Vec<Action>) {
    let keys = facts::largest_keys(cx.store, subject, i, LARGEST);
    if keys.is_empty() {
        return;
    }
    let copy = || {
        keys.iter()
            .map(|(j, value)| format!("{j}\t{}\t{}", cx.store.token_label(*j), exact(*value)))
            .collect::<Vec<_>>()
            .join("\n")
    };
    section(ui, cx.theme, "largest weights of the row", copy, actions);
    for (j, value) in &keys {
        let name = format!("{j} {}", cx.store.token_label(*j));
        let number = if subject.kind() != MixerKind::Attention {
            exact(*value)
        } else {
            format!("{} · {}", percent(*value), exact(*value))
        };
        let spoken = format!("weight of token {j} = {}", exact(*value));
        let response = line(ui, cx.theme, &name, &number, Sense::click(), spoken);
        if response.on_hover_text("Click to pin this cell of the matrix").clicked() {
            actions.push(Action::SelectCell { query: i, key: *j });
        }
    }
}

/// A heading with a button that copies what is under it.
fn section(ui: &mut egui::Ui, theme: &Theme, name: &str, copy: impl Fn() -> String, actions: &mut Vec<Action>) {
    ui.add_space(space::S);
    ui.horizontal(|ui| {
        ui.label(RichText::new(name).font(theme.strong()).color(theme.text));
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            let button = ui.small_button("Copy").on_hover_text("Copy these numbers, tab-separated");
            button.widget_info(|| WidgetInfo::labeled(Role::Button, true, format!("copy {name}")));
            if button.clicked() {
                actions.push(Action::Copy(copy()));
            }
        });
    });
}

fn copied(heading: &str, facts: &[Fact]) -> String {
    let rows = facts.iter().map(|f| format!("{}\t{}\t{}", f.name, f.value.as_deref().unwrap_or("unknown"), f.unit));
    std::iter::once(heading.to_owned()).chain(rows).collect::<Vec<_>>().join("\n")
}

fn table(ui: &mut egui::Ui, theme: &Theme, facts: &[Fact]) {
    for fact in facts {
        let value = match &fact.value {
            Some(value) if fact.unit.is_empty() => value.clone(),
            Some(value) => format!("{value} {}", fact.unit),
            None => "not known yet".into(),
        };
        line(ui, theme, &fact.name, &value, Sense::hover(), fact.accessible()).on_hover_text(&fact.meaning);
    }
}

/// A name on the left, its value in tabular figures on the right.
fn line(ui: &mut egui::Ui, theme: &Theme, name: &str, value: &str, sense: Sense, spoken: String) -> egui::Response {
    let height = theme.mono().size + 6.0;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), height), sense);
    let role = if sense.senses_click() { Role::Button } else { Role::Label };
    response.widget_info(|| WidgetInfo::labeled(role, true, &spoken));
    if ui.is_rect_visible(rect) {
        let painter = ui.painter_at(rect);
        if sense.senses_click() && (response.hovered() || response.has_focus()) {
            painter.rect_filled(rect, space::RADIUS, theme.control);
        }
        let right = painter.layout_no_wrap(value.to_owned(), theme.mono(), theme.text);
        let value_left = rect.right() - 2.0 - right.size().x;
        let name_rect = rect.with_max_x((value_left - space::XS).max(rect.left()));
        painter.galley(
            Align2::RIGHT_CENTER.anchor_size(rect.right_center() - vec2(2.0, 0.0), right.size()).min,
            right,
            theme.text,
        );
        painter.with_clip_rect(name_rect).text(
            rect.left_center(),
            Align2::LEFT_CENTER,
            name,
            theme.body(),
            theme.text_muted,
        );
    }
    response
}
