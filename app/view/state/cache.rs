//! Attention: the KV cache as it grows, keys and values of the selected KV head over the shared time axis.

use eframe::egui;
use statescope_engine::protocol::{Point, Probe, Reduction};

use crate::action::Action;
use crate::theme::{ColourMap, space};
use crate::view::quantity::cells::TransposedCells;
use crate::view::quantity::plate::{self, Colours, Place};
use crate::view::quantity::{Subject, csv_text, exact, quoted, window_words};
use crate::view::{ViewContext, ViewKind};
use crate::widget::heatmap::Heatmap;
use crate::widget::{format, panel};

/// The engine maps a head to the KV head that it shares.
fn probe(subject: &Subject<'_>, point: Point) -> Probe {
    subject.series(point, Reduction::Full).head(subject.head)
}

pub fn probes(subject: &Subject<'_>, probes: &mut Vec<Probe>) {
    probes.push(probe(subject, Point::Key));
    probes.push(probe(subject, Point::Value));
}

pub(super) fn ui(
    ui: &mut egui::Ui,
    cx: &ViewContext<'_>,
    subject: &Subject<'_>,
    colours: &mut Colours,
    actions: &mut Vec<Action>,
) {
    let m = subject.mixer;
    // Filters one after the other see further together than each, and hold what each needs.
    let held = m.window.map_or(cx.store.position, |window| (window / m.rank).min(cx.store.position));
    let bytes = held * m.kv_bytes_per_token;
    ui.horizontal(|ui| {
        let text = format!(
            "{} in this layer, + {} a token · {} of {} KV heads{}",
            format::bytes(bytes),
            format::bytes(m.kv_bytes_per_token),
            subject.group() + 1,
            m.groups,
            m.window.map_or_else(String::new, |_| format!(" · {}", window_words(m)))
        );
        panel::caption(ui, cx.theme, &text).on_hover_text(match m.window {
            Some(_) => {
                "Keys and values that no later token can see are given back: beyond the window the cache grows no more."
            }
            None => "The cache holds keys and values of every token: it grows without end.",
        });
    });
    let height = ((ui.available_height() - space::ROW - 3.0 * space::XS) / 2.0 - 16.0).max(32.0);
    let mut used = None;
    for (point, name, width) in [(Point::Key, "key", m.state_dim), (Point::Value, "value", m.head_dim)] {
        let probe = probe(subject, point);
        let series = cx.store.series(&probe);
        let cells = TransposedCells { series, rows: width, tokens: cx.store.length() };
        let seen = series.map_or((0.0, 1.0), |series| series.range());
        let range = colours.locked.unwrap_or(seen);
        let ends = format::digits(range.0.abs().max(range.1.abs()), 3);
        let tokens = format::plural(cx.store.length(), "token");
        panel::caption(ui, cx.theme, &format!("{name}s · {width} entries × {tokens} · colours ± {ends}"));
        let describe = |entry: usize, token: usize, value: Option<f32>| {
            let value = value.map_or_else(|| "not known yet".to_owned(), exact);
            format!(
                "{name}[{entry}] = {value}\nlayer {}, KV head {}, token {token} {}",
                subject.layer,
                subject.group(),
                quoted(cx.store, token)
            )
        };
        let entry = |row: usize| row.to_string();
        let map = Heatmap::new(("kv cache", name), &cells)
            .map(ColourMap::Diverging)
            .scale(colours.scale)
            .range(Some(range))
            .row_labels(&entry)
            .label(format!("Cached {name}s of KV head {} over tokens", subject.group()))
            .describe(&describe);
        let response = plate::map_over_time(ui, cx, height, map, actions);
        let hovered = response.hovered.map(|(row, token, _)| (row, token));
        plate::time_actions(ui, hovered, response.clicked, actions, |_, _| Place::of(subject, None));
        let value = response.hovered.and_then(|(_, _, value)| value);
        let csv = || csv(cx, &probe, name);
        plate::menu(&response.response, ViewKind::State, &format!("{name}s"), value, &csv, actions);
        used = Some(response);
    }
    if let Some(response) = used {
        ui.horizontal(|ui| {
            panel::caption(ui, cx.theme, "colours of the values");
            colours.legend(ui, cx, ColourMap::Diverging, "", &response);
        });
    }
}

fn csv(cx: &ViewContext<'_>, probe: &Probe, name: &str) -> String {
    let mut text = format!("position,token,{name} entries");
    for t in 0..cx.store.length() {
        text.push_str(&format!("\n{t},{}", csv_text(&cx.store.token_text(t))));
        for value in cx.store.series(probe).and_then(|series| series.row(t)).unwrap_or_default() {
            text.push_str(&format!(",{}", exact(*value)));
        }
    }
    text
}
