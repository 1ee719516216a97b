//! The top bar: which model, how fast, how large, at what cost; layout, theme, help.

use eframe::egui::{self, RichText, Role, Sense, Ui, WidgetInfo};
use statescope_engine::protocol::{Device, DeviceInfo, Dtype, ModelSource, RunState};

use super::{ViewContext, ViewKind};
use crate::action::Action;
use crate::gpu::Gpu;
use crate::layout::Layout;
use crate::theme::{Theme, space};
use crate::widget::format;

/// What the next load asks for, and what could be asked for.
pub struct Place<'a> {
    pub dtype: Option<Dtype>,
    pub device: Device,
    pub gpu: &'a Gpu,
    /// Bytes of its memory that may be taken.
    pub gpu_memory: Option<usize>,
}

pub fn model_bar(ui: &mut Ui, cx: &ViewContext<'_>, layout: &Layout, place: &Place<'_>, actions: &mut Vec<Action>) {
    ui.horizontal(|ui| {
        ui.set_height(24.0);
        models(ui, cx, actions);
        if ui.button("Open folder…").on_hover_text("Ctrl+O").clicked() {
            actions.push(Action::OpenFolder);
        }
        device(ui, cx, place, actions);
        ui.add_space(space::S);
        // What stands at the right is placed first; the facts take what is left.
        let narrow = ui.available_width() < 640.0;
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            tools(ui, cx, layout, actions);
            if cx.store.loading.is_none() {
                status(ui, cx, narrow);
            }
            ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| match &cx.store.loading {
                Some(loading) => progress(ui, cx, loading, actions),
                None => facts(ui, cx),
            });
        });
    });
}

fn models(ui: &mut Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
    let model = cx.store.model.as_deref();
    let name = model.map_or("No model", |m| m.name.as_str());
    let title = RichText::new(format!("{name}  ▾")).font(cx.theme.strong());
    let response = ui.menu_button(title, |ui| {
        ui.set_min_width(300.0);
        if !statescope_engine::builtin::list().is_empty() {
            caption(ui, cx.theme, "Built-in");
        }
        for builtin in statescope_engine::builtin::list() {
            let chosen = model.is_some_and(|m| m.source == ModelSource::Builtin(builtin.name.to_owned()));
            let mut text = egui::text::LayoutJob::default();
            text.append(builtin.name, 0.0, egui::TextFormat::simple(cx.theme.strong(), cx.theme.text));
            text.append(builtin.summary, space::S, egui::TextFormat::simple(cx.theme.body(), cx.theme.text_muted));
            if ui.selectable_label(chosen, text).clicked() {
                actions.push(Action::Load(ModelSource::Builtin(builtin.name.to_owned())));
                ui.close();
            }
        }
        ui.separator();
        if ui.add(egui::Button::new("Open folder…").shortcut_text("Ctrl+O")).clicked() {
            actions.push(Action::OpenFolder);
            ui.close();
        }
        if ui.button("Open GGUF file…").clicked() {
            actions.push(Action::OpenFile);
            ui.close();
        }
        if !cx.settings.recent.is_empty() {
            caption(ui, cx.theme, "Recent");
        }
        for path in &cx.settings.recent {
            let name =
                path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
            if ui.button(name).on_hover_text(path.display().to_string()).clicked() {
                actions.push(Action::Load(ModelSource::Path(path.clone())));
                ui.close();
            }
        }
    });
    response.response.widget_info(|| WidgetInfo::labeled(Role::Button, true, format!("Model: {name}")));
}

/// Where it runs, and what the weights are held in.
fn device(ui: &mut Ui, cx: &ViewContext<'_>, place: &Place<'_>, actions: &mut Vec<Action>) {
    let own = cx.store.model.as_ref().map_or_else(|| "no weights".to_owned(), |m| m.dtype.to_string());
    let current = cx.store.model.as_ref().map_or(place.device, |m| m.device.device).to_string().to_uppercase();
    let title = if cx.store.model.is_some() { format!("{current} · {own}  ▾") } else { format!("{current}  ▾") };
    let title = RichText::new(title).color(cx.theme.text_muted);
    let response = ui.menu_button(title, |ui| {
        ui.set_max_width(320.0);
        caption(ui, cx.theme, "Runs on");
        let mut choice = |ui: &mut Ui, device, name: &str| {
            if ui.selectable_label(place.device == device, name).clicked() {
                actions.push(Action::SetDevice(device));
                ui.close();
            }
        };
        choice(ui, Device::Cpu, "CPU");
        match place.gpu.found() {
            Some(Ok(name)) => {
                choice(ui, Device::Cuda, name);
                if let Some(text) = memory_note(cx, place) {
                    note(ui, cx.theme, &text);
                }
            }
            Some(Err(reason)) => note(ui, cx.theme, &format!("CUDA: {reason}.")),
            None => note(ui, cx.theme, "CUDA: looking for a GPU…"),
        }
        for what in cx.store.model.iter().flat_map(|m| &m.device.on_cpu) {
            note(ui, cx.theme, &format!("On the CPU all the same: {what}."));
        }
        ui.separator();
        caption(ui, cx.theme, "Weights are held in");
        for value in [None].into_iter().chain(Dtype::ALL.map(Some)) {
            let name = value.map_or_else(|| "the file's own type".to_owned(), |dtype| dtype.to_string());
            if ui.selectable_label(place.dtype == value, name).clicked() {
                actions.push(Action::SetDtype(value.map(|dtype| dtype.to_string())));
                ui.close();
            }
        }
        ui.separator();
        note(ui, cx.theme, "Sums are always in f32.");
    });
    response
        .response
        .widget_info(|| WidgetInfo::labeled(Role::Button, true, format!("Device {current}, weights in {own}")));
}

/// How much of the GPU's memory is taken, and how much may be.
fn memory_note(cx: &ViewContext<'_>, place: &Place<'_>) -> Option<String> {
    let running = cx.store.model.as_deref().map(|model| &model.device).filter(|device| device.device == Device::Cuda);
    match (running, place.gpu_memory) {
        (Some(device), _) => Some(format!("Memory in use: {}.", memory(device, cx.store.performance.device_bytes))),
        (None, Some(allowed)) => Some(format!("At most {} of its memory may be taken.", format::bytes(allowed))),
        (None, None) => None,
    }
}

/// 1.2 GB of 4 GB allowed.
pub fn memory(device: &DeviceInfo, used: usize) -> String {
    match device.allowed {
        Some(allowed) => format!("{} of {} allowed", format::bytes(used), format::bytes(allowed)),
        None => format!("{} of {}", format::bytes(used), format::bytes(device.memory)),
    }
}

fn progress(ui: &mut Ui, cx: &ViewContext<'_>, loading: &crate::store::Loading, actions: &mut Vec<Action>) {
    let (rect, response) = ui.allocate_exact_size(egui::vec2(140.0, 6.0), Sense::hover());
    let share = loading.fraction.clamp(0.0, 1.0);
    ui.painter().rect_filled(rect, 3.0, cx.theme.control);
    ui.painter().rect_filled(rect.with_max_x(rect.min.x + share * rect.width()), 3.0, cx.theme.text_muted);
    response
        .widget_info(|| WidgetInfo::labeled(Role::ProgressIndicator, true, format!("Loading {:.0} %", share * 100.0)));
    let what = format::shorten(&loading.what, 48);
    ui.label(RichText::new(format!("{what} {:.0} %", share * 100.0)).color(cx.theme.text_muted));
    if ui.button("Cancel").clicked() {
        actions.push(Action::CancelLoading);
    }
}

/// 4.5 M parameters, 6 layers; the strip beneath says of which kinds.
fn facts(ui: &mut Ui, cx: &ViewContext<'_>) {
    let text = match cx.store.model.as_deref() {
        Some(model) => {
            format!("{} parameters · {}", format::count(model.parameters), format::plural(model.layers.len(), "layer"))
        }
        None => "Choose a built-in model or open a folder.".into(),
    };
    ui.add(egui::Label::new(RichText::new(text).color(cx.theme.text_muted)).truncate());
}

/// Speed, memory and the cost of looking, from the right.
fn status(ui: &mut Ui, cx: &ViewContext<'_>, narrow: bool) {
    let (theme, performance) = (cx.theme, &cx.store.performance);
    if cx.store.model.is_none() {
        return;
    }
    let mut parts = vec![format!("state {}", format::bytes(performance.state_bytes))];
    parts.push(format!("KV {}", format::bytes(performance.kv_bytes)));
    if !narrow && performance.model_ms > 0.0 {
        let cost = (performance.probes_ms + performance.transfer_ms) / performance.model_ms;
        parts.push(format!("probes +{:.0} %", 100.0 * cost));
    }
    let text = parts.join(" · ");
    ui.add(egui::Label::new(RichText::new(text).color(theme.text_muted)).wrap_mode(egui::TextWrapMode::Extend)).on_hover_text(
        "Bytes of the recurrent state (constant in the length) and of the KV cache (grows with it); what the probes of the \
         panels in sight add to the model's time.",
    );
    let (words, colour) = match cx.store.run {
        // A run's first token has no rate yet.
        RunState::Running if performance.tokens_per_s == 0.0 => ("running".to_owned(), theme.good),
        RunState::Running => (format::rate(performance.tokens_per_s), theme.good),
        RunState::Reading => ("reading".to_owned(), theme.warning),
        RunState::Paused => ("paused".to_owned(), theme.text_faint),
        RunState::Empty => ("no model".to_owned(), theme.text_faint),
    };
    // Fixed width, so that the bar does not tremble with the digits.
    let width = 124.0;
    ui.allocate_ui_with_layout(egui::vec2(width, 20.0), egui::Layout::left_to_right(egui::Align::Center), |ui| {
        ui.set_min_width(width);
        let (rect, _) = ui.allocate_exact_size(egui::vec2(8.0, 8.0), Sense::hover());
        ui.painter().circle_filled(rect.center(), 3.5, colour);
        ui.label(RichText::new(words).color(theme.text));
    });
}

fn tools(ui: &mut Ui, cx: &ViewContext<'_>, layout: &Layout, actions: &mut Vec<Action>) {
    let help = ui.button("?");
    help.widget_info(|| WidgetInfo::labeled(Role::Button, true, "Help"));
    if help.on_hover_text("Keys and help (F1)").clicked() {
        actions.push(Action::ToggleHelp);
    }
    let next = if cx.theme.is_dark() { "Light" } else { "Dark" };
    if ui.button(next).on_hover_text("Dark or light (T)").clicked() {
        actions.push(Action::ToggleTheme);
    }
    ui.menu_button("Layout ▾", |ui| {
        ui.set_min_width(200.0);
        for (k, kind) in ViewKind::DOCKED.into_iter().enumerate() {
            let mut shown = layout.has(kind);
            let response = ui.checkbox(&mut shown, kind.name());
            if k < 9 {
                key(ui, cx.theme, &response, &(k + 1).to_string());
            }
            if response.clicked() {
                actions.push(if shown { Action::ShowView(kind) } else { Action::HideView(kind) });
            }
        }
        ui.separator();
        let mut large = cx.settings.presentation;
        let response = ui.checkbox(&mut large, "Presentation size");
        key(ui, cx.theme, &response, "P");
        if response.clicked() {
            actions.push(Action::TogglePresentation);
            ui.close();
        }
        if ui.button("Reset layout").clicked() {
            actions.push(Action::ResetLayout);
            ui.close();
        }
        if ui.add(egui::Button::new("Commands…").shortcut_text("Ctrl+K")).clicked() {
            actions.push(Action::ToggleCommands);
            ui.close();
        }
    });
    ui.add_space(space::S);
}

/// The key of a menu's line, at its right.
fn key(ui: &Ui, theme: &Theme, line: &egui::Response, key: &str) {
    let at = egui::pos2(ui.min_rect().right() - space::XS, line.rect.center().y);
    ui.painter().text(at, egui::Align2::RIGHT_CENTER, key, theme.small(), theme.text_faint);
}

/// A line that is no choice.
fn note(ui: &mut Ui, theme: &Theme, text: &str) {
    ui.label(RichText::new(text).font(theme.small()).color(theme.text_muted));
}

fn caption(ui: &mut Ui, theme: &Theme, text: &str) {
    ui.label(RichText::new(text).font(theme.small()).color(theme.text_faint));
}
