//! Looks for a GPU while the window goes on.

use std::sync::{Arc, OnceLock};

use eframe::egui;
use statescope_engine::runner::find_gpu;

/// What the search has come to.
#[derive(Clone, Default)]
pub struct Gpu(Arc<OnceLock<Result<String, String>>>);

impl Gpu {
    /// Asks the driver on a thread of its own: that may take a second.
    pub fn look_for(ctx: &egui::Context) -> Self {
        let (gpu, ctx) = (Self::default(), ctx.clone());
        let found = gpu.0.clone();
        let search = move || {
            let _ = found.set(find_gpu().map_err(|error| error.to_string()));
            ctx.request_repaint();
        };
        if let Err(error) = std::thread::Builder::new().name("gpu".into()).spawn(search) {
            let _ = gpu.0.set(Err(format!("the search for a GPU cannot start: {error}")));
        }
        gpu
    }

    /// The name of the GPU, or why there is none; nothing until that is known.
    pub fn found(&self) -> Option<&Result<String, String>> {
        self.0.get()
    }
}
