//! The window: events into the store, views over the store, actions out. Nothing here waits.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use eframe::egui::{self, Panel};
use statescope_engine::handle::Handle;
use statescope_engine::protocol::{Command, Device, Dtype, ModelSource, RunState};

use crate::action::Action;
use crate::gpu::Gpu;
use crate::keymap::{self, Entry, Now};
use crate::layout::Layout;
use crate::observer::Observer;
use crate::pace::Pace;
use crate::selection::{Hover, Selection, TimeAxis};
use crate::settings::{self, Saved, Settings};
use crate::store::Store;
use crate::theme::{self, Theme};
use crate::view::commands::Palette;
use crate::view::{ViewContext, Views, banner, help, model_bar, strip, timeline};

/// Frames that the time shown is averaged over.
const FRAMES: f32 = 30.0;

/// How the window starts.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Without one: a built-in one.
    pub model: Option<ModelSource>,
    pub dtype: Option<Dtype>,
    /// Where to compute.
    pub device: Device,
    /// Bytes of a GPU's memory to take at most; what is free if none.
    pub gpu_memory: Option<usize>,
    /// Also look for the system's fonts; tests compare pictures and do not.
    pub system_fonts: bool,
    /// Shared with what wakes the window when the engine has news.
    pub pace: Pace,
}

/// The application.
pub struct App {
    pub(crate) engine: Handle,
    pub store: Store,
    pub selection: Selection,
    pub settings: Settings,
    pub(crate) hover: Hover,
    pub(crate) time: TimeAxis,
    pub(crate) theme: Theme,
    pub layout: Layout,
    pub(crate) views: Views,
    pub(crate) keys: Vec<Entry>,
    pub(crate) palette: Palette,
    pub(crate) help: bool,
    /// A line for a moment, and when it goes.
    pub(crate) note: Option<(String, Instant)>,
    /// The prompt as it was last read.
    pub(crate) read_prompt: Option<String>,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) device: Device,
    pub(crate) gpu_memory: Option<usize>,
    /// The GPU that can be chosen, or why there is none; until that is known, nothing.
    pub(crate) gpu: Gpu,
    pub(crate) source: Option<ModelSource>,
    /// When something that is saved may have changed.
    pub(crate) save_at: Option<Instant>,
    pub(crate) answers: (Sender<Action>, Receiver<Action>),
    pub(crate) observer: Observer,
    /// Processor time of a frame, averaged over the last ones.
    pub(crate) frame_ms: Option<f32>,
    pace: Pace,
}

impl App {
    /// A window over `engine`, which may be anyone's.
    pub fn new(cc: &eframe::CreationContext<'_>, engine: Handle, options: Options) -> Self {
        let saved = Saved::read(cc.storage);
        theme::install_fonts(&cc.egui_ctx, options.system_fonts);
        let theme = Theme::new(saved.settings.ground);
        theme.apply(&cc.egui_ctx);
        let views = saved.views();
        let dtype = options.dtype.or(saved.settings.dtype());
        let mut app = Self {
            engine,
            store: Store::default(),
            selection: Selection::default(),
            settings: saved.settings,
            hover: Hover::default(),
            time: TimeAxis::Fit,
            theme,
            layout: saved.layout,
            views,
            keys: keymap::table(),
            palette: Palette::default(),
            help: false,
            note: None,
            read_prompt: None,
            dtype,
            device: options.device,
            gpu_memory: options.gpu_memory,
            gpu: Gpu::look_for(&cc.egui_ctx),
            source: None,
            save_at: None,
            answers: channel(),
            observer: Observer::default(),
            frame_ms: None,
            pace: options.pace,
        };
        if app.settings.presentation {
            app.set_presentation(&cc.egui_ctx);
        }
        if let Some(source) = options.model.or_else(settings::default_model) {
            app.act(&cc.egui_ctx, Action::Load(source));
        }
        app.engine.send(Command::Speed(app.settings.speed));
        app.engine.send(Command::Sample(app.settings.sampling()));
        app
    }

    /// All panels; returns what the user did.
    fn panels(&mut self, ui: &mut egui::Ui) -> Vec<Action> {
        let mut actions = Vec::new();
        let Self {
            store,
            selection,
            hover,
            time,
            theme,
            settings,
            layout,
            views,
            keys,
            palette,
            help,
            note,
            dtype,
            device,
            gpu_memory,
            gpu,
            frame_ms,
            ..
        } = self;
        let cx = ViewContext { store, selection, hover, time, theme, settings, frame_ms: *frame_ms };
        let bar = egui::Frame::new().fill(theme.panel).inner_margin(egui::Margin::symmetric(8, 5));
        Panel::top("model bar").frame(bar).show_separator_line(false).show(ui, |ui| {
            model_bar::model_bar(
                ui,
                &cx,
                layout,
                &model_bar::Place { dtype: *dtype, device: *device, gpu, gpu_memory: *gpu_memory },
                &mut actions,
            );
        });
        strip::layer_strip(ui, &cx, &mut actions);
        banner::banner(ui, &cx, &mut actions);
        Panel::bottom("timeline").frame(bar).show_separator_line(false).show(ui, |ui| {
            timeline::timeline(ui, &cx, note.as_ref().map(|(text, _)| text.as_str()), &mut actions);
        });
        egui::CentralPanel::default()
            .frame(egui::Frame::new().fill(theme.backdrop).inner_margin(egui::Margin::symmetric(0, 2)))
            .show(ui, |ui| layout.ui(ui, views, &cx, &mut actions));
        palette.ui(ui.ctx(), &cx, keys, &mut actions);
        help::help(ui.ctx(), theme, keys, help);
        actions
    }
}

impl eframe::App for App {
    fn logic(&mut self, ctx: &egui::Context, _frame: &mut eframe::Frame) {
        self.drain(ctx);
        self.clamp_selection();
        self.observe(ctx);
    }

    fn ui(&mut self, ui: &mut egui::Ui, frame: &mut eframe::Frame) {
        if let Some(seconds) = frame.info().cpu_usage {
            let (ms, before) = (1000.0 * seconds, self.frame_ms.unwrap_or(1000.0 * seconds));
            self.frame_ms = Some(before + (ms - before) / FRAMES);
        }
        let running = self.store.run == RunState::Running && self.settings.speed.is_none();
        self.pace.drawn(frame.info().cpu_usage.map(Duration::from_secs_f32), running);
        let ctx = ui.ctx().clone();
        if !self.palette.is_open() {
            for index in keymap::pressed(&ctx, &self.keys) {
                let now = Now { store: &self.store, selection: &self.selection };
                if let Some(action) = (self.keys[index].act)(&now) {
                    self.act(&ctx, action);
                }
            }
        }
        let actions = self.panels(ui);
        let mut hover = Hover::default();
        for action in actions {
            match action {
                Action::Hover(over) => hover = over,
                action => self.act(&ctx, action),
            }
        }
        if hover != self.hover {
            // The other views show it in the next frame.
            self.hover = hover;
            ctx.request_repaint();
        }
        self.timers(&ctx);
        self.clamp_selection();
        self.observe(&ctx);
    }

    fn save(&mut self, storage: &mut dyn eframe::Storage) {
        self.save_at = None;
        Saved::write(storage, &self.settings, &self.layout, &self.views);
    }

    fn clear_color(&self, _visuals: &egui::Visuals) -> [f32; 4] {
        self.theme.backdrop.to_normalized_gamma_f32()
    }
}
