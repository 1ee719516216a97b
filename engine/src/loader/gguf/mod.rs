//! GGUF, the format of llama.cpp: one file, or one cut into parts, that holds metadata, vocabulary and weights.

mod as_stored;
pub mod blocks;
mod config;
mod header;
mod names;
mod parts;
mod vocabulary;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use super::Loaded;
use super::error::LoadError;
use super::weights::{Located, Weights};
use crate::protocol::Dtype;
pub use header::Header;
pub use parts::in_folder;

/// Whether a file is one, by its name or its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && Header::begins(&magic)
    };
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) || begins()
}

/// Reads what a GGUF file says, and where its tensors lie; of a model in several parts any one of them stands for all.
///
/// # Errors
/// A damaged file, a missing part, an architecture or vocabulary that is not supported, metadata that makes no sense.
pub fn open(path: &Path, dtype: Option<Dtype>) -> Result<Loaded, LoadError> {
    let (parts, name) = parts::open(path)?;
    let label = parts[0].label();
    let malformed = |problem: String| LoadError::Malformed { file: label.clone(), problem };
    let mut header = parts::header(&parts)?;
    let described = config::describe(&header).map_err(malformed)?;
    let mut spec = super::config::from_value(&described.config, &label)?;
    let tokenizer = vocabulary::tokenizer(&header).map_err(malformed)?;
    let format = match parts.len() {
        1 => format!("GGUF, {}", kinds(&header)),
        count => format!("GGUF in {count} parts, {}", kinds(&header)),
    };

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
    let files = parts.iter().map(|part| (part.label(), part.file.clone()));
    let weights = Weights::located(files, tensors, described.names, paired, dtype)?;
    let factors = "rope_freqs.weight";
    let factors = match weights.shape(factors).map(|shape| shape.iter().product()) {
        Some(len) => Some(weights.tensor(factors, &[len])?),
        None => None,
    };
    as_stored::apply(&mut spec, factors.as_deref(), described.rescale_every).map_err(malformed)?;
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
