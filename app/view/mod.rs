//! The panels. A view states what it reads (`probes`) apart from how it draws (`ui`), and returns what the user did as actions.

use std::collections::BTreeMap;

use eframe::egui;
use statescope_engine::protocol::Probe;

use crate::action::Action;
use crate::selection::{Hover, Selection, TimeAxis};
use crate::settings::Settings;
use crate::store::Store;
use crate::theme::Theme;

pub mod banner;
pub mod commands;
pub mod gates;
pub mod heads;
pub mod help;
pub mod inspector;
pub mod layers;
pub mod logits;
pub mod mixing;
pub mod model_bar;
pub mod performance;
pub mod prompt;
pub mod quantity;
pub mod reach;
pub mod state;
pub mod strip;
pub mod timeline;
pub mod tokens;

/// Every panel that can be docked; the timeline is always at the bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum ViewKind {
    Prompt,
    Tokens,
    Layers,
    State,
    Gates,
    Mixing,
    Heads,
    Logits,
    Inspector,
    Performance,
    Timeline,
    Reach,
}

impl ViewKind {
    /// The dockable panels; the first nine have the keys 1 to 9.
    pub const DOCKED: [Self; 11] = [
        Self::Prompt,
        Self::Tokens,
        Self::Layers,
        Self::State,
        Self::Gates,
        Self::Mixing,
        Self::Heads,
        Self::Logits,
        Self::Inspector,
        Self::Performance,
        Self::Reach,
    ];

    /// What the panel is called where its full title does not fit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prompt => "Prompt and run",
            Self::Tokens => "Tokens",
            Self::Layers => "Layer map",
            Self::State => "State",
            Self::Gates => "Gates",
            Self::Mixing => "Mixing matrix",
            Self::Heads => "All heads",
            Self::Logits => "Next token",
            Self::Inspector => "Inspector",
            Self::Performance => "Performance",
            Self::Timeline => "Timeline",
            Self::Reach => "Reach",
        }
    }
}

/// What a view may look at while it draws.
pub struct ViewContext<'a> {
    pub store: &'a Store,
    pub selection: &'a Selection,
    /// Of the previous frame, so that all views agree within one frame.
    pub hover: &'a Hover,
    pub time: &'a TimeAxis,
    pub theme: &'a Theme,
    pub settings: &'a Settings,
    /// What a frame of the window took of late.
    pub frame_ms: Option<f32>,
}

impl ViewContext<'_> {
    /// The token looked at: the pinned one, or the newest processed one.
    pub fn cursor(&self) -> Option<usize> {
        let newest = self.store.position.min(self.store.length()).checked_sub(1);
        match self.selection.query {
            Some(token) if token < self.store.length() => Some(token),
            _ => newest,
        }
    }
}

/// A panel.
pub trait View {
    /// The title bar: names layer, head, quantity and reduction.
    fn title(&self, cx: &ViewContext<'_>) -> String;
    /// Three sentences and the formula, shown by the `?` of the panel.
    fn explanation(&self, cx: &ViewContext<'_>) -> String;
    /// What the view needs from the engine right now.
    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>);
    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>);
    /// The view's own settings (chosen quantity, scale …), saved between runs.
    fn save(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    fn restore(&mut self, _saved: &serde_json::Value) {}
}

/// All docked panels.
pub type Views = BTreeMap<ViewKind, Box<dyn View>>;

/// One of each.
pub fn all() -> Views {
    let mut views: Views = BTreeMap::new();
    views.insert(ViewKind::Prompt, Box::<prompt::PromptView>::default());
    views.insert(ViewKind::Tokens, Box::<tokens::TokensView>::default());
    views.insert(ViewKind::Layers, Box::<layers::LayersView>::default());
    views.insert(ViewKind::State, Box::<state::StateView>::default());
    views.insert(ViewKind::Gates, Box::<gates::GatesView>::default());
    views.insert(ViewKind::Mixing, Box::<mixing::MixingView>::default());
    views.insert(ViewKind::Heads, Box::<heads::HeadsView>::default());
    views.insert(ViewKind::Logits, Box::<logits::LogitsView>::default());
    views.insert(ViewKind::Inspector, Box::<inspector::InspectorView>::default());
    views.insert(ViewKind::Reach, Box::<reach::ReachView>::default());
    views.insert(ViewKind::Performance, Box::<performance::PerformanceView>::default());
    views
}
