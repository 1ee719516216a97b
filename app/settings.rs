//! What is remembered between runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use statescope_engine::protocol::{Dtype, ModelInfo, ModelSource};
use statescope_engine::sampler::Sampling;

use crate::layout::Layout;
use crate::theme::Ground;
use crate::view::{self, ViewKind, Views};

const STORAGE_KEY: &str = "statescope";

/// Folders kept under 'Recent'.
const RECENT: usize = 8;

/// The prompts that a fresh start shows: as text, and for models without a tokenizer as ids.
pub const EXAMPLE_PROMPT: &str = "Once upon a time, there was a";
const EXAMPLE_IDS: &str = "1, 2, 3, 4, 5, 6, 7, 8";

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Settings {
    pub ground: Ground,
    /// Everything half as large again, for the back row.
    pub presentation: bool,
    /// What models with a tokenizer read, and what the others do.
    pub prompt: String,
    pub prompt_ids: String,
    pub temperature: f32,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub seed: u64,
    pub tokens_to_make: usize,
    /// Tokens/s at most; none is full speed.
    pub speed: Option<f32>,
    pub recent: Vec<PathBuf>,
    /// Spelling of the type that weights are held in; none is the file's own.
    pub dtype: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let sampling = Sampling::default();
        Self {
            ground: Ground::Dark,
            presentation: false,
            prompt: EXAMPLE_PROMPT.into(),
            prompt_ids: EXAMPLE_IDS.into(),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            seed: sampling.seed,
            tokens_to_make: 256,
            speed: None,
            recent: Vec::new(),
            dtype: None,
        }
    }
}

impl Settings {
    /// The prompt for a model; each of the two is kept while the other is shown.
    pub fn prompt(&self, model: Option<&ModelInfo>) -> &String {
        if model.is_some_and(|model| !model.has_tokenizer) { &self.prompt_ids } else { &self.prompt }
    }

    pub fn set_prompt(&mut self, model: Option<&ModelInfo>, text: String) {
        *if model.is_some_and(|model| !model.has_tokenizer) { &mut self.prompt_ids } else { &mut self.prompt } = text;
    }

    pub fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p, seed: self.seed }
    }

    pub fn set_sampling(&mut self, sampling: &Sampling) {
        self.temperature = sampling.temperature;
        self.top_k = sampling.top_k;
        self.top_p = sampling.top_p;
        self.seed = sampling.seed;
    }

    pub fn dtype(&self) -> Option<Dtype> {
        self.dtype.as_ref()?.parse().ok()
    }

    pub fn remember(&mut self, source: &ModelSource) {
        if let ModelSource::Path(path) = source {
            self.recent.retain(|p| p != path);
            self.recent.insert(0, path.clone());
            self.recent.truncate(RECENT);
        }
    }
}

/// Mamba-2, or whichever model is built in; none in a slim build.
pub fn default_model() -> Option<ModelSource> {
    let models = statescope_engine::builtin::list();
    let model = models.iter().find(|model| model.name == "mamba2").or(models.first())?;
    Some(ModelSource::Builtin(model.name.to_owned()))
}

/// Everything that is saved.
#[derive(Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Saved {
    pub settings: Settings,
    pub layout: Layout,
    views: BTreeMap<ViewKind, serde_json::Value>,
}

impl Saved {
    /// What was saved last; the defaults if that cannot be read.
    pub fn read(storage: Option<&dyn eframe::Storage>) -> Self {
        let text = storage.and_then(|storage| storage.get_string(STORAGE_KEY));
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    pub fn write(storage: &mut dyn eframe::Storage, settings: &Settings, layout: &Layout, views: &Views) {
        let views = views.iter().map(|(kind, view)| (*kind, view.save())).collect();
        let saved = Self { settings: settings.clone(), layout: layout.clone(), views };
        if let Ok(text) = serde_json::to_string(&saved) {
            storage.set_string(STORAGE_KEY, text);
        }
    }

    /// All panels with their own settings.
    pub fn views(&self) -> Views {
        let mut views = view::all();
        for (kind, value) in &self.views {
            if let Some(view) = views.get_mut(kind) {
                view.restore(value);
            }
        }
        views
    }
}
