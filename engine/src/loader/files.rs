//! Which files of a folder hold the weights.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::LoadError;

/// The weight files of `folder`, in order: `model.safetensors`, or the shards that an index names, or all `model*.safetensors`, or
/// `pytorch_model.bin` or its shards, or all other `*.safetensors` (never `consolidated*` beside others, unless params.json asks for it).
///
/// # Errors
/// No such file, a shard that is missing, an unreadable index or folder.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let names = file_names(folder)?;
    let index = names.iter().find(|name| *name == "model.safetensors.index.json");
    if let Some(index) = index.or_else(|| names.iter().find(|name| name.ends_with(".safetensors.index.json"))) {
        return indexed_shards(folder, index);
    }

    let mut found: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    if found.iter().any(|name| name.starts_with("model")) {
        found.retain(|name| name.starts_with("model"));
    } else if let Some(pickled) = pickled(folder, &names)? {
        return Ok(pickled);
    } else if found.iter().any(|name| !name.starts_with("consolidated")) && !folder.join("params.json").is_file() {
        found.retain(|name| !name.starts_with("consolidated"));
    } else if found.iter().any(|name| name.starts_with("consolidated")) {
        found.retain(|name| name.starts_with("consolidated"));
    }
    if found.is_empty() {
        let pickle = |name: &&String| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end));
        return Err(match names.iter().find(pickle) {
            Some(found) => LoadError::OnlyPickle { path: folder.to_owned(), found: found.clone() },
            None => LoadError::NoWeights { path: folder.to_owned() },
        });
    }
    if let Some((named_by, shard)) = found.iter().find_map(|name| missing_sibling(name, &found)) {
        return Err(LoadError::MissingShard { named_by: folder.join(named_by).display().to_string(), shard });
    }
    Ok(found.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether any file of `folder` would be read as weights by [`weight_files`].
///
/// # Errors
/// An unreadable folder.
pub fn has_weights(folder: &Path) -> Result<bool, LoadError> {
    let is_weights = |name: &String| name.ends_with(".safetensors") || name.starts_with("pytorch_model.bin");
    Ok(file_names(folder)?.iter().any(is_weights))
}

/// `pytorch_model.bin`, or its shards.
fn pickled(folder: &Path, names: &[String]) -> Result<Option<Vec<PathBuf>>, LoadError> {
    if names.iter().any(|name| name == "pytorch_model.bin") {
        return Ok(Some(vec![folder.join("pytorch_model.bin")]));
    }
    let index = "pytorch_model.bin.index.json";
    names.iter().find(|name| *name == index).map(|index| indexed_shards(folder, index)).transpose()
}

/// Names of the files in `folder`, sorted, hidden ones left out.
pub fn file_names(folder: &Path) -> Result<Vec<String>, LoadError> {
    let read = |source| LoadError::Read { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn indexed_shards(folder: &Path, index: &str) -> Result<Vec<PathBuf>, LoadError> {
    let path = folder.join(index);
    let file = path.display().to_string();
    let text = std::fs::read_to_string(&path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
    let value: Value = serde_json::from_str(&text).map_err(|source| LoadError::Json { file: file.clone(), source })?;
    let malformed = |problem: &str| LoadError::Malformed { file: file.clone(), problem: problem.to_owned() };
    let map = value["weight_map"].as_object().ok_or_else(|| malformed("`weight_map` is missing or no object"))?;
    let mut shards = Vec::new();
    for shard in map.values() {
        let shard = shard.as_str().ok_or_else(|| malformed("`weight_map` must map tensor names to file names"))?;
        if Path::new(shard).file_name().is_none_or(|name| name != shard) {
            return Err(malformed(&format!("the shard {shard:?} is not a plain file name")));
        }
        shards.push(shard);
    }
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() {
        return Err(malformed("`weight_map` is empty"));
    }
    let shard_path = |shard: &str| {
        let path = folder.join(shard);
        if path.is_file() {
            Ok(path)
        } else {
            Err(LoadError::MissingShard { named_by: file.clone(), shard: shard.to_owned() })
        }
    };
    shards.into_iter().map(shard_path).collect()
}

/// For a file `…-00001-of-00003.safetensors`: itself and the first of its siblings that is not among `found`.
fn missing_sibling(name: &str, found: &[&String]) -> Option<(String, String)> {
    let stem = name.strip_suffix(".safetensors")?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let count: usize = total.parse().ok().filter(|&count| count <= 10_000)?;
    number.parse::<usize>().ok()?;
    let width = number.len();
    let sibling = |i: usize| format!("{prefix}-{i:0width$}-of-{total}.safetensors");
    let missing = (1..=count).map(sibling).find(|sibling| !found.contains(&sibling))?;
    Some((name.to_owned(), missing))
}
