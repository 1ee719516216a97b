//! Logits: what the model expects next, how sure it is, and how much the text that followed surprised it.

use eframe::egui::{self, Align2, Role, Sense, WidgetInfo, vec2};
use statescope_engine::protocol::{Candidate, Prediction, Probe, TokenId};

use crate::action::Action;
use crate::theme::{Theme, space};
use crate::view::quantity::{bytes_label, exact, percent, short};
use crate::view::{View, ViewContext};
use crate::widget::panel;

#[derive(Default)]
pub struct LogitsView;

impl View for LogitsView {
    fn title(&self, cx: &ViewContext<'_>) -> String {
        match cx.cursor() {
            Some(token) => format!("Next token after {token} {}", cx.store.token_label(token)),
            None => "Next token".into(),
        }
    }

    fn explanation(&self, _: &ViewContext<'_>) -> String {
        "The model's probabilities for the token after the one looked at, before temperature and truncation: p = softmax(W_U norm(r)). \
         Entropy −Σ p log₂ p says how undecided it is; surprisal −log₂ p says how unexpected the token was that followed. \
         Click a candidate to put it there instead: the text after it is cut, and a run goes on from the new token."
            .into()
    }

    fn probes(&self, _: &ViewContext<'_>, _: &mut Vec<Probe>) {}

    fn ui(&mut self, ui: &mut egui::Ui, cx: &ViewContext<'_>, actions: &mut Vec<Action>) {
        if cx.store.model.is_none() {
            return panel::empty(ui, cx.theme, "No model is loaded. Choose one in the model bar.");
        }
        // Predictions come with their tokens, also where other pictures are a little behind.
        let Some(token) = cx.cursor() else {
            return panel::empty(ui, cx.theme, "No token has been read yet. Press Space to run.");
        };
        let Some(prediction) = cx.store.prediction(token) else {
            panel::empty(ui, cx.theme, "The prediction at this token is not known yet; it is being read again.");
            return;
        };
        let next = cx.store.tokens.get(token + 1).map(|record| record.id);
        summary(ui, cx, prediction, token, next);
        egui::ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            ui.spacing_mut().item_spacing.y = 1.0;
            for (rank, candidate) in prediction.candidates.iter().enumerate() {
                let actual = next == Some(candidate.id);
                if row(ui, cx.theme, rank, candidate, actual).clicked() && !actual {
                    actions.push(Action::Force { position: token + 1, token: candidate.id });
                }
            }
            let shown: f32 = prediction.candidates.iter().map(|c| c.probability).sum();
            ui.label(
                egui::RichText::new(format!("all other tokens together {}", percent((1.0 - shown).max(0.0))))
                    .color(cx.theme.text_muted),
            );
        });
    }
}

fn summary(ui: &mut egui::Ui, cx: &ViewContext<'_>, prediction: &Prediction, token: usize, next: Option<TokenId>) {
    ui.vertical(|ui| {
        ui.spacing_mut().item_spacing.y = 0.0;
        ui.label(format!("entropy {} bits", short(prediction.entropy_bits)))
            .on_hover_text(format!("entropy = {} bits", exact(prediction.entropy_bits)));
        let followed = next.is_some().then(|| cx.store.surprisal(token + 1)).flatten();
        if let Some(bits) = followed {
            let name = cx.store.token_label(token + 1);
            ui.label(format!("then {name}, surprisal {} bits", short(bits))).on_hover_text(format!(
                "surprisal of token {} = {} bits",
                token + 1,
                exact(bits)
            ));
        }
    });
}

/// One candidate: its text, a bar, its probability. The whole row is the button.
fn row(ui: &mut egui::Ui, theme: &Theme, rank: usize, candidate: &Candidate, actual: bool) -> egui::Response {
    let name = candidate.special.clone().unwrap_or_else(|| bytes_label(&candidate.bytes));
    let font = egui::TextStyle::Monospace.resolve(ui.style());
    let height = ui.text_style_height(&egui::TextStyle::Monospace) + 4.0;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::click());
    let share = candidate.probability.clamp(0.0, 1.0);
    response.widget_info(|| {
        let mark = if actual { ", the token that followed" } else { "" };
        WidgetInfo::labeled(
            Role::Button,
            true,
            format!("candidate {} {name} = {}{mark}", rank + 1, exact(candidate.probability)),
        )
    });
    if !ui.is_rect_visible(rect) {
        return response;
    }
    let painter = ui.painter_at(rect);
    if response.hovered() || response.has_focus() {
        painter.rect_filled(rect, space::RADIUS, theme.control);
    }
    // Text left, bar in the middle, number right: the columns stay put while the numbers move.
    let name_width = (rect.width() * 0.36).clamp(60.0, 130.0);
    let number_width = 64.0;
    let bar = egui::Rect::from_min_max(
        egui::pos2(rect.left() + name_width, rect.top() + 3.0),
        egui::pos2((rect.right() - number_width).max(rect.left() + name_width + 8.0), rect.bottom() - 3.0),
    );
    let colour = if actual { theme.accent } else { theme.text };
    painter.with_clip_rect(rect.with_max_x(bar.left() - 4.0)).text(
        rect.left_center() + vec2(4.0, 0.0),
        Align2::LEFT_CENTER,
        if actual { format!("▸{name}") } else { format!(" {name}") },
        font.clone(),
        colour,
    );
    painter.rect_filled(bar, 2.0, theme.well);
    let filled = bar.with_max_x(bar.left() + bar.width() * share);
    painter.rect_filled(filled, 2.0, if actual { theme.accent } else { theme.text_faint });
    painter.text(rect.right_center() - vec2(4.0, 0.0), Align2::RIGHT_CENTER, percent(share), font, colour);
    response.on_hover_text(if actual {
        format!("token {}, p = {}: the token that followed", candidate.id, exact(candidate.probability))
    } else {
        format!(
            "token {}, p = {}, {} bits. Click to put it here instead: later text is cut.",
            candidate.id,
            exact(candidate.probability),
            short(-candidate.probability.log2())
        )
    })
}
