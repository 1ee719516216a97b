//! What a frame of the default layout costs the CPU: `cargo bench --bench frame [-- MODEL …]`.
//!
//! For each built-in model, with 1,000 tokens of history, 1600 × 1000 points: laying out and tessellating, without the driver. The first
//! figure is what the frames' thread was given of a core, the others count what the engine took from it, too. Half of the frames come while tokens are being made, 60 a second, so that every view has news; half while nothing moves but the pointer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use eframe::App as _;
use eframe::egui::{Context, Event, Pos2, RawInput, Rect, Vec2, pos2};
use statescope::{App, Options};
use statescope_engine::handle::Handle;
use statescope_engine::protocol::{Command, RunState};
use statescope_engine::worker::Worker;

const HISTORY: usize = 1000;
const FRAMES: usize = 120;
const FRAME: Duration = Duration::from_millis(16);
const PATIENCE: Duration = Duration::from_secs(120);

struct Window {
    ctx: Context,
    app: App,
    began: Instant,
}

impl Window {
    fn new(engine: Handle, model: &str) -> Self {
        let ctx = Context::default();
        let options = Options { model: Some(format!("builtin:{model}").parse().unwrap()), ..Options::default() };
        let app = App::new(&eframe::CreationContext::_new_kittest(ctx.clone()), engine, options);
        Self { ctx, app, began: Instant::now() }
    }

    /// Milliseconds that a frame takes.
    fn frame(&mut self, pointer: Option<Pos2>) -> f64 {
        let input = RawInput {
            screen_rect: Some(Rect::from_min_size(Pos2::ZERO, Vec2::new(1600.0, 1000.0))),
            time: Some(self.began.elapsed().as_secs_f64()),
            events: pointer.map(Event::PointerMoved).into_iter().collect(),
            ..RawInput::default()
        };
        let (app, mut frame) = (&mut self.app, eframe::Frame::_new_kittest());
        let began = Instant::now();
        let mut output = self.ctx.run_ui(input, |ui| {
            app.logic(ui.ctx(), &mut frame);
            app.ui(ui, &mut frame);
        });
        std::hint::black_box(self.ctx.tessellate(output.shapes, output.pixels_per_point));
        let took = began.elapsed();
        output.textures_delta.clear();
        std::thread::sleep(FRAME.saturating_sub(took));
        took.as_secs_f64() * 1e3
    }

    fn until(&mut self, enough: impl Fn(&App) -> bool) {
        let began = Instant::now();
        while !enough(&self.app) {
            assert!(began.elapsed() < PATIENCE, "the engine does not get there");
            self.frame(None);
        }
    }

    /// Frames as one line of the table.
    fn frames(&mut self, pointer: impl Fn(usize) -> Option<Pos2>) -> String {
        let before = processor_ms();
        let mut times: Vec<f64> = (0..FRAMES).map(|i| self.frame(pointer(i))).collect();
        let mean = (processor_ms() - before) / FRAMES as f64;
        times.sort_unstable_by(f64::total_cmp);
        format!("{mean:.1} | {:.1} | {:.1}", times[FRAMES / 2], times[FRAMES * 95 / 100])
    }
}

/// Milliseconds that this thread has run; NaN where the system does not say.
fn processor_ms() -> f64 {
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    said.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns * 1e-6)
}

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    if names.is_empty() {
        names = ["mamba", "mamba2", "hybrid", "transformer"].map(str::to_owned).to_vec();
    }
    println!("| model | frames | mean CPU ms | median ms | 95 % below |\n|---|---|---:|---:|---:|");
    for name in names {
        let (commands, heard) = bounded(64);
        let (said, events) = bounded(8);
        let cancel = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(heard, said, Box::new(|| {}), cancel.clone());
        std::thread::Builder::new().name("engine".into()).spawn(move || worker.run()).unwrap();
        let mut window = Window::new(Handle::from_channels(commands.clone(), events, cancel), &name);
        window.until(|app| app.store.position > 4 && app.store.run == RunState::Paused);
        while window.app.store.length() < HISTORY {
            let _ = commands.send(Command::Run { tokens: HISTORY - window.app.store.length() });
            window.until(|app| app.store.run == RunState::Running);
            window.until(|app| app.store.run == RunState::Paused);
        }
        let _ = commands.send(Command::Speed(Some(60.0)));
        let _ = commands.send(Command::Run { tokens: 100 * FRAMES });
        window.until(|app| app.store.run == RunState::Running);
        let running = window.frames(|_| None);
        let _ = commands.send(Command::Stop);
        window.until(|app| app.store.run == RunState::Paused);
        let pointing = window.frames(|i| Some(pos2(400.0 + 8.0 * i as f32, 300.0 + 3.0 * i as f32)));
        println!("| {name} | new tokens | {running} |\n| {name} | a moving pointer | {pointing} |");
    }
}
