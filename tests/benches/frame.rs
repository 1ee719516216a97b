//! What a frame of the default layout costs the CPU: `cargo bench --bench frame`.
//!
//! For each built-in model, with 1,000 tokens of history, 1600 × 1000 points: laying out and tessellating, without the driver. Half of
//! the frames come while tokens are being made, 60 a second, so that every view has news; half while nothing moves but the pointer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use eframe::egui::{Vec2, pos2};
use egui_kittest::Harness;
use statescope::{App, Options};
use statescope_engine::handle::Handle;
use statescope_engine::protocol::{Command, RunState};
use statescope_engine::worker::Worker;

const HISTORY: usize = 1000;
const FRAMES: usize = 120;
const PATIENCE: Duration = Duration::from_secs(120);

type Window = Harness<'static, App>;

fn until(window: &mut Window, enough: impl Fn(&App) -> bool) {
    let began = Instant::now();
    while !enough(window.state()) {
        assert!(began.elapsed() < PATIENCE, "the engine does not get there");
        window.run_steps(1);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Milliseconds of each frame, ascending.
fn frames(window: &mut Window, mut before: impl FnMut(&mut Window, usize)) -> Vec<f64> {
    let mut times: Vec<f64> = (0..FRAMES)
        .map(|i| {
            before(window, i);
            let began = Instant::now();
            window.run_steps(1);
            let shapes = window.output().shapes.clone();
            std::hint::black_box(window.ctx.tessellate(shapes, 1.0));
            let took = began.elapsed();
            std::thread::sleep(Duration::from_millis(16).saturating_sub(took));
            took.as_secs_f64() * 1e3
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times
}

fn main() {
    println!("| model | frames | median ms | 95 % below |\n|---|---|---:|---:|");
    for name in ["mamba", "mamba2", "hybrid", "transformer"] {
        let options = Options { model: Some(format!("builtin:{name}").parse().unwrap()), ..Options::default() };
        let (commands, heard) = bounded(64);
        let (said, events) = bounded(8);
        let cancel = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(heard, said, Box::new(|| {}), cancel.clone());
        std::thread::spawn(move || worker.run());
        let engine = Handle::from_channels(commands.clone(), events, cancel);
        let mut window: Window = Harness::builder()
            .with_size(Vec2::new(1600.0, 1000.0))
            .build_eframe(move |cc| App::new(cc, engine, options));
        until(&mut window, |app| app.store.position > 4 && app.store.run == RunState::Paused);
        while window.state().store.length() < HISTORY {
            let missing = HISTORY - window.state().store.length();
            let _ = commands.send(Command::Run { tokens: missing });
            until(&mut window, |app| app.store.run == RunState::Running);
            until(&mut window, |app| app.store.run == RunState::Paused);
        }
        let _ = commands.send(Command::Speed(Some(60.0)));
        let _ = commands.send(Command::Run { tokens: 100 * FRAMES });
        until(&mut window, |app| app.store.run == RunState::Running);
        let running = frames(&mut window, |_, _| {});
        let _ = commands.send(Command::Stop);
        until(&mut window, |app| app.store.run == RunState::Paused);
        let pointing = frames(&mut window, |window, i| {
            window.hover_at(pos2(400.0 + 8.0 * i as f32, 300.0 + 3.0 * i as f32));
        });
        for (what, times) in [("new tokens", running), ("a moving pointer", pointing)] {
            println!("| {name} | {what} | {:.1} | {:.1} |", times[FRAMES / 2], times[FRAMES * 95 / 100]);
        }
    }
}
