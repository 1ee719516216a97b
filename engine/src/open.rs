//! From a model's source to a model ready to run.

use crate::loader::{self, tokenizer::Tokenizer};
use crate::model::Model;
use crate::place::Place;
use crate::protocol::{Device, DeviceInfo, Dtype, Geometry, ModelInfo, ModelSource, TokenId};
use crate::room::Needed;

/// Bytes and special spelling of a token; ids in brackets where there is no tokenizer, and of meta tokens their number.
pub fn spell(info: &ModelInfo, tokenizer: Option<&Tokenizer>, id: TokenId) -> (Vec<u8>, Option<String>) {
    if let Some(index) = (id as usize).checked_sub(info.vocab_size) {
        return (Vec::new(), Some(format!("[meta {index}]")));
    }
    match tokenizer {
        Some(tokenizer) => match tokenizer.special(id) {
            Some(special) => (Vec::new(), Some(special)),
            None => (tokenizer.bytes(id), None),
        },
        None => (Vec::new(), Some(format!("[{id}]"))),
    }
}

/// Opens a folder or a built-in model. `progress` may stop it by returning false.
///
/// # Errors
/// What is wrong with it.
pub fn open_model(
    source: &ModelSource,
    dtype: Option<Dtype>,
    progress: impl FnMut(f32) -> bool,
) -> Result<(Model, Option<Tokenizer>, ModelInfo), loader::LoadError> {
    open_for(&Place::Cpu, source, dtype, progress)
}

/// The same for a model that is to run in `place`: one whose weights cannot fit there is not read.
///
/// # Errors
/// That, or what is wrong with it.
pub fn open_for(
    place: &Place,
    source: &ModelSource,
    dtype: Option<Dtype>,
    progress: impl FnMut(f32) -> bool,
) -> Result<(Model, Option<Tokenizer>, ModelInfo), loader::LoadError> {
    let opened = loader::open(source, dtype)?;
    if place.device() != Device::Cpu {
        place.check(&opened.name, Needed { weights: opened.weights.bytes_at_least(), ..Needed::default() })?;
    }
    let model = Model::load(opened.spec, &opened.weights, progress)?;
    let layers = model.layer_info();
    let sum = |f: fn(&Geometry) -> usize| layers.iter().flat_map(|l| &l.parts).map(f).sum();
    let info = ModelInfo {
        source: source.clone(),
        name: opened.name,
        format: opened.format,
        model_type: model.spec().model_type.clone(),
        hidden_size: model.spec().hidden_size,
        vocab_size: model.spec().vocab_size,
        meta_tokens: model.spec().meta_tokens,
        tied_embeddings: model.is_tied(),
        parameters: opened.weights.parameters_read(),
        dtype: model.dtype(),
        weights_bytes: opened.weights.bytes_read(),
        state_bytes: sum(|g| g.state_bytes),
        kv_bytes_per_token: sum(|g| g.kv_bytes_per_token),
        trained_context: model.spec().trained_context,
        has_tokenizer: opened.tokenizer.is_some(),
        end_tokens: model.spec().end_tokens.clone(),
        device: DeviceInfo::default(),
        layers,
    };
    Ok((model, opened.tokenizer, info))
}
