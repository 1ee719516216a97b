//! Why a model could not be opened.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::config::supported_model_types;

/// Why a model could not be opened. The message is one sentence that names the file, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{} does not exist: give a folder with config.json and *.safetensors, a *.gguf file or its folder, or builtin:NAME", path.display())]
    NoSuchPath { path: PathBuf },
    #[error("{} is a file, but no GGUF: give the folder that holds config.json and *.safetensors instead", path.display())]
    NotAFolder { path: PathBuf },
    #[error("{} has no config.json: give the folder of one model as Hugging Face lays it out", path.display())]
    NoConfig { path: PathBuf },
    #[error("{} holds several GGUF models, such as {first} and {second}: give the file of one", path.display())]
    SeveralModels { path: PathBuf, first: String, second: String },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{file} is not valid JSON ({source}): download it again")]
    Json { file: String, source: serde_json::Error },
    #[error("{file}: {problem}")]
    Config { file: String, problem: ConfigError },

    #[error("{} has no *.safetensors file: the weights are missing, download them too", path.display())]
    NoWeights { path: PathBuf },
    #[error(
        "{} holds its weights only as {found}; convert it to safetensors \
         (transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder))",
        path.display()
    )]
    OnlyPickle { path: PathBuf, found: String },
    #[error("{named_by} expects the file {shard}, which is not there: download it too")]
    MissingShard { named_by: String, shard: String },
    #[error("{file} cannot be read: {problem}")]
    Malformed { file: String, problem: String },
    #[error(
        "tensor {tensor} is in both {first} and {second}: leave only one set of weights in the folder, or download it again"
    )]
    DuplicateTensor { tensor: String, first: String, second: String },
    #[error("{files} has no tensor {tensor}{}: {} asks for it, so the two do not belong together{}",
        expected.as_ref().map(|shape| format!(" {shape}")).unwrap_or_default(), described_by(files), closest(candidates))]
    MissingTensor { files: String, tensor: String, expected: Option<Shape>, candidates: Vec<String> },
    #[error("{file}: nothing in {by} asks for tensor {tensor}{}: dropping it would change the result, check {by}",
        if *others > 0 { format!(" and {others} more") } else { String::new() }, by = described_by(file))]
    UnexpectedTensor { file: String, tensor: String, others: usize },
    #[error("{file}: tensor {tensor} has shape {found}, but {} makes it {expected}", described_by(file))]
    WrongShape { file: String, tensor: String, expected: Shape, found: Shape },
    #[error("{file}: tensor {tensor} is stored as {found}, which is not supported: expected F32, BF16 or F16")]
    UnsupportedDtype { file: String, tensor: String, found: String },
    #[error("{file}: tensor {tensor} is {value} at element {index}: the weights are damaged, or training diverged")]
    NotFinite { file: String, tensor: String, index: usize, value: f32 },
    #[error("{file}: tensor {tensor} is {value} at element {index}, too large for {dtype}: choose another --dtype")]
    DoesNotFit { file: String, tensor: String, index: usize, value: f32, dtype: super::Dtype },

    #[error("{file} cannot be used as a tokenizer ({problem}): replace it, or remove it and give --tokens")]
    Tokenizer { file: String, problem: String },

    #[error("there is no built-in model {name:?}: choose one of {}", available.join(", "))]
    UnknownBuiltin { name: String, available: Vec<&'static str> },
    #[error(
        "builtin:{name} is not in this build: build with `--features builtin-models` (the default) and assets/models in place, or give a folder"
    )]
    NoBuiltins { name: String },

    /// It would not fit where it is to run.
    #[error(transparent)]
    Device(#[from] crate::runner::DeviceError),

    /// The caller stopped a load; nobody needs to be told.
    #[error("loading was cancelled")]
    Cancelled,
}

/// What is wrong in config.json.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the top level must be an object, found {found}")]
    NotAnObject { found: String },
    #[error("`model_type` {found:?} is not supported: supported are {} and the original state-spaces files", supported_model_types().collect::<Vec<_>>().join(", "))]
    UnknownModelType { found: String },
    #[error(
        "there is neither `model_type` nor the `d_model` and `n_layer` of original state-spaces files, so the architecture is unknown"
    )]
    NoModelType,
    /// A key has a value of the wrong type or outside its range.
    #[error("`{key}` is {found}, expected {expected}")]
    Invalid { key: String, found: String, expected: String },
    /// A key has a sensible value that would change the result and that is not implemented.
    #[error("`{key}` is {found}, which would change the result and is not supported: expected {expected}")]
    Unsupported { key: String, found: String, expected: String },
    /// Several keys contradict each other.
    #[error("{0}")]
    Inconsistent(String),
}

/// The sizes of a tensor, shown as `[out, in]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(pub Vec<usize>);

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What says which tensors a file has to hold.
fn described_by(file: &str) -> &'static str {
    let first = file.split_once(" (and ").map_or(file, |(first, _)| first);
    if first.ends_with(".gguf") { "its metadata" } else { "config.json" }
}

fn closest(candidates: &[String]) -> String {
    if candidates.is_empty() { String::new() } else { format!(" (closest: {})", candidates.join(", ")) }
}
