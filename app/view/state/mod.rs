//! State: what the selected mixer holds at the token looked at. For attention, the KV cache as what it is; for a short convolution, the
//! inputs it still sees.

mod cache;
mod channels;
mod grid;

use eframe::egui;
use statescope_engine::protocol::{Fold, MixerKind, Point, Probe, Reduction};

use crate::action::Action;
use crate::store::Series;
use crate::theme::space;
use crate::view::quantity::plate::{self, Colours, Place};
use crate::view::quantity::{Subject, exact, no_mixer, quoted};
use crate::view::{View, ViewContext, ViewKind};
use crate::widget::heatmap::{HeatmapResponse, ValueScale};
use crate::widget::panel;
use crate::widget::series::{Lines, SeriesPlot};

/// States larger than this are pooled for the overview; the selected head stays whole.
pub use grid::tiles;

const WHOLE: usize = 1 << 16;
/// Cells a side of a pooled head.
const POOLED: u16 = 32;
/// Height of the norm over time.
const NORMS: f32 = 52.0;

/// What channels are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum Rank {
    HalfLife,
    Write,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Settings {
    rank: Rank,
    /// Of state entries.
    colours: Colours,
    /// Of cached keys and values.
    cache: Colours,
}

impl Default for Settings {
    fn default() -> Self {
        let colours = Colours::new(ValueScale::Symlog);
        Self { rank: Rank::HalfLife, colours, cache: Colours::new(ValueScale::Linear) }
    }
}

#[derive(Default)]
pub struct StateView {
    settings: Settings,
}

impl View for StateView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        let Some(subject) = Subject::of(cx) else { return "State".into() };
        let m = subject.mixer;
        let at = subject
            .cursor
            .map_or(String::new(), |t| format!(" · token {t}{}", if subject.live { " (live)" } else { "" }));
        match subject.kind() {
            MixerKind::Hyena => format!("Cache · {} · k and v of channel {}", subject.layer_name(), subject.head),
            MixerKind::Attention => {
                format!("KV cache · {} · keys and values of KV head {}", subject.layer_name(), subject.group())
            }
            MixerKind::Mamba1 | MixerKind::Mamba3Mimo => {
                let rank = if self.settings.rank == Rank::HalfLife { "half-life" } else { "write" };
                format!("State · {} · {} × {} by {rank}{at}", subject.layer_name(), m.heads, m.state_dim)
            }
            MixerKind::ShortConv => {
                format!("State · {} · last {} of {} channels{at}", subject.layer_name(), inputs(m.state_dim), m.heads)
            }
            MixerKind::FeedForward => format!("State · {}", subject.layer_name()),
            MixerKind::S4 | MixerKind::S4d | MixerKind::H3 => {
                format!("State · {} · {} channels × {}{at}", subject.layer_name(), m.heads, m.state_dim)
            }
            MixerKind::Rwkv4 | MixerKind::RgLru | MixerKind::Slstm => {
                format!("State · {} · {} channels{at}", subject.layer_name(), m.heads)
            }
            MixerKind::Mamba2
            | MixerKind::Mamba3
            | MixerKind::DeltaRule
            | MixerKind::LinearAttention
            | MixerKind::Retention
            | MixerKind::Gla
            | MixerKind::Hgrn2
            | MixerKind::H3Heads
            | MixerKind::Rwkv5
            | MixerKind::Rwkv6
            | MixerKind::Rwkv7
            | MixerKind::Mlstm => {
                format!("State · {} · {} heads × {} × {}{at}", subject.layer_name(), m.heads, m.head_dim, m.state_dim)
            }
        }
    }

    fn explanation(&self, cx: &ViewContext<'_>) -> String {
        match Subject::of(cx).map(|subject| subject.kind()) {
            Some(MixerKind::Attention) => {
                "Attention keeps no state: it keeps the key and the value of every token, which grows with the text. \
                 Each column is a token, each row one entry of its key k = W_k r or value v = W_v r. \
                 The shading shows what a query could find; nothing is ever forgotten."
            }
            Some(MixerKind::Slstm) => {
                "Each channel keeps a sum c_t = f_t c_{t−1} + i_t tanh(z̃_t) and beside it the sum of the weights, n_t = f_t n_{t−1} + i_t; it gives h_t = σ(õ_t) c_t / n_t, and the gates of the next token see h_t. \
                 What is drawn is c as the run keeps it, e^{−m} times the plain sum: m, the largest exponent so far, only keeps the numbers small. \
                 Channels run from left to right; colours are signed, zero is neutral."
            }
            Some(MixerKind::S4 | MixerKind::S4d) => {
                "Each channel is a linear system of N/2 complex numbers that is the same at every token, x_t = Ā x_{t−1} + B̄ u_t, read as y_t = 2 Re C x_t + D u_t. \
                 A number turns by the angle of Ā[n] and shrinks by its size; in S4 a matrix of rank one couples them. Real parts come first, imaginary parts after; colours are signed, zero is neutral. \
                 The convolution y = K ∗ u is another form of the same: tokens that are read together take it, and leave the state that the recurrence would."
            }
            Some(MixerKind::H3) => {
                "Each channel is a diagonal linear system of N/2 complex numbers that is the same at every token, x_t = Ā x_{t−1} + B̄ (k̄_t v_t), read as y_t = q_t (2 Re C x_t + D k̄_t v_t): k̄, the key after its shift, decides what enters, q what leaves. \
                 Real parts come first, imaginary parts after; colours are signed, zero is neutral."
            }
            Some(MixerKind::H3Heads) => {
                "Each head has a diagonal linear system of complex numbers that is the same at every token, for every product of a channel of v and one of k̄: X_t = Ā X_{t−1} + B̄ (v_t k̄_tᵀ), read as y_t = (2 Re C X_t + D v_t k̄_tᵀ) q_t. \
                 The selected head is large, rows are the channels of v; along a row stand the systems of the channels of k̄ one after the other, real parts first, imaginary parts after; colours are signed, zero is neutral."
            }
            Some(MixerKind::Hyena) => {
                "Hyena has no state of fixed size: its filter is as long as the text, so it keeps k and v of every token in sight, as attention does, and of an order above 2 what enters each further filter. \
                 Each column is a token; the filter weighs k_s v_s of a token by how long ago it was, whatever it says."
            }
            Some(MixerKind::Mamba1) => {
                "Each channel has a state of N numbers, S_t[n] = exp(Δ_t A[n]) S_{t−1}[n] + Δ_t B_t[n] x_t, read as y_t = Σ_n C_t[n] S_t[n] + D x_t. \
                 Channels run from left to right in the order named in the title, entries n from top to bottom; colours are signed, zero is neutral. \
                 Beneath, the norm of the selected channel's state and of all channels' over time."
            }
            Some(MixerKind::Mamba3) => {
                "Each head has a matrix of P × N numbers, S_t = α_t (S_{t−1} + (1 − λ_t) Δ_t x_{t−1} B_{t−1}ᵀ) + λ_t Δ_t x_t B_tᵀ, read as y_t = S_t C_t + D x_t: a token is written in two parts, the second with the token after it. \
                 B and C are turned by an angle that grows with Δ, so that entries can swing. \
                 The selected head is large, rows are the P values and columns the N state entries; colours are signed, zero is neutral."
            }
            Some(MixerKind::Mamba3Mimo) => {
                "Each channel has a state of N numbers, S_t = α_t (S_{t−1} + (1 − λ_t) Δ_t x_{t−1} k_{t−1}) + λ_t Δ_t x_t k_t with the key k = Σ_ρ X^ρ B^ρ of r ranks, and is read r times: y_t = Σ_ρ g^ρ_t (S_t·C^ρ_t + D X^ρ x_t). The channels of a head share α, λ, Δ, B and C. \
                 Channels run from left to right in the order named in the title, entries n from top to bottom; colours are signed, zero is neutral. \
                 Beneath, the norm of the selected channel's state and of all channels' over time."
            }
            Some(MixerKind::ShortConv) => {
                "A short convolution of K taps holds the last K − 1 inputs of every channel, B_t ⊙ x_t, and nothing else: after K − 1 tokens an input is gone whole. \
                 Channels run from left to right, the strongest write of the token first; inputs from top to bottom, the newest last; colours are signed, zero is neutral. \
                 It reads y_t = C_t ⊙ Σ_k W_k ⊙ (B ⊙ x)_{t−K+1+k}; beneath, the norm of the selected channel's inputs and of all channels' over time."
            }
            Some(MixerKind::DeltaRule) => {
                "Each head has a matrix of D_v × D_k numbers, S_t = α_t S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ, read as y_t = S_t q_t: what was held under the key k_t fades by β_t and v_t takes its place. \
                 The selected head is large, rows are the values V and columns the key entries K; colours are signed, zero is neutral. \
                 Beneath, the norm of the selected head's state and of all heads' over time; the number at a small map is ‖S‖ of its head."
            }
            Some(MixerKind::Rwkv4) => {
                "Each channel keeps one number: the weighted mean of all values so far, h_t = (1 − g_t) h_{t−1} + g_t v_t. \
                 g_t is the weight e^k of the token in the sum of all weights, of which those before have faded by e^w a token. \
                 Channels run from left to right; colours are signed, zero is neutral. Beneath, the selected channel's number and all channels' norm over time."
            }
            Some(MixerKind::RgLru) => {
                "Each channel keeps one number, h_t = a_t h_{t−1} + √(1 − a_t²) i_t x_t, with a recurrence gate in a and an input gate i. \
                 Channels run from left to right; colours are signed, zero is neutral. Beneath, the selected channel's number and all channels' norm over time."
            }
            Some(MixerKind::Rwkv5) => {
                "Each head has a matrix of D_v × D_k numbers, S_t = S_{t−1} diag(w) + v_t k_tᵀ, read before it is written: y_t = S_{t−1} r_t + (Σ r u k) v_t. Each key entry fades by a w of its own, the same at every token. \
                 The selected head is large, rows are the values V and columns the key entries K; colours are signed, zero is neutral."
            }
            Some(MixerKind::Rwkv6) => {
                "Each head has a matrix of D_v × D_k numbers, S_t = S_{t−1} diag(w_t) + v_t k_tᵀ, read before it is written: y_t = S_{t−1} r_t + (Σ r u k) v_t. \
                 The selected head is large, rows are the values V and columns the key entries K; colours are signed, zero is neutral."
            }
            Some(MixerKind::Rwkv7) => {
                "Each head has a matrix of D_v × D_k numbers, S_t = S_{t−1} diag(w_t) − (S_{t−1} κ_t)(a_t ⊙ κ_t)ᵀ + v_t k_tᵀ, read as y_t = S_t r_t: each key entry fades by w, and what was held under κ is taken out at the rate a. \
                 The selected head is large, rows are the values V and columns the key entries K; colours are signed, zero is neutral."
            }
            Some(MixerKind::Mlstm) => {
                "Each head has a matrix of D_v × D_k numbers, C_t = f_t C_{t−1} + i_t v_t k_tᵀ, read as C_t q_t over a normaliser. \
                 What is drawn is e^{−m} times that, as the run keeps it: m_t, the largest exponent so far, only keeps the numbers small. \
                 The selected head is large, rows are the values V and columns the key entries K; colours are signed, zero is neutral."
            }
            Some(MixerKind::LinearAttention | MixerKind::Retention | MixerKind::Gla | MixerKind::Hgrn2) => {
                "Each head has a matrix of D_v × D_k numbers, S_t = S_{t−1} Λ_t + v_t k_tᵀ, read as y_t = S_t q_t: Λ is 1 in linear attention, one fixed factor a head in RetNet, one factor for each key entry in GLA and HGRN2. \
                 The selected head is large, rows are the values V and columns the key entries K; colours are signed, zero is neutral. \
                 Beneath, the norm of the selected head's state and of all heads' over time; the number at a small map is ‖S‖ of its head."
            }
            Some(MixerKind::FeedForward) => {
                "A layer that is feed-forward alone treats every token by itself: it mixes nothing and keeps nothing from one token to the next."
            }
            _ => {
                "Each head has a matrix of P × N numbers, S_t = exp(Δ_t A) S_{t−1} + Δ_t x_t B_tᵀ, read as y_t = S_t C_t + D x_t. \
                 The selected head is large, rows are the P values and columns the N state entries; colours are signed, zero is neutral. \
                 Beneath, the norm of the selected head's state and of all heads' over time; the number at a small map is ‖S‖ of its head."
            }
        }
        .into()
    }

    fn probes(&self, cx: &ViewContext<'_>, probes: &mut Vec<Probe>) {
        let Some(subject) = Subject::of(cx) else { return };
        match subject.kind() {
            MixerKind::Attention | MixerKind::Hyena => return cache::probes(&subject, probes),
            MixerKind::FeedForward => return,
            _ => {}
        }
        probes.push(norm_probe(&subject));
        probes.push(subject.series(Point::State, Reduction::Layer(Fold::Norm)));
        if subject.mixer.head_dim == 1 {
            return channels::probes(&subject, probes);
        }
        probes.push(overview_probe(&subject));
        if is_pooled(&subject) {
            probes.push(head_probe(&subject));
        }
    }

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        let Some(subject) = Subject::of(cx) else {
            panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
            return;
        };
        if !subject.kind().mixes() {
            return panel::empty(ui, cx.theme, &no_mixer(subject.layer, "state"));
        }
        if subject.cursor.is_none() {
            let what = if subject.kind().is_recurrent() {
                "The state is zero before the first token."
            } else {
                "The cache is empty."
            };
            panel::empty(ui, cx.theme, &format!("{what} Press Space to read the prompt and run."));
            return;
        }
        match subject.kind() {
            MixerKind::Attention | MixerKind::Hyena => cache::ui(ui, cx, &subject, &mut self.settings.cache, actions),
            _ if subject.mixer.head_dim == 1 => {
                let height = ui.available_height() - NORMS - space::XS;
                channels::ui(ui, cx, &subject, &mut self.settings, height, actions);
                norms(ui, cx, &subject, actions);
            }
            _ => {
                let height = ui.available_height() - NORMS - space::XS;
                grid::ui(ui, cx, &subject, &mut self.settings.colours, height, actions);
                norms(ui, cx, &subject, actions);
            }
        }
    }

    fn save(&self) -> serde_json::Value {
        serde_json::to_value(&self.settings).unwrap_or_default()
    }

    fn restore(&mut self, saved: &serde_json::Value) {
        if let Ok(settings) = serde_json::from_value(saved.clone()) {
            self.settings = settings;
        }
    }
}

/// '2 inputs'.
fn inputs(count: usize) -> String {
    if count == 1 { "input".into() } else { format!("{count} inputs") }
}

fn is_pooled(subject: &Subject<'_>) -> bool {
    let m = subject.mixer;
    m.heads * m.head_dim * m.state_dim > WHOLE
}

/// All heads: whole if small, else pooled.
fn overview_probe(subject: &Subject<'_>) -> Probe {
    let reduction = if is_pooled(subject) { Reduction::Pool { rows: POOLED, cols: POOLED } } else { Reduction::Full };
    subject.at_cursor(Point::State, reduction)
}

/// The selected head, whole.
fn head_probe(subject: &Subject<'_>) -> Probe {
    if is_pooled(subject) {
        subject.at_cursor(Point::State, Reduction::Full).head(subject.head)
    } else {
        overview_probe(subject)
    }
}

/// ‖S‖ of each head over tokens.
fn norm_probe(subject: &Subject<'_>) -> Probe {
    subject.series(Point::State, Reduction::Head(Fold::Norm))
}

/// The context menu of a state map: the reading as CSV.
fn menu(response: &HeatmapResponse, cx: &ViewContext<'_>, probe: &Probe, actions: &mut Vec<Action>) {
    let value = response.hovered.and_then(|(_, _, value)| value);
    let csv = || {
        let Some(reading) = cx.store.latest(probe) else { return String::new() };
        let width = reading.shape.last().copied().unwrap_or(1).max(1);
        let line = |row: &[f32]| row.iter().map(|v| exact(*v)).collect::<Vec<_>>().join(",");
        reading.values.chunks(width).map(line).collect::<Vec<_>>().join("\n")
    };
    plate::menu(&response.response, ViewKind::State, "state", value, &csv, actions);
}

/// Norms of the selected head's and of the whole layer's state over time.
fn norms(ui: &mut egui::Ui, cx: &ViewContext<'_>, subject: &Subject<'_>, actions: &mut Vec<Action>) {
    struct Norms<'a> {
        cx: &'a ViewContext<'a>,
        head: Option<&'a Series>,
        layer: Option<&'a Series>,
        index: usize,
        name: String,
        noun: &'static str,
    }
    impl Lines for Norms<'_> {
        fn count(&self) -> usize {
            2
        }
        fn len(&self) -> usize {
            self.cx.store.length()
        }
        fn value(&self, line: usize, token: usize) -> Option<f32> {
            match line {
                0 => self.layer?.value(token, 0),
                _ => self.head?.value(token, self.index),
            }
        }
        fn colour(&self, line: usize) -> egui::Color32 {
            self.cx.theme.line_colour(if line == 0 { 2 } else { 1 }, 4)
        }
        fn name(&self, line: usize) -> String {
            if line == 0 { format!("all {}s", self.noun) } else { self.name.clone() }
        }
    }
    let lines = Norms {
        cx,
        head: cx.store.series(&norm_probe(subject)),
        layer: cx.store.series(&subject.series(Point::State, Reduction::Layer(Fold::Norm))),
        index: subject.head,
        name: subject.head_name(),
        noun: subject.kind().head_noun(),
    };
    let describe = |line: usize, token: usize, value: Option<f32>| {
        let value = value.map_or_else(|| "not known yet".to_owned(), exact);
        format!("‖S‖ = {value}\n{}, after token {token} {}", lines.name(line), quoted(cx.store, token))
    };
    let plot = SeriesPlot::new("state norms", &lines)
        .unit("‖S‖")
        .selected_line(Some(1))
        .label(format!("Norm of the state over tokens, {} and all {}s", lines.name, lines.noun))
        .describe(&describe);
    let response = plate::lines_over_time(ui, cx, NORMS, plot, actions);
    let hovered = response.hovered.map(|(line, token, _)| (line, token));
    plate::time_actions(ui, hovered, response.clicked, actions, |_, _| Place::of(subject, None));
}
