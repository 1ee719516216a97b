//! `pytorch_model.bin`: a zip archive of a pickle, which names the tensors, and of their numbers, stored as they are.
//!
//! A pickle is a program for a stack machine. Here only what torch.save writes for a dictionary of tensors is understood; nothing is
//! called, and values are shared rather than copied, so that no program grows or nests beyond its own length. The numbers are not read
//! here: what is found is where they lie in the file, so that a pickled model is mapped like any other.

mod machine;

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::ops::Range;

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::weights::{Located, Stored};
use machine::Saved;
#[cfg(test)]
pub use machine::run;

/// Longer programs than a dictionary of tensors needs.
const MAX_PROGRAM: u64 = 32 << 20;

const AGAIN: &str = "download it again, or convert it to safetensors";

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// The tensors of the file whose bytes are `bytes`.
///
/// # Errors
/// What is wrong with the file and what to do, without its name.
pub fn tensors(bytes: &[u8]) -> Result<Vec<Located>, String> {
    let mut archive = ZipArchive::new(Cursor::new(bytes))
        .map_err(|error| format!("it is no zip archive as torch.save writes since version 1.6 ({error}); {AGAIN}"))?;
    if read_small(&mut archive, "byteorder").is_some_and(|order| order.trim_ascii() == b"big") {
        return Err("it was written on a big-endian machine; convert it to safetensors".to_owned());
    }
    let (folder, program) = program(&mut archive)?;
    let saved = machine::run(&program)
        .map_err(|problem| format!("its pickle does not hold a plain dictionary of tensors ({problem}); {AGAIN}"))?;
    if saved.is_empty() {
        return Err(format!("it holds no tensors; {AGAIN}"));
    }
    let mut storages: HashMap<String, Range<usize>> = HashMap::new();
    let mut located = Vec::with_capacity(saved.len());
    for tensor in saved {
        let path = format!("{folder}data/{}", tensor.storage);
        let storage = match storages.get(&path) {
            Some(storage) => storage.clone(),
            None => storages.entry(path.clone()).or_insert(storage(&mut archive, &path, bytes.len())?).clone(),
        };
        located.push(locate(tensor, &storage)?);
    }
    Ok(located)
}

/// The folder in the archive, and the pickle in it.
fn program(archive: &mut Archive<'_>) -> Result<(String, Vec<u8>), String> {
    let names: Vec<String> = archive.file_names().filter_map(Result::ok).map(|name| name.into_owned()).collect();
    let mut pickles = names.iter().filter(|name| name.ends_with("data.pkl"));
    let (Some(name), None) = (pickles.next(), pickles.next()) else {
        return Err(format!("it does not hold one data.pkl; {AGAIN}"));
    };
    let folder = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    let entry = archive.by_name(name).map_err(|error| format!("its data.pkl cannot be read ({error}); {AGAIN}"))?;
    let mut program = Vec::new();
    // What is compressed may say to be shorter than it is.
    let read = entry.take(MAX_PROGRAM + 1).read_to_end(&mut program);
    match read {
        Ok(_) if program.len() as u64 <= MAX_PROGRAM => Ok((folder, program)),
        Ok(_) => Err(format!("its data.pkl is longer than any dictionary of tensors; {AGAIN}")),
        Err(error) => Err(format!("its data.pkl cannot be read ({error}); {AGAIN}")),
    }
}

/// The pickle of a file, for tests.
#[cfg(test)]
pub fn program_of(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(program(&mut ZipArchive::new(Cursor::new(bytes)).ok()?).ok()?.1)
}

/// The first bytes of the entry whose path ends with `/name`.
fn read_small(archive: &mut Archive<'_>, name: &str) -> Option<Vec<u8>> {
    let end = format!("/{name}");
    let path = archive.file_names().filter_map(Result::ok).find(|path| path.ends_with(&end))?.into_owned();
    let mut bytes = Vec::new();
    archive.by_name(&path).ok()?.take(16).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Where the numbers of a storage lie.
fn storage(archive: &mut Archive<'_>, path: &str, file_len: usize) -> Result<Range<usize>, String> {
    let entry =
        archive.by_name(path).map_err(|error| format!("the numbers at {path} are missing ({error}); {AGAIN}"))?;
    if entry.compression() != CompressionMethod::Stored {
        return Err(format!("the numbers at {path} are compressed, which torch.save never does; {AGAIN}"));
    }
    let place = entry.data_start().and_then(|start| {
        let start = usize::try_from(start).ok()?;
        Some(start..start.checked_add(usize::try_from(entry.size()).ok()?)?)
    });
    place
        .filter(|place| place.end <= file_len)
        .ok_or_else(|| format!("the numbers at {path} lie beyond the end of the file; {AGAIN}"))
}

fn locate(tensor: Saved, storage: &Range<usize>) -> Result<Located, String> {
    let Saved { name, kind, shape, strides, offset, .. } = tensor;
    let mut dense = 1usize;
    for (&size, &stride) in shape.iter().zip(&strides).rev() {
        if size > 1 && stride != dense {
            return Err(format!("tensor {name} is stored as a view with strides; {AGAIN}"));
        }
        dense = dense.checked_mul(size).ok_or_else(|| format!("the shape of tensor {name} is {shape:?}; {AGAIN}"))?;
    }
    let dtype =
        dtype_of(&kind).ok_or_else(|| format!("tensor {name} is stored as {kind}, which is not supported; {AGAIN}"))?;
    let size = dtype.bitsize() / 8;
    let place = offset.checked_mul(size).and_then(|start| {
        let start = storage.start.checked_add(start)?;
        Some(start..start.checked_add(dense.checked_mul(size)?)?)
    });
    let range = place
        .filter(|place| place.end <= storage.end)
        .ok_or_else(|| format!("tensor {name} reaches beyond its {} stored bytes; {AGAIN}", storage.len()))?;
    Ok(Located { name: name.to_string(), stored: Stored::Plain(dtype), shape, file: 0, range })
}

/// torch's names of storages.
fn dtype_of(kind: &str) -> Option<Dtype> {
    Some(match kind {
        "FloatStorage" => Dtype::F32,
        "BFloat16Storage" => Dtype::BF16,
        "HalfStorage" => Dtype::F16,
        // No floats that a model is made of, which the reader of the tensor says.
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}
