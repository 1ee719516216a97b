//! The window through its accessibility tree: what it shows is what the model computed, and it never waits for the engine.

use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use eframe::egui::{Key, Vec2};
use egui_kittest::kittest::{AccessKitNode, NodeT, Queryable};
use egui_kittest::{Harness, SnapshotOptions, SnapshotResults};
use statescope::theme::{ColourMap, Ground, Theme};
use statescope::view::ViewKind;
use statescope::widget::heatmap::{Cells, Heatmap};
use statescope::{App, Options};
use statescope_engine::handle::Handle;
use statescope_engine::protocol::{Command, Event, MixerKind, ModelSource, RunState};
use statescope_engine::runner::find_gpu;

use crate::support::Golden;

pub type Window = Harness<'static, App>;

const TEXT: &str = "Once upon a time, there was a";

fn window(engine: Handle, model: &str) -> Window {
    window_with(engine, Options { model: Some(model.parse().unwrap()), ..Options::default() })
}

pub fn window_with(engine: Handle, options: Options) -> Window {
    Harness::builder().with_size(Vec2::new(1600.0, 1000.0)).build_eframe(move |cc| App::new(cc, engine, options))
}

/// Lets frames pass until `enough`, which must come.
pub fn until(window: &mut Window, what: &str, enough: impl Fn(&Window) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        window.run_steps(1);
        if enough(window) {
            return;
        }
        if Instant::now() >= deadline {
            let said: Vec<String> =
                window.query_all_by(|_| true).filter_map(|n| text_of(&n.accesskit_node())).collect();
            panic!("waiting for {what}; error: {:?}; the window says {said:?}", window.state().store.error);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The exact number that the window says of `name`, as in `Δ = 0.043105707`.
pub fn said(window: &Window, name: &str) -> Option<f32> {
    let start = format!("{name} = ");
    // The equation begins lines the same way, with a formula.
    let number = |text: String| text.strip_prefix(&start)?.split(' ').next()?.parse().ok();
    window.query_all_by(|_| true).filter_map(|n| text_of(&n.accesskit_node())).find_map(number)
}

/// What a node says: plain labels carry their text as their value.
pub fn text_of(node: &AccessKitNode<'_>) -> Option<String> {
    node.label().or_else(|| node.value())
}

fn read_prompt(model: &str) -> Window {
    let mut window = window(Handle::spawn(|| {}).unwrap(), model);
    until(&mut window, "the prompt", |w| {
        let store = &w.state().store;
        store.run == RunState::Paused && store.position > 4 && store.position == store.length()
    });
    window
}

/// What the command line writes of `tokens`; `kinds` of mixers decide what there is.
fn trace(model: &str, tokens: &[u32], kinds: &[MixerKind], file: &Path) -> Golden {
    let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
    let mut probes = String::from("write_norm,read_norm,mixing");
    if kinds.iter().any(|k| k.is_recurrent()) {
        probes += ",delta,decay,state_norm";
    }
    if kinds.iter().any(|k| !k.is_recurrent()) {
        probes += ",entropy";
    }
    let status = Process::new(env!("CARGO_BIN_EXE_statescope"))
        .args(["trace", "--model", model, "--tokens", &ids.join(","), "--probe", &probes, "--out"])
        .arg(file)
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    Golden::read(file)
}

/// Inspector, a cell of the layer map and a cell of the matrix against `trace`, for every sibling and every kind of layer.
#[test]
fn the_window_says_what_trace_writes() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["mamba", "mamba2", "transformer", "hybrid"] {
        let model = format!("builtin:{name}");
        let mut window = read_prompt(&model);
        let tokens: Vec<u32> = window.state().store.tokens.iter().map(|t| t.id).collect();
        let info = window.state().store.model.clone().unwrap();
        let kinds: Vec<MixerKind> = info.layers.iter().map(|l| l.mixer().kind).collect();
        let trace = trace(&model, &tokens, &kinds, &folder.path().join(format!("{name}.safetensors")));
        let mut kinds_seen = Vec::new();
        for (layer, info) in info.layers.iter().enumerate() {
            let mixer = *info.mixer();
            if kinds_seen.contains(&mixer.kind) {
                continue;
            }
            kinds_seen.push(mixer.kind);
            let (head, token, key) = (mixer.heads - 2, tokens.len() - 2, 1);
            let selection = &mut window.state_mut().selection;
            (selection.layer, selection.head, selection.query, selection.key) = (layer, head, Some(token), Some(key));
            let cell = format!("M[{token}, {key}]");
            until(&mut window, "the inspector", |w| {
                said(w, &cell).is_some() && said(w, "write").is_some() && said(w, "residual norm").is_some()
            });
            let traced = |quantity: &str, index: usize| trace.floats(&format!("layers.{layer}.{quantity}"))[index];
            let here = token * mixer.heads + head;
            let mut pairs = vec![
                (said(&window, "write"), traced("write_norm", here)),
                (said(&window, "read"), traced("read_norm", here)),
                (said(&window, &cell), traced("mixing", (head * tokens.len() + token) * tokens.len() + key)),
            ];
            match mixer.kind {
                MixerKind::Attention => pairs.push((said(&window, "row entropy"), traced("entropy", here))),
                _ => {
                    until(&mut window, "the state's norm", |w| said(w, "‖S‖ after").is_some());
                    pairs.push((said(&window, "Δ"), traced("delta", here)));
                    pairs.push((said(&window, "‖S‖ after"), traced("state_norm", here)));
                    let (decay, n) = if mixer.decay_dim > 1 { ("decay n=3", 3) } else { ("decay", 0) };
                    pairs.push((said(&window, decay), traced("decay", here * mixer.decay_dim + n)));
                }
            }
            for (index, (window, trace)) in pairs.into_iter().enumerate() {
                assert_eq!(window, Some(trace), "{name}, layer {layer}, head {head}, number {index}");
            }
            let drawn = format!("Mixing matrix of layer {layer} ");
            let node =
                window.query_all_by(|n| text_of(n).is_some_and(|t| t.starts_with(&drawn))).next().expect("the matrix");
            let pinned = node.value().expect("the pinned cell is said");
            let cell_value = traced("mixing", (head * tokens.len() + token) * tokens.len() + key);
            let numbers: Vec<f32> = pinned.split([' ', '\n', '=']).filter_map(|w| w.parse().ok()).collect();
            assert!(numbers.contains(&cell_value), "{name}: the matrix says {pinned}, trace {cell_value}");
            check_layer_map(&mut window, &trace, layer, mixer.heads);
        }
    }
}

/// Points at a cell of the layer map and reads its value.
fn check_layer_map(window: &mut Window, trace: &Golden, layer: usize, heads: usize) {
    let layers = window.state().store.model.as_ref().unwrap().layers.len();
    let map = window.get_by_label("Layer map, write strength").rect();
    // Fewer than 32 tokens are drawn on an axis of 32.
    let columns = window.state().store.length().max(32);
    let token = 3;
    let at =
        map.min + map.size() * Vec2::new((token as f32 + 0.5) / columns as f32, (layer as f32 + 0.5) / layers as f32);
    window.hover_at(at);
    window.run_steps(3);
    let words = window.get_by_label("Layer map, write strength").value().expect("the hovered cell is said");
    assert!(words.contains(&format!("layer {layer} ")) && words.contains(&format!("token {token} ")), "{words}");
    let value: f32 = words.lines().nth(1).unwrap().split(' ').find_map(|w| w.parse().ok()).expect(&words);
    let rows = trace.floats(&format!("layers.{layer}.write_norm"));
    let norm = rows[token * heads..(token + 1) * heads].iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
    assert!((f64::from(value) - norm).abs() <= 1e-5 * norm, "layer map says {value}, trace {norm}");
    window.remove_cursor();
}

/// Space runs, the text grows, space pauses; a click on a candidate branches.
#[test]
fn running_pausing_and_forcing_from_the_keyboard() {
    let mut window = read_prompt("builtin:hybrid");
    let prompt = window.state().store.length();
    window.key_press(Key::Space);
    until(&mut window, "some tokens", |w| w.state().store.position > prompt + 5);
    if window.state().store.run == RunState::Running {
        window.key_press(Key::Space);
    }
    until(&mut window, "the pause", |w| w.state().store.run == RunState::Paused);
    assert!(window.state().store.text().starts_with(TEXT), "{}", window.state().store.text());
    let length = window.state().store.length();
    window.key_press(Key::Period);
    until(&mut window, "one more", |w| w.state().store.length() == length + 1);
    window.state_mut().selection.layer = 0;
    window.key_press(Key::CloseBracket);
    window.run_steps(2);
    assert_eq!(window.state().selection.layer, 1);
    window.key_press(Key::ArrowLeft);
    window.run_steps(2);
    assert!(window.state().selection.query.is_some(), "an arrow pins a token");
    window.key_press(Key::Escape);
    window.run_steps(2);
    assert!(window.state().selection.query.is_none(), "Esc releases it");
}

/// Nothing moves, so nothing is drawn again.
#[test]
fn an_idle_window_does_not_repaint() {
    let mut window = read_prompt("builtin:mamba2");
    for _ in 0..30 {
        window.run_steps(1);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(window.try_run().is_ok(), "the window asks for one frame after the other");
}

/// With an engine that does not answer at all the window still draws, selects, scrubs, and takes every command.
#[test]
fn a_stalled_engine_holds_nothing_up() {
    let (commands, heard) = bounded::<Command>(1);
    let (events, receiver) = bounded::<Event>(8);
    let stalled = Handle::from_channels(commands, receiver, Arc::new(AtomicBool::new(false)));
    // What a real engine told before it stalled.
    let mut real = Handle::spawn(|| {}).unwrap();
    let info = real.load_and_wait(ModelSource::Builtin("mamba2".into())).unwrap();
    events.send(Event::Loaded(info)).unwrap();
    let mut window = window(stalled, "builtin:mamba2");
    for _ in 0..20 {
        window.key_press(Key::Space);
        window.key_press(Key::CloseBracket);
        window.key_press(Key::Period);
        window.run_steps(1);
    }
    assert_eq!(window.state().selection.layer, 7, "the selection moved although nobody answers");
    drop(window);
    assert!(heard.len() <= 1, "commands wait in the outbox, not in a growing channel");
}

/// Where a model can run is looked for while the window goes on; what is missing for a GPU is said.
#[test]
fn the_device_menu_says_what_there_is() {
    let mut window = read_prompt("builtin:mamba2");
    window.get_by_label_contains("Device CPU").click();
    let line = find_gpu().unwrap_or_else(|reason| format!("CUDA: {reason}."));
    until(&mut window, &line, |w| {
        w.query_all_by(|_| true).filter_map(|n| text_of(&n.accesskit_node())).any(|text| text == line)
    });
}

/// Esc undoes one thing at a time, the topmost first: a menu, the pin, a maximised panel.
#[test]
fn escape_closes_what_is_open() {
    let mut window = read_prompt("builtin:mamba2");
    window.key_press(Key::ArrowLeft);
    window.state_mut().layout.maximise(ViewKind::Gates);
    window.get_by_label_contains("Device CPU").click();
    let choices = |w: &Window| w.query_all_by(|n| text_of(n).is_some_and(|t| t == "the file's own type")).count();
    until(&mut window, "the menu", |w| choices(w) > 0);
    window.key_press(Key::Escape);
    until(&mut window, "no menu", |w| choices(w) == 0);
    assert!(window.state().selection.query.is_some() && window.state().layout.maximised.is_some());
    window.key_press(Key::Escape);
    until(&mut window, "no pin", |w| w.state().selection.query.is_none());
    assert!(window.state().layout.maximised.is_some());
    window.key_press(Key::Escape);
    until(&mut window, "all panels", |w| w.state().layout.maximised.is_none());
}

/// An error is a sentence on the screen, and the window goes on.
#[test]
fn a_folder_that_is_no_model_is_said() {
    let mut window = window(Handle::spawn(|| {}).unwrap(), "/nowhere/at/all");
    until(&mut window, "the error", |w| w.state().store.error.is_some());
    window.run_steps(2);
    let shown = window.query_all_by(|n| text_of(n).is_some_and(|t| t.contains("/nowhere/at/all does not exist")));
    assert!(shown.count() > 0, "the banner shows the message");
}

/// A new folder is loaded in place of the old one and its values are its own.
#[test]
fn every_panel_draws_every_kind_of_model() {
    let ancestors = ["s4_a", "s4d_a", "h3_a", "h3_heads", "hyena_order", "slstm_a", "xlstm_a"];
    let recurrences =
        ["mamba3_a", "mamba3_mimo", "rwkv_a", "rwkv5_a", "rwkv6_a", "rwkv7_a", "gla_a", "hgrn2_a", "retnet_a"];
    for case in ["mamba_text", "mamba2_a", "llama_a", "bamba_a"].into_iter().chain(ancestors).chain(recurrences) {
        let path = crate::support::goldens().join(case);
        let mut window = window(Handle::spawn(|| {}).unwrap(), path.to_str().unwrap());
        until(&mut window, "the model", |w| w.state().store.model.is_some());
        // Without a tokenizer the example prompt cannot be read, which is said; the panels stay usable.
        for _ in 0..10 {
            window.run_steps(1);
            std::thread::sleep(Duration::from_millis(10));
        }
        for size in [Vec2::new(1280.0, 720.0), Vec2::new(2560.0, 1440.0)] {
            window.set_size(size);
            window.run_steps(2);
        }
    }
}

/// A signed map in both themes: zero is the neutral colour, unknown is hatched, what cannot exist is ground.
#[test]
fn a_signed_map_looks_as_it_should() {
    struct Saddle;
    impl Cells for Saddle {
        fn rows(&self) -> usize {
            16
        }
        fn cols(&self) -> usize {
            24
        }
        fn value(&self, row: usize, col: usize) -> Option<f32> {
            (col < 20).then_some((row as f32 - 8.0) * (col as f32 - 10.0))
        }
        fn generation(&self) -> u64 {
            1
        }
        fn end(&self, row: usize) -> usize {
            if row < 8 { 20 } else { usize::MAX }
        }
    }
    let mut results = SnapshotResults::new();
    for (ground, name) in [(Ground::Dark, "signed_map_dark"), (Ground::Light, "signed_map_light")] {
        let theme = Theme::new(ground);
        let mut harness = Harness::builder().with_size(Vec2::new(260.0, 180.0)).wgpu().build_ui(move |ui| {
            Heatmap::new("saddle", &Saddle)
                .map(ColourMap::Diverging)
                .range(Some((-80.0, 80.0)))
                .size(Vec2::new(240.0, 160.0))
                .cursor_row(Some(3))
                .label("saddle")
                .show(ui, &theme);
        });
        harness.run_steps(2);
        // Software drivers differ by a shade at edges.
        harness.snapshot_options(name, &SnapshotOptions::new().threshold(2.0).max_failed_pixels(200));
        results.extend_harness(&mut harness);
    }
}
