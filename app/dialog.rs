//! Questions that the system asks: a folder or file to open, a file to write. Each waits on a thread of its own; the window goes on.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::mpsc::Sender;

use eframe::egui;
use rfd::{AsyncFileDialog, FileHandle};

use crate::action::Action;

/// Asks for a model folder, or a GGUF file; `Action::Opened` comes back, or nothing.
pub fn open_model(ctx: &egui::Context, answers: &Sender<Action>, start: Option<PathBuf>, file: bool) {
    let mut dialog = match file {
        false => AsyncFileDialog::new().set_title("Open a model folder (config.json and *.safetensors)"),
        true => AsyncFileDialog::new().set_title("Open a GGUF file").add_filter("GGUF", &["gguf"]),
    };
    if let Some(folder) = start {
        dialog = dialog.set_directory(folder);
    }
    let (ctx, answers) = (ctx.clone(), answers.clone());
    // The dialog is made here, on the main thread, as macOS wants it; only waiting happens elsewhere.
    let answer: Pin<Box<dyn Future<Output = Option<FileHandle>> + Send>> =
        if file { Box::pin(dialog.pick_file()) } else { Box::pin(dialog.pick_folder()) };
    std::thread::spawn(move || {
        if let Some(chosen) = pollster::block_on(answer) {
            // A closed window no longer listens.
            let _ = answers.send(Action::Opened(chosen.path().to_owned()));
            ctx.request_repaint();
        }
    });
}

/// Asks where to write `csv`, and writes it.
pub fn export(ctx: &egui::Context, answers: &Sender<Action>, name: &str, csv: String) {
    let dialog = AsyncFileDialog::new().set_title("Export as CSV").set_file_name(format!("{name}.csv"));
    let (ctx, answers) = (ctx.clone(), answers.clone());
    let answer = dialog.save_file();
    std::thread::spawn(move || {
        let Some(file) = pollster::block_on(answer) else { return };
        let path = file.path().to_owned();
        let told = match std::fs::write(&path, csv) {
            Ok(()) => Action::Note(format!("Wrote {}.", path.display())),
            Err(error) => Action::Note(format!("Could not write {}: {error}.", path.display())),
        };
        let _ = answers.send(told);
        ctx.request_repaint();
    });
}
