//! Questions that the system asks: a folder or file to open, a file to write. Each waits on a thread of its own; the window goes on.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

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
    let asked = Instant::now();
    std::thread::spawn(move || {
        let told = match pollster::block_on(answer) {
            Some(chosen) => Action::Opened(chosen.path().to_owned()),
            None if never_shown(asked) => Action::Note(format!("{NO_DIALOG}, or start with --model PATH.")),
            None => return,
        };
        // A closed window no longer listens.
        let _ = answers.send(told);
        ctx.request_repaint();
    });
}

/// Asks where to write `csv`, and writes it.
pub fn export(ctx: &egui::Context, answers: &Sender<Action>, name: &str, csv: String) {
    let dialog = AsyncFileDialog::new().set_title("Export as CSV").set_file_name(format!("{name}.csv"));
    let (ctx, answers) = (ctx.clone(), answers.clone());
    let answer = dialog.save_file();
    let asked = Instant::now();
    std::thread::spawn(move || {
        let told = match pollster::block_on(answer) {
            Some(file) => {
                let path = file.path();
                Action::Note(match write_whole(path, csv.as_bytes()) {
                    Ok(()) => format!("Wrote {}.", path.display()),
                    Err(error) => format!("Could not write {}: {error}.", path.display()),
                })
            }
            None if never_shown(asked) => Action::Note(format!("{NO_DIALOG}, or copy as CSV.")),
            None => return,
        };
        let _ = answers.send(told);
        ctx.request_repaint();
    });
}

const NO_DIALOG: &str = "No file dialog here: install zenity";

/// Nobody closes a dialog that fast: there was none. The system does not tell that from an answer of no.
fn never_shown(asked: Instant) -> bool {
    asked.elapsed() < Duration::from_millis(300)
}

/// All of it or nothing: what was there before stays until the new file is complete.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heads.csv");
        write_whole(&path, b"1,2").unwrap();
        write_whole(&path, b"3").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"3");
        let taken = folder.path().join("folder");
        std::fs::create_dir_all(taken.join("inside")).unwrap();
        assert!(write_whole(&taken, b"4").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
