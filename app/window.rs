//! Starts the window: graphics, engine thread, application.

use std::sync::Arc;

use eframe::egui::{self, ViewportBuilder};
use eframe::egui_wgpu::{WgpuSetup, WgpuSetupCreateNew};
use eframe::{NativeOptions, Renderer};
use statescope_engine::handle::Handle;

use crate::app::{App, Options};

const TITLE: &str = "Statescope";

/// Why no window can be opened here, if that is known beforehand.
pub fn missing_display() -> Option<&'static str> {
    let unset = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    let none = cfg!(all(unix, not(target_os = "macos"))) && unset("DISPLAY") && unset("WAYLAND_DISPLAY");
    none.then_some("neither DISPLAY nor WAYLAND_DISPLAY is set")
}

/// Opens the window and returns when it is closed. Without a `renderer`: wgpu on a graphics processor, glow where there is none,
/// since drawing in software is several times faster there.
///
/// # Errors
/// No graphics could be set up, or the system refused a thread.
pub fn open(renderer: Option<Renderer>, options: &Options) -> eframe::Result {
    match renderer {
        Some(renderer) => run(native(renderer, false), options),
        None => run(native(Renderer::Wgpu, true), options).or_else(|_| run(native(Renderer::Glow, false), options)),
    }
}

fn run(native: NativeOptions, options: &Options) -> eframe::Result {
    let options = options.clone();
    eframe::run_native(
        TITLE,
        native,
        Box::new(move |cc| {
            let ctx = cc.egui_ctx.clone();
            let pace = options.pace.clone();
            let engine = Handle::spawn(move || pace.wake(&ctx))?;
            Ok(Box::new(App::new(cc, engine, options)))
        }),
    )
}

fn native(renderer: Renderer, hardware_only: bool) -> NativeOptions {
    // Without dithering: the colours of a map are its values, and drawing in software is a quarter cheaper.
    let viewport = ViewportBuilder::default()
        .with_title(TITLE)
        .with_app_id("statescope")
        .with_inner_size([1600.0, 1000.0])
        .with_min_inner_size([960.0, 600.0])
        .with_icon(icon());
    let mut native = NativeOptions { viewport, renderer, dithering: false, ..NativeOptions::default() };
    if hardware_only && let WgpuSetup::CreateNew(setup) = &mut native.wgpu_options.wgpu_setup {
        refuse_software(setup);
    }
    native
}

fn refuse_software(setup: &mut WgpuSetupCreateNew) {
    setup.native_adapter_selector = Some(Arc::new(|adapters, surface| {
        let fits = |adapter: &&eframe::wgpu::Adapter| {
            adapter.get_info().device_type != eframe::wgpu::DeviceType::Cpu
                && surface.is_none_or(|surface| adapter.is_surface_supported(surface))
        };
        adapters.iter().find(fits).cloned().ok_or_else(|| "there is no graphics processor".to_owned())
    }));
}

/// A lower triangle fading towards the past: a mixing matrix.
fn icon() -> egui::IconData {
    const SIZE: usize = 64;
    const CELLS: usize = 8;
    let mut rgba = Vec::with_capacity(SIZE * SIZE * 4);
    for pixel in 0..SIZE * SIZE {
        let (row, col) = (pixel / SIZE * CELLS / SIZE, pixel % SIZE * CELLS / SIZE);
        let colour = if col > row {
            egui::Color32::from_gray(24)
        } else {
            crate::theme::oklch(0.9 - 0.09 * (row - col) as f32, 0.12, 110.0 + 22.0 * (row - col) as f32)
        };
        rgba.extend(colour.to_array());
    }
    egui::IconData { rgba, width: SIZE as u32, height: SIZE as u32 }
}
