//! GGUF, the format of llama.cpp: one file that holds metadata, vocabulary and weights.

mod as_stored;
pub mod blocks;
mod config;
mod header;
mod names;
mod vocabulary;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use statescope_kernels::mmap::MappedFile;

use super::error::LoadError;
use super::weights::Weights;
use super::{Loaded, folder_name};
use crate::protocol::Dtype;
pub use header::Header;

/// Whether a file is one, by its name or its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && Header::begins(&magic)
    };
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) || begins()
}

/// Reads what a GGUF file says, and where its tensors lie.
///
/// # Errors
/// A damaged file, an architecture or vocabulary that is not supported, metadata that makes no sense.
pub fn open(path: &Path, dtype: Option<Dtype>) -> Result<Loaded, LoadError> {
    let file = MappedFile::open(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    let (file, label) = (Arc::new(file), path.display().to_string());
    let malformed = |problem: String| LoadError::Malformed { file: label.clone(), problem };
    let mut header = Header::read(&file).map_err(malformed)?;
    let described = config::describe(&header).map_err(malformed)?;
    let mut spec = super::config::from_value(&described.config, &label)?;
    let tokenizer = vocabulary::tokenizer(&header).map_err(malformed)?;
    let format = format!("GGUF, {}", kinds(&header));

    let tensors = std::mem::take(&mut header.tensors);
    let paired = |name: &str| {
        let (layer, part) = name.strip_prefix("blk.").filter(|_| described.pairs)?.split_once('.')?;
        match part.rsplit_once('.')?.0 {
            "attn_q" => Some(described.heads),
            "attn_k" => described.kv_heads.get(layer.parse::<usize>().ok()?).copied(),
            _ => None,
        }
    };
    let tensors = names::as_asked_for(tensors, described.experts, described.head_dim).map_err(malformed)?;
    for tensor in &tensors {
        // Rows are the last but one of the sizes, or the only one of a bias.
        let rows = *tensor.shape[tensor.shape.len().saturating_sub(2)..].first().unwrap_or(&1);
        if paired(&tensor.name).is_some_and(|heads| heads == 0 || !rows.is_multiple_of(2 * heads)) {
            return Err(malformed(format!(
                "the {rows} rows of tensor {} do not fall into heads of pairs",
                tensor.name
            )));
        }
    }
    let weights = Weights::located(label.clone(), file.clone(), tensors, described.names, paired, dtype)?;
    let factors = "rope_freqs.weight";
    let factors = match weights.shape(factors).map(|shape| shape.iter().product()) {
        Some(len) => Some(weights.tensor(factors, &[len])?),
        None => None,
    };
    as_stored::apply(&mut spec, factors.as_deref(), described.rescale_every).map_err(malformed)?;
    let name = path.file_stem().map_or_else(|| folder_name(path), |stem| stem.to_string_lossy().into_owned());
    Ok(Loaded { spec, weights, tokenizer, name, format })
}

/// How the numbers are stored, the most frequent first.
fn kinds(header: &Header<'_>) -> String {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for tensor in &header.tensors {
        *counts.entry(tensor.stored.to_string()).or_default() += tensor.shape.iter().product::<usize>();
    }
    let mut kinds: Vec<(usize, String)> = counts.into_iter().map(|(kind, count)| (count, kind)).collect();
    kinds.sort_by(|a, b| b.cmp(a));
    kinds.into_iter().map(|(_, kind)| kind).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
