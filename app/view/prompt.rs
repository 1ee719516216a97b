//! The prompt, the run, and how tokens are drawn.

use eframe::egui::{self, RichText, Role, TextEdit, Ui, WidgetInfo, vec2};
use statescope_engine::protocol::{Probe, RunState};
use statescope_engine::sampler::Sampling;

use super::{View, ViewContext};
use crate::action::Action;
use crate::theme::space;
use crate::widget::{format, panel};

/// The slowest and fastest of the speed limiter, tokens/s.
const SPEEDS: std::ops::RangeInclusive<f32> = 0.5..=200.0;
const NAME_WIDTH: f32 = 84.0;
const VALUE_WIDTH: f32 = 62.0;

/// Holds nothing of its own: what is typed lives in the settings.
#[derive(Default)]
pub struct PromptView;

impl View for PromptView {
    fn title(&self, _cx: &ViewContext<'_>) -> String {
        "Prompt and run".into()
    }

    fn explanation(&self, _cx: &ViewContext<'_>) -> String {
        "The prompt is read token by token like generated text, so every panel shows it too. Each next token is drawn from \
         p ∝ exp(logits / temperature), restricted to the top-k most likely and to the smallest set that reaches top-p; temperature 0 \
         always takes the most likely one. Chance depends on the seed and the position alone: the same seed gives the same text again."
            .into()
    }

    fn probes(&self, _cx: &ViewContext<'_>, _probes: &mut Vec<Probe>) {}

    fn ui(&mut self, ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        // The controls keep their place; the editor takes what is left.
        let controls = 9.0 * (space::ROW + space::XS) + 3.0 * space::S;
        let height = (ui.available_height() - controls).clamp(48.0, 220.0);
        let mut all = |ui: &mut Ui| {
            editor(ui, cx, height, actions);
            ui.add_space(space::XS);
            buttons(ui, cx, actions);
            ui.add_space(space::S);
            making(ui, cx, actions);
            ui.add_space(space::S);
            sampling(ui, cx, actions);
        };
        if ui.available_height() > controls + 40.0 {
            all(ui);
        } else {
            egui::ScrollArea::vertical().id_salt("prompt").auto_shrink([false, false]).show(ui, all);
        }
    }
}

fn editor(ui: &mut Ui, cx: &ViewContext<'_>, height: f32, actions: &mut Vec<Action>) {
    let mut text = cx.settings.prompt(cx.store.model.as_deref()).clone();
    let hint = match &cx.store.model {
        Some(model) if !model.has_tokenizer => "Token ids, such as 1, 2, 3",
        _ => "Write a prompt",
    };
    let mut response = None;
    egui::ScrollArea::vertical().id_salt("editor").max_height(height).min_scrolled_height(height).show(ui, |ui| {
        let edit = TextEdit::multiline(&mut text)
            .hint_text(hint)
            .font(cx.theme.body())
            .desired_width(f32::INFINITY)
            .desired_rows((height / 17.0) as usize)
            .margin(vec2(space::S, space::XS));
        response = Some(ui.add(edit));
    });
    let Some(response) = response else { return };
    response.widget_info(|| WidgetInfo::labeled(Role::MultilineTextInput, true, "Prompt"));
    if response.changed() {
        actions.push(Action::SetPrompt(text));
    }
}

fn buttons(ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
    let ready = cx.store.model.is_some();
    let running = cx.store.run == RunState::Running;
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = space::XS;
        ui.spacing_mut().button_padding.x = space::XS;
        // Natural widths, and what is left over shared out.
        let names = [if running { "Pause" } else { "Run" }, "Step", "Stop", "Restart"];
        let widths = names.map(|name| {
            ui.painter().layout_no_wrap(name.into(), cx.theme.strong(), cx.theme.text).size().x + 2.0 * space::XS
        });
        let spare = ((ui.available_width() - 3.0 * space::XS - widths.iter().sum::<f32>()) / 4.0).max(0.0);
        let mut width = widths.iter().map(|width| (width + spare).floor());
        let mut button = |name: &str, words: &str, enabled: bool, strong: bool, action: Action| {
            let text = RichText::new(name).font(if strong { cx.theme.strong() } else { cx.theme.body() });
            let size = vec2(width.next().unwrap_or_default(), 26.0);
            let response = ui.add_enabled(enabled, egui::Button::new(text).min_size(size));
            if response.on_hover_text(words).clicked() {
                actions.push(action);
            }
        };
        if running {
            button("Pause", "Space", true, true, Action::Pause);
        } else {
            button("Run", "Space", ready, true, Action::Run);
        }
        button("Step", "One token (.)", ready && !running, false, Action::StepForward);
        button("Stop", "Ends the run; what is left of its tokens is forgotten", running, false, Action::Stop);
        button("Restart", "Reads the prompt afresh (Ctrl+Enter)", ready, false, Action::ReadPrompt);
    });
}

/// One line: name at the left, control at the right of it.
fn line(ui: &mut Ui, cx: &ViewContext<'_>, name: &str, hint: &str, add: impl FnOnce(&mut Ui)) {
    ui.horizontal(|ui| {
        ui.set_height(space::ROW);
        let (rect, response) = ui.allocate_exact_size(vec2(NAME_WIDTH, space::ROW), egui::Sense::hover());
        ui.painter().text(rect.left_center(), egui::Align2::LEFT_CENTER, name, cx.theme.body(), cx.theme.text_muted);
        response.on_hover_text(hint);
        add(ui);
    });
}

/// A number that is dragged or typed, with its name for AccessKit.
fn drag(ui: &mut Ui, name: &str, value: egui::DragValue<'_>) -> egui::Response {
    let response = ui.add_sized(vec2(VALUE_WIDTH, space::ROW), value);
    response.widget_info(|| WidgetInfo::labeled(Role::SpinButton, true, name));
    response
}

fn making(ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
    line(ui, cx, "New tokens", "How many tokens one run makes", |ui| {
        let mut count = cx.settings.tokens_to_make;
        if drag(ui, "Tokens to make", egui::DragValue::new(&mut count).range(1..=1_000_000).speed(1.0)).changed() {
            actions.push(Action::SetTokensToMake(count));
        }
    });
    line(ui, cx, "Speed", "At most so many tokens/s, to watch it happen", |ui| {
        let mut full = cx.settings.speed.is_none();
        if ui.checkbox(&mut full, "full").clicked() {
            actions.push(Action::SetSpeed(if full { None } else { Some(4.0) }));
        }
        if let Some(mut speed) = cx.settings.speed {
            let value = egui::DragValue::new(&mut speed).range(SPEEDS).speed(0.1).max_decimals(1).suffix(" /s");
            if drag(ui, "Speed limit in tokens per second", value).changed() {
                actions.push(Action::SetSpeed(Some(speed)));
            }
        }
    });
}

fn sampling(ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
    let now = cx.settings.sampling();
    let mut next = now;
    line(ui, cx, "Temperature", "0 always takes the most likely token", |ui| {
        let value = egui::DragValue::new(&mut next.temperature).range(0.0..=5.0).speed(0.01).max_decimals(2);
        drag(ui, "Temperature", value);
        if next.temperature == 0.0 {
            panel::caption(ui, cx.theme, "greedy");
        }
    });
    line(ui, cx, "Top-k", "Only the k most likely tokens", |ui| {
        let mut on = next.top_k.is_some();
        if named_checkbox(ui, &mut on, "Top-k on") {
            next.top_k = on.then_some(40);
        }
        match &mut next.top_k {
            Some(k) => {
                drag(ui, "Top-k", egui::DragValue::new(k).range(1..=1_000_000).speed(0.2));
            }
            None => {
                panel::caption(ui, cx.theme, "all");
            }
        }
    });
    line(ui, cx, "Top-p", "Only the smallest set whose probability reaches p", |ui| {
        let mut on = next.top_p.is_some();
        if named_checkbox(ui, &mut on, "Top-p on") {
            next.top_p = on.then_some(0.9);
        }
        match &mut next.top_p {
            Some(p) => {
                drag(ui, "Top-p", egui::DragValue::new(p).range(0.01..=1.0).speed(0.005).max_decimals(3));
            }
            None => {
                panel::caption(ui, cx.theme, "all");
            }
        }
    });
    line(ui, cx, "Seed", "The same seed gives the same text again", |ui| {
        drag(ui, "Seed", egui::DragValue::new(&mut next.seed).speed(0.1));
        if ui.available_width() > 30.0 && ui.button("+1").on_hover_text("The next seed").clicked() {
            next.seed = next.seed.wrapping_add(1);
        }
    });
    if next != now {
        actions.push(Action::SetSampling(tidy(next)));
    }
}

fn named_checkbox(ui: &mut Ui, on: &mut bool, name: &str) -> bool {
    let response = ui.checkbox(on, "");
    response.widget_info(|| WidgetInfo::selected(Role::CheckBox, true, *on, name));
    response.clicked()
}

/// Drags leave more decimals than are shown.
fn tidy(mut sampling: Sampling) -> Sampling {
    let round = |v: f32, unit: f32| (v * unit).round() / unit;
    sampling.temperature = round(sampling.temperature, 100.0).max(0.0);
    sampling.top_p = sampling.top_p.map(|p| round(p, 1000.0).clamp(0.001, 1.0));
    sampling
}

/// For other panels: what one run makes.
pub fn run_words(cx: &ViewContext<'_>) -> String {
    format!("Press space to make {}.", format::plural(cx.settings.tokens_to_make, "token"))
}
