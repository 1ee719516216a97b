//! Opens a model: config.json → [`ModelSpec`], weight files → [`Weights`] (headers only), tokenizer.json → [`Tokenizer`].
//!
//! Nothing here reads all weights: the model builder asks for one tensor after another, so that loading shows progress and can be
//! cancelled. A new family is a file in `config/`, a table in `names` and a mixer.

pub mod config;
mod error;
mod files;
pub mod gguf;
mod keys;
pub mod names;
mod pickle;
mod rope;
pub mod tokenizer;
pub mod weights;
pub mod world;

use std::path::Path;

pub use error::{ConfigError, LoadError, Shape};
pub use names::Names;
pub use tokenizer::{Tokenizer, TokenizerError};
pub use weights::{Scope, Weights};

use crate::builtin;
use crate::model::spec::ModelSpec;
use crate::protocol::{Dtype, ModelSource};

/// A model that can be built.
pub struct Loaded {
    pub spec: ModelSpec,
    pub weights: Weights,
    /// None for a folder without tokenizer.json: then prompts are token ids.
    pub tokenizer: Option<Tokenizer>,
    /// Short name: the built-in's, the folder's, or the file's.
    pub name: String,
    /// The format of the weights, for people.
    pub format: String,
}

/// Reads what describes a model, and the headers of its weights. `dtype`: what to hold matrices in; the file's own if none.
///
/// # Errors
/// [`LoadError`], one sentence each.
pub fn open(source: &ModelSource, dtype: Option<Dtype>) -> Result<Loaded, LoadError> {
    match source {
        ModelSource::Builtin(name) => open_builtin(name, dtype),
        ModelSource::Path(path) => open_folder(path, dtype),
    }
}

fn open_builtin(name: &str, dtype: Option<Dtype>) -> Result<Loaded, LoadError> {
    let models = builtin::list();
    if models.is_empty() {
        return Err(LoadError::NoBuiltins { name: name.to_owned() });
    }
    let Some(model) = models.iter().find(|model| model.name == name) else {
        let available = models.iter().map(|model| model.name).collect();
        return Err(LoadError::UnknownBuiltin { name: name.to_owned(), available });
    };
    let file = |file: &str| format!("builtin:{name}/{file}");
    Ok(Loaded {
        spec: config::parse(&String::from_utf8_lossy(model.config), &file("config.json"))?,
        weights: Weights::embedded(file("model.safetensors"), model.weights, dtype)?,
        tokenizer: Some(tokenizer(model.tokenizer, file("tokenizer.json"))?),
        name: name.to_owned(),
        format: "safetensors".to_owned(),
    })
}

fn open_folder(folder: &Path, dtype: Option<Dtype>) -> Result<Loaded, LoadError> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source });
    if folder.is_file() && gguf::is_gguf(folder) {
        return gguf::open(folder, dtype);
    }
    if folder.is_file() {
        return Err(LoadError::NotAFolder { path: folder.to_owned() });
    }
    if !folder.exists() {
        return Err(LoadError::NoSuchPath { path: folder.to_owned() });
    }
    let (config_path, params_path) = (folder.join("config.json"), folder.join("params.json"));
    // Beside a GGUF file there often is the config.json that it was made from.
    if !files::has_weights(folder)?
        && let Some(gguf) = gguf::in_folder(folder)?
    {
        return gguf::open(&gguf, dtype);
    }
    let text = |path: &Path| Ok::<_, LoadError>(String::from_utf8_lossy(&read(path)?).into_owned());
    let (spec, weights) = if config_path.is_file() {
        let spec = config::parse(&text(&config_path)?, &config_path.display().to_string())?;
        (spec, Weights::open(folder, dtype)?)
    } else if params_path.is_file() {
        let (text, weights) = (text(&params_path)?, Weights::open(folder, dtype)?);
        let shape = |name: &str| weights.shape(name).map(<[usize]>::to_vec);
        (config::parse_params(&text, &params_path.display().to_string(), shape)?, weights)
    } else {
        return Err(LoadError::NoConfig { path: folder.to_owned() });
    };
    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer = match tokenizer_path.is_file() {
        true => Some(tokenizer(&read(&tokenizer_path)?, tokenizer_path.display().to_string())?),
        false => world_vocabulary(folder)?,
    };
    let format = weights.format().to_owned();
    Ok(Loaded { spec, weights, tokenizer, name: folder_name(folder), format })
}

/// RWKV's vocabulary, which has a file of its own kind.
fn world_vocabulary(folder: &Path) -> Result<Option<Tokenizer>, LoadError> {
    let Some(path) = world::FILES.iter().map(|file| folder.join(file)).find(|path| path.is_file()) else {
        return Ok(None);
    };
    let text = std::fs::read(&path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
    let broken = |problem: String| LoadError::Tokenizer { file: path.display().to_string(), problem };
    let text = String::from_utf8(text).map_err(|error| broken(error.to_string()))?;
    world::World::from_file(&text).map(|world| Some(Tokenizer::from_world(world))).map_err(broken)
}

fn tokenizer(bytes: &[u8], file: String) -> Result<Tokenizer, LoadError> {
    Tokenizer::from_bytes(bytes).map_err(|error| LoadError::Tokenizer { file, problem: error.to_string() })
}

/// The last part of the path, also of `.` and `models/x/..`.
fn folder_name(folder: &Path) -> String {
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let real = || last(&folder.canonicalize().ok()?);
    last(folder).or_else(real).unwrap_or_else(|| folder.display().to_string())
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
