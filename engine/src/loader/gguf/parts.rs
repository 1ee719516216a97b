//! A model in several files, as `llama-gguf-split` writes them: `name-00001-of-00003.gguf` and so on. The first part holds the metadata
//! of the model; each says which one it is, and all hold tensors. Any of them stands for the model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use statescope_kernels::mmap::MappedFile;

use super::header::Header;
use crate::loader::error::LoadError;
use crate::loader::files::file_names;

const AGAIN: &str = "download all parts of one model again";

/// One file of a model; most models are one file.
pub struct Part {
    pub path: PathBuf,
    pub file: Arc<MappedFile>,
}

impl Part {
    fn open(path: &Path) -> Result<Self, LoadError> {
        let file = MappedFile::open(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file) })
    }

    /// Its name in messages.
    pub fn label(&self) -> String {
        self.path.display().to_string()
    }

    pub fn malformed(&self, problem: String) -> LoadError {
        LoadError::Malformed { file: self.label(), problem }
    }

    fn header(&self) -> Result<Header<'_>, LoadError> {
        Header::read(&self.file).map_err(|problem| self.malformed(problem))
    }
}

/// Which part of how many a file says to be, counted from 0; none where the model is one file.
fn place(header: &Header<'_>) -> Result<Option<[u64; 2]>, String> {
    let number = |key: &str| match header.get(key) {
        Some(value) => {
            value.size().map(Some).ok_or_else(|| format!("its {key} is {value}, expected a number; {AGAIN}"))
        }
        None => Ok(None),
    };
    match (number("split.no")?, number("split.count")?) {
        (_, None | Some(0 | 1)) => Ok(None),
        (Some(index), Some(count)) if index < count => Ok(Some([index, count])),
        (index, Some(count)) => {
            let index = index.map_or("no number".to_owned(), |index| format!("number {index}, counted from 0,"));
            Err(format!("it says to be part {index} of {count}; {AGAIN}"))
        }
    }
}

/// How the name of part `index` of `count` ends.
fn ending(index: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", index + 1)
}

/// The parts of the model that `path` belongs to, in order, and the name of the model.
///
/// # Errors
/// A part that is missing, that is another than its name says, or that belongs to another number of parts.
pub fn open(path: &Path) -> Result<(Vec<Part>, String), LoadError> {
    let given = Part::open(path)?;
    let Some([index, count]) = place(&given.header()?).map_err(|problem| given.malformed(problem))? else {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        return Ok((vec![given], stem.unwrap_or_else(|| path.display().to_string())));
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&ending(index, count)) else {
        return Err(given.malformed(format!(
            "it is part {} of {count}, so its name has to end in {} for the others to be found: rename it",
            index + 1,
            ending(index, count)
        )));
    };
    let mut parts = Vec::new();
    for other in 0..count {
        let sibling = format!("{stem}{}", ending(other, count));
        let path = path.with_file_name(&sibling);
        if !path.is_file() {
            return Err(LoadError::MissingShard { named_by: given.label(), shard: sibling });
        }
        let part = Part::open(&path)?;
        if place(&part.header()?).map_err(|problem| part.malformed(problem))? != Some([other, count]) {
            return Err(part.malformed(format!("it is not part {} of {count}, as its name says: {AGAIN}", other + 1)));
        }
        parts.push(part);
    }
    Ok((parts, stem.to_owned()))
}

/// The header of the first part with the tensors of all.
///
/// # Errors
/// A damaged part; one that describes a model of its own; more or fewer tensors than the first part says.
pub fn header(parts: &[Part]) -> Result<Header<'_>, LoadError> {
    let mut whole = parts[0].header()?;
    for (index, part) in parts.iter().enumerate().skip(1) {
        let header = part.header()?;
        whole.tensors.extend(header.tensors.into_iter().map(|tensor| super::Located { file: index, ..tensor }));
    }
    let promised = whole.get("split.tensors.count").and_then(|count| count.size());
    match promised.filter(|&count| parts.len() > 1 && count != whole.tensors.len() as u64) {
        Some(count) => Err(parts[0].malformed(format!(
            "its {} parts hold {} tensors together, but it says {count}: {AGAIN}",
            parts.len(),
            whole.tensors.len()
        ))),
        None => Ok(whole),
    }
}

/// The GGUF model of a folder that holds one: its only file, or the first part.
///
/// # Errors
/// Several models.
pub fn in_folder(folder: &Path) -> Result<Option<PathBuf>, LoadError> {
    let is_gguf = |name: &String| Path::new(name).extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    let names: Vec<String> = file_names(folder)?.into_iter().filter(is_gguf).collect();
    let mut models: Vec<&String> = names.iter().collect();
    models.dedup_by_key(|name| model_of(name));
    match models.as_slice() {
        [] => Ok(None),
        [first] => Ok(Some(folder.join(first))),
        [first, second, ..] => Err(LoadError::SeveralModels {
            path: folder.to_owned(),
            first: (*first).clone(),
            second: (*second).clone(),
        }),
    }
}

/// The name of a file without what numbers its parts.
fn model_of(name: &str) -> String {
    let numbered = || {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, index) = rest.rsplit_once('-')?;
        [index, count].iter().all(|number| number.parse::<u32>().is_ok()).then(|| format!("{stem} of {count}"))
    };
    numbered().unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
