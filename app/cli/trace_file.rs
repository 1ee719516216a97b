//! A safetensors file that is there completely or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value, json};

/// Values of a tensor.
pub enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Values,
}

impl Values {
    fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "F32",
            Self::I64(_) => "I64",
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::I64(values) => size_of_val(values.as_slice()),
        }
    }

    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        match self {
            Self::F32(values) => values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes())),
            Self::I64(values) => values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes())),
        }
    }
}

/// Whether a trace could be written there, asked before the work is done.
///
/// # Errors
/// The folder does not exist, or something other than a file is in the way.
pub fn check(path: &Path) -> Result<()> {
    let folder = folder(path);
    if !folder.is_dir() {
        bail!("cannot write {}: the folder {} does not exist", path.display(), folder.display());
    }
    if path.file_name().is_none() || path.metadata().is_ok_and(|found| !found.is_file()) {
        bail!("cannot write {}: it is not an ordinary file", path.display());
    }
    Ok(())
}

/// Writes the file under another name beside `path`, then renames it. Returns its bytes.
pub fn write(path: &Path, metadata: &Map<String, Value>, tensors: &[Tensor]) -> Result<usize> {
    let header = header(metadata, tensors);
    let bytes = 8 + header.len() + tensors.iter().map(|tensor| tensor.values.bytes()).sum::<usize>();
    let partial = Partial::beside(path);
    let write = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, partial.create()?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        tensors.iter().try_for_each(|tensor| tensor.values.write(&mut file))?;
        file.into_inner()?.sync_all()?;
        fs::rename(&partial.path, path)
    };
    write().map_err(|error| anyhow!("cannot write {}: {error}", path.display()))?;
    Ok(bytes)
}

/// The JSON in front of the data. Tensors of 8 bytes an element come first, so that all are aligned.
fn header(metadata: &Map<String, Value>, tensors: &[Tensor]) -> String {
    let mut header = Map::new();
    header.insert("__metadata__".into(), Value::Object(metadata.clone()));
    let mut start = 0;
    for Tensor { name, shape, values } in tensors {
        let end = start + values.bytes();
        header.insert(name.clone(), json!({ "dtype": values.dtype(), "shape": shape, "data_offsets": [start, end] }));
        start = end;
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    text
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The unfinished file; gone when dropped, unless it was renamed.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn beside(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self { path: folder(path).join(format!(".{name}.{}.partial", std::process::id())) }
    }

    fn create(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_header_is_whole_and_padded() {
        let tensor =
            |i: usize| Tensor { name: format!("layers.{i}.mixing"), shape: vec![0], values: Values::F32(Vec::new()) };
        let tensors: Vec<Tensor> = (0..1500).map(tensor).collect();
        let text = header(&Map::from_iter([("text".to_owned(), json!("·"))]), &tensors);
        assert!(text.len() > usize::from(u16::MAX) && text.len().is_multiple_of(8));
        assert_eq!(serde_json::from_str::<Map<String, Value>>(&text).unwrap().len(), 1501);
    }
}
