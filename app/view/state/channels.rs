//! Mixers whose heads are channels, Mamba-1 and the short convolution: all channels at once, ranked, so that a layer is never judged by
//! channel 0.

use eframe::egui::{self, Sense, vec2};
use statescope_engine::protocol::{MixerKind, Point, Probe, Reduction};

use super::{Rank, Settings, menu};
use crate::action::Action;
use crate::theme::{ColourMap, space};
use crate::view::ViewContext;
use crate::view::gates::retention_probe;
use crate::view::quantity::cells::PlaneCells;
use crate::view::quantity::plate::{self, Place};
use crate::view::quantity::{Subject, exact, half_life, quoted, ranked, short, tokens_words};
use crate::widget::heatmap::{Heatmap, hatch};
use crate::widget::panel;

fn state_probe(subject: &Subject<'_>) -> Probe {
    subject.at_cursor(Point::State, Reduction::Full)
}

fn write_probe(subject: &Subject<'_>) -> Probe {
    subject.series(Point::Write, Reduction::Full)
}

pub fn probes(subject: &Subject<'_>, probes: &mut Vec<Probe>) {
    probes.push(state_probe(subject));
    probes.push(write_probe(subject));
    if subject.kind().decays() {
        probes.push(retention_probe(subject));
    }
}

/// What holds its inputs whole has no half-life.
fn rank(subject: &Subject<'_>, settings: &Settings) -> Rank {
    if subject.kind().decays() { settings.rank } else { Rank::Write }
}

/// Entry n of a state; of a short convolution the input of a token, the newest last.
fn entry_name(subject: &Subject<'_>, n: usize) -> String {
    if subject.kind() != MixerKind::ShortConv {
        return format!("n = {n}");
    }
    match subject.mixer.state_dim - 1 - n.min(subject.mixer.state_dim - 1) {
        0 => "t".into(),
        back => format!("t − {back}"),
    }
}

pub(super) fn ui(
    ui: &mut egui::Ui,
    cx: &ViewContext<'_>,
    subject: &Subject<'_>,
    settings: &mut Settings,
    height: f32,
    actions: &mut Vec<Action>,
) {
    ui.horizontal(|ui| {
        panel::caption(ui, cx.theme, "channels from left to right by");
        let options = [(Rank::HalfLife, "half-life"), (Rank::Write, "write strength")];
        let options = if subject.kind().decays() { &options[..] } else { &options[1..] };
        if let Some(rank) = panel::choice(ui, cx.theme, rank(subject, settings), options) {
            settings.rank = rank;
        }
        selected(ui, cx, subject);
    });
    let height = (height - 2.0 * (space::ROW + space::XS)).max(40.0);
    let probe = state_probe(subject);
    let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::hover());
    let plot = rect.with_min_x(rect.left() + space::GUTTER);
    let Some(reading) = cx.store.latest(&probe) else {
        hatch(ui, cx.theme, plot);
        ui.add_space(space::ROW);
        return;
    };
    let token = reading.positions.start;
    let (channels, entries) = (subject.mixer.heads, subject.mixer.state_dim);
    let ranked_by = rank(subject, settings);
    let ranking = match ranked_by {
        Rank::HalfLife => retention_probe(subject),
        Rank::Write => write_probe(subject),
    };
    // Until the ranking is known the channels stand by number, and the title of the axis says so.
    let row = cx.store.series(&ranking).and_then(|series| series.row(token)).filter(|row| row.len() == channels);
    let order: Vec<usize> = row.map_or_else(|| (0..channels).collect(), ranked);
    let plane = PlaneCells {
        values: &reading.values,
        offset: 0,
        rows: entries,
        cols: channels,
        row_stride: 1,
        col_stride: entries,
        order: Some(&order),
        generation: cx.store.latest_generation(&probe),
    };
    let describe = |n: usize, rank: usize, value: Option<f32>| {
        let Some(channel) = order.get(rank) else { return String::new() };
        let value = value.map_or_else(|| "not known".to_owned(), exact);
        let by = match (ranked_by, row.and_then(|row| row.get(*channel))) {
            (Rank::HalfLife, Some(r)) => {
                let life = half_life(*r).map_or_else(|| "unknown".into(), tokens_words);
                format!("rank {} by half-life: {life} in its slowest entry", rank + 1)
            }
            (Rank::Write, Some(w)) => format!("rank {} by write strength: {}", rank + 1, short(*w)),
            (_, None) => "ranking not known yet: by number".into(),
        };
        let entry = entry_name(subject, n);
        format!(
            "S[channel {channel}, {entry}] = {value}\nlayer {}, after token {token} {}\n{by}",
            subject.layer,
            quoted(cx.store, token)
        )
    };
    let name = |n: usize| entry_name(subject, n);
    let column = |channel: Option<usize>| channel.and_then(|c| order.iter().position(|o| *o == c));
    let map = Heatmap::new("state of the channels", &plane)
        .map(ColourMap::Diverging)
        .scale(settings.colours.scale)
        .range(settings.colours.locked)
        .size(rect.size())
        .row_labels(&name)
        .cursor_col(column(Some(subject.head)))
        .highlight_col(column(plate::hovered_head(cx, subject)))
        .label(format!("State of all channels, layer {}", subject.layer))
        .describe(&describe);
    let response = plate::inside(ui, rect, |ui| map.show(ui, cx.theme));
    menu(&response, cx, &probe, actions);
    if let Some((_, rank, _)) = response.hovered {
        actions.push(Place::of(subject, order.get(rank).copied()).hover(None, None));
    }
    if let Some(channel) = response.clicked.and_then(|(_, rank)| order.get(rank)) {
        actions.push(Action::SelectHead(*channel));
    }
    ui.horizontal(|ui| {
        settings.colours.legend(ui, cx, ColourMap::Diverging, "", &response);
        let ends = match (ranked_by, row.is_some()) {
            (_, false) => "by number until the ranking is known",
            (Rank::HalfLife, _) => "longest memory left",
            (Rank::Write, _) => "strongest write left",
        };
        panel::caption(ui, cx.theme, ends);
    });
}

/// The selected channel in words.
fn selected(ui: &mut egui::Ui, cx: &ViewContext<'_>, subject: &Subject<'_>) {
    let decays = subject.kind().decays();
    let retention = subject.cursor.filter(|_| decays);
    let retention = retention.and_then(|t| cx.store.series(&retention_probe(subject))?.value(t, subject.head));
    let life = retention.and_then(half_life).map_or_else(String::new, |t| format!(", half-life {}", tokens_words(t)));
    ui.label(
        egui::RichText::new(format!("channel {}{life}", subject.head)).font(cx.theme.small()).color(cx.theme.accent),
    );
}
