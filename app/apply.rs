//! What each action does: to the window's own state, or as a command to the engine.

use std::time::{Duration, Instant};

use eframe::egui;
use statescope_engine::protocol::{Command, ModelSource, PromptInput, RunState, TokenId};

use crate::action::Action;
use crate::app::App;
use crate::dialog;
use crate::selection::TimeAxis;
use crate::theme::{Ground, Theme};
use crate::widget::{format, time};

/// How long a note stays.
const NOTE: Duration = Duration::from_secs(5);
const PRESENTATION: f32 = 1.5;
/// A little more than eframe waits between two savings.
const SAVE: Duration = Duration::from_secs(31);

/// What a model without a tokenizer wants.
pub(crate) const NO_TOKENIZER: &str = "This model has no tokenizer: write the prompt as token ids, such as 1, 2, 3.";

/// A prompt written as token ids; none if it is anything else.
pub(crate) fn token_ids(text: &str) -> Option<Vec<TokenId>> {
    let ids = text.split([',', ' ', '\n']).filter(|id| !id.is_empty());
    ids.map(|id| id.parse().ok()).collect()
}

impl App {
    pub(crate) fn act(&mut self, ctx: &egui::Context, action: Action) {
        match action {
            Action::Load(source) => self.load(source),
            Action::OpenFolder | Action::OpenFile => {
                let start = self.settings.recent.first().and_then(|p| p.parent()).map(Into::into);
                dialog::open_model(ctx, &self.answers.0, start, action == Action::OpenFile);
            }
            Action::Opened(path) => self.load(ModelSource::Path(path)),
            Action::CancelLoading => {
                self.engine.cancel_loading();
                self.store.loading = None;
            }
            Action::SetDtype(dtype) => {
                self.settings.dtype = dtype;
                self.dtype = self.settings.dtype();
                if let Some(source) = self.source.clone() {
                    self.load(source);
                }
            }
            Action::SetDevice(device) => {
                self.device = device;
                if let Some(source) = self.source.clone() {
                    self.load(source);
                }
            }
            Action::ReadPrompt => {
                // The next space is meant for the run, not for the prompt.
                ctx.memory_mut(egui::Memory::stop_text_input);
                self.run(action);
            }
            Action::Run
            | Action::Pause
            | Action::Stop
            | Action::StepForward
            | Action::StepBack
            | Action::ContinueFromHere
            | Action::Force { .. } => self.run(action),
            Action::SetPrompt(text) => self.settings.set_prompt(self.store.model.as_deref(), text),
            Action::SetSampling(sampling) => {
                self.settings.set_sampling(&sampling);
                self.engine.send(Command::Sample(sampling));
            }
            Action::SetTokensToMake(count) => self.settings.tokens_to_make = count.max(1),
            Action::SetSpeed(speed) => {
                self.settings.speed = speed;
                self.engine.send(Command::Speed(speed));
            }
            Action::Hover(hover) => self.hover = hover,
            Action::SelectLayer(_)
            | Action::SelectPart(_)
            | Action::SelectHead(_)
            | Action::SelectChannel(_)
            | Action::SelectToken(_)
            | Action::SelectCell { .. }
            | Action::ExtendTo(_)
            | Action::Release => self.select(action),
            Action::SetTimeAxis(axis) => self.time = axis,
            Action::ToggleTheme => {
                self.settings.ground = if self.settings.ground == Ground::Dark { Ground::Light } else { Ground::Dark };
                self.theme = Theme::new(self.settings.ground);
                self.theme.apply(ctx);
            }
            Action::TogglePresentation => {
                self.settings.presentation = !self.settings.presentation;
                self.set_presentation(ctx);
            }
            Action::ToggleHelp => self.help = !self.help,
            Action::ToggleCommands => self.palette.toggle(),
            Action::ResetLayout => self.layout.reset(),
            Action::Maximise(kind) => self.layout.maximise(kind),
            Action::ShowView(kind) => self.layout.show(kind),
            Action::HideView(kind) => self.layout.hide(kind),
            Action::Explain(kind) => {
                self.layout.show(kind);
                self.layout.explained = Some(kind);
            }
            Action::DismissError => self.store.error = None,
            Action::Note(text) => self.note = Some((text, Instant::now() + NOTE)),
            Action::Copy(text) => {
                let count = format::thousands(text.chars().count());
                self.note = Some((format!("Copied {count} characters."), Instant::now() + NOTE));
                ctx.copy_text(text);
            }
            Action::ExportCsv { name, csv } => dialog::export(ctx, &self.answers.0, &name, csv),
        }
        ctx.request_repaint();
        self.save_at.get_or_insert(Instant::now() + SAVE);
    }

    fn load(&mut self, source: ModelSource) {
        self.settings.remember(&source);
        self.source = Some(source.clone());
        self.store.error = None;
        let (dtype, device, memory) = (self.dtype, self.device, self.gpu_memory);
        self.engine.send(Command::Load { source, dtype, device, memory });
    }

    /// A new model reads the prompt at once, so that there is something to see.
    pub(crate) fn model_loaded(&mut self, ctx: &egui::Context) {
        self.source = self.store.model.as_ref().map(|model| model.source.clone());
        self.selection.query = None;
        self.selection.key = None;
        self.selection.range_end = None;
        self.time = TimeAxis::Fit;
        self.clamp_selection();
        // Before the prompt, so that nothing has to be read twice.
        self.observe(ctx);
        self.read_prompt();
    }

    /// Sends the prompt; false if it cannot be.
    fn read_prompt(&mut self) -> bool {
        let Some(model) = &self.store.model else { return false };
        let text = self.settings.prompt(Some(model)).clone();
        let input = match (model.has_tokenizer, token_ids(&text)) {
            (true, _) => PromptInput::Text(text.clone()),
            (false, Some(ids)) => PromptInput::Tokens(ids),
            (false, None) => {
                self.note_no_tokenizer();
                return false;
            }
        };
        self.read_prompt = Some(text);
        self.store.error = None;
        self.store.await_text();
        self.engine.send(Command::Prompt(input));
        true
    }

    fn note_no_tokenizer(&mut self) {
        self.note = Some((NO_TOKENIZER.into(), Instant::now() + NOTE));
    }

    fn run(&mut self, action: Action) {
        if self.store.model.is_none() {
            return;
        }
        let of_the_text = matches!(action, Action::StepBack | Action::ContinueFromHere | Action::Force { .. });
        if of_the_text && !self.store.is_current() {
            return;
        }
        let changed = self.read_prompt.as_ref() != Some(self.settings.prompt(self.store.model.as_deref()));
        match action {
            Action::Run => {
                if changed && !self.read_prompt() {
                    return;
                }
                self.engine.send(Command::Run { tokens: self.settings.tokens_to_make });
            }
            Action::Pause => self.engine.send(Command::Pause),
            Action::Stop => self.engine.send(Command::Stop),
            Action::StepForward => {
                if changed && !self.read_prompt() {
                    return;
                }
                self.engine.send(Command::Step);
            }
            Action::StepBack => {
                if let Some(position) = self.store.position.checked_sub(1).filter(|p| *p > 0) {
                    self.engine.send(Command::Seek { position });
                }
            }
            Action::ReadPrompt => {
                self.read_prompt();
            }
            Action::ContinueFromHere => {
                if let Some(token) = self.selection.query.filter(|t| *t < self.store.length()) {
                    self.engine.send(Command::Seek { position: token + 1 });
                }
                self.release();
                self.engine.send(Command::Run { tokens: self.settings.tokens_to_make });
            }
            Action::Force { position, token } => {
                self.engine.send(Command::Force { position, token });
                self.release();
            }
            _ => {}
        }
        if matches!(self.store.run, RunState::Empty) {
            self.note = Some(("Open a model first.".into(), Instant::now() + NOTE));
        }
    }

    fn select(&mut self, action: Action) {
        let selection = &mut self.selection;
        match action {
            Action::SelectLayer(layer) => selection.layer = layer,
            Action::SelectPart(part) => selection.part = part,
            Action::SelectHead(head) => selection.head = head,
            Action::SelectChannel(channel) => selection.channel = channel,
            Action::SelectToken(token) => {
                selection.query = token;
                selection.key = None;
                selection.range_end = None;
            }
            Action::SelectCell { query, key } => {
                selection.query = Some(query);
                selection.key = Some(key);
                selection.range_end = None;
            }
            Action::ExtendTo(token) => {
                if selection.query.is_none() {
                    selection.query = self.store.position.checked_sub(1);
                }
                selection.range_end = Some(token);
            }
            // One thing at a time, the topmost first.
            Action::Release if self.help => self.help = false,
            Action::Release if self.layout.explained.is_some() => self.layout.explained = None,
            Action::Release if selection.query.is_none() && self.layout.maximised.is_some() => {
                self.layout.maximised = None
            }
            Action::Release => self.release(),
            _ => {}
        }
        if let Some(token) = self.selection.range_end.or(self.selection.query)
            && let Some(axis) = time::reveal(&self.time, token)
        {
            self.time = axis;
        }
    }

    fn release(&mut self) {
        self.selection.query = None;
        self.selection.key = None;
        self.selection.range_end = None;
    }

    /// Another model or a shorter text may leave the selection outside.
    pub(crate) fn clamp_selection(&mut self) {
        let selection = &mut self.selection;
        if let Some(model) = &self.store.model {
            selection.layer = selection.layer.min(model.layers.len().saturating_sub(1));
            if let Some(layer) = model.layers.get(selection.layer) {
                selection.part = selection.part.min(layer.parts.len().saturating_sub(1));
                if let Some(part) = layer.parts.get(selection.part) {
                    selection.head = selection.head.min(part.heads.saturating_sub(1));
                    selection.channel = selection.channel.filter(|c| *c < part.head_dim);
                }
            }
        }
        // While a prompt is being read its tokens are known before they are processed, so length is the bound.
        let inside = |token: &usize| *token < self.store.tokens.len();
        selection.query = selection.query.filter(inside);
        selection.key = selection.key.filter(inside);
        selection.range_end = selection.range_end.filter(inside).filter(|_| selection.query.is_some());
    }

    pub(crate) fn set_presentation(&self, ctx: &egui::Context) {
        ctx.set_zoom_factor(if self.settings.presentation { PRESENTATION } else { 1.0 });
    }

    /// What is due at a time, since an idle window paints nothing by itself: the end of a note, and saving, for which eframe
    /// looks at its clock only while it paints.
    pub(crate) fn timers(&mut self, ctx: &egui::Context) {
        if let Some(at) = self.save_at {
            ctx.request_repaint_after(at.saturating_duration_since(Instant::now()));
        }
        if let Some((_, until)) = &self.note {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.note = None;
            } else {
                ctx.request_repaint_after(left);
            }
        }
    }
}
