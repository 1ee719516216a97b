//! The models that are part of the binary: four siblings, trained on the same text. The build script lists those whose files are in
//! `assets/models`; a build without the feature `builtin-models` has none.

use std::sync::LazyLock;

/// A model in memory, laid out like a folder.
#[derive(Debug)]
pub struct BuiltinModel {
    /// `mamba` in `builtin:mamba`.
    pub name: &'static str,
    /// One line: kind and parameters.
    pub summary: &'static str,
    /// config.json.
    pub config: &'static [u8],
    /// model.safetensors.
    pub weights: &'static [u8],
    /// tokenizer.json.
    pub tokenizer: &'static [u8],
}

/// Name, then the bytes of config.json, model.safetensors and tokenizer.json.
type Files = (&'static str, [&'static [u8]; 3]);

include!(concat!(env!("OUT_DIR"), "/builtin_files.rs"));

/// All built-in models, in the order mamba, mamba2, transformer, hybrid.
pub fn list() -> &'static [BuiltinModel] {
    static MODELS: LazyLock<Vec<BuiltinModel>> = LazyLock::new(|| FILES.iter().map(model).collect());
    &MODELS
}

fn model(&(name, [config, weights, tokenizer]): &Files) -> BuiltinModel {
    let kind = match name {
        "mamba" => "Mamba-1: selective scan",
        "mamba2" => "Mamba-2: state-space duality",
        "transformer" => "Transformer: softmax attention",
        "hybrid" => "Hybrid: Mamba-2 with some attention layers",
        other => other,
    };
    let millions = parameters(weights) as f64 / 1e6;
    // Leaked once: the list lives as long as the program.
    BuiltinModel { name, summary: format!("{kind}, {millions:.1} M parameters").leak(), config, weights, tokenizer }
}

/// Elements of all tensors of a safetensors file; 0 for a damaged one, which opening it will explain.
fn parameters(weights: &[u8]) -> usize {
    let Ok((_, metadata)) = safetensors::SafeTensors::read_metadata(weights) else { return 0 };
    metadata.tensors().values().map(|info| info.shape.iter().product::<usize>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader;
    use crate::protocol::ModelSource;

    #[test]
    fn every_listed_model_opens() {
        for model in list() {
            let loaded = loader::open(&ModelSource::Builtin(model.name.to_owned()), None).unwrap();
            assert_eq!(loaded.name, model.name);
            assert!(loaded.spec.trained_context.is_some(), "{} does not say its trained context", model.name);
            assert_eq!(loaded.tokenizer.unwrap().vocab_size(), loaded.spec.vocab_size);
        }
        let order = ["mamba", "mamba2", "transformer", "hybrid"];
        assert!(list().iter().map(|model| order.iter().position(|name| *name == model.name).unwrap()).is_sorted());
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let error = loader::open(&ModelSource::Builtin("gpt9".to_owned()), None).err().unwrap().to_string();
        assert!(error.contains("gpt9"), "{error}");
        assert!(error.contains(if list().is_empty() { "builtin-models" } else { list()[0].name }), "{error}");
    }
}
