//! `pytorch_model.bin`: a zip archive of a pickle, which names the tensors, and of their numbers, stored as they are.
//!
//! candle reads the pickle without running anything in it; only tensors come out. The numbers are not read here: what is found is where
//! they lie in the file, so that a pickled model is mapped like any other.

use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::read_pth_tensor_info;
use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

/// A tensor in the file.
pub struct Located {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes within the file.
    pub range: Range<usize>,
}

/// The tensors of the file at `path`, whose bytes are `bytes`.
///
/// # Errors
/// What is wrong with the file and what to do, without its name.
pub fn tensors(path: &Path, bytes: &[u8]) -> Result<Vec<Located>, String> {
    let again = "download it again, or convert it to safetensors";
    let mut archive = ZipArchive::new(Cursor::new(bytes))
        .map_err(|error| format!("it is no zip archive as torch.save writes since version 1.6 ({error}); {again}"))?;
    let infos = read_pth_tensor_info(path, false, None)
        .map_err(|error| format!("its pickle does not hold a plain dictionary of tensors ({error}); {again}"))?;
    if infos.is_empty() {
        return Err(format!("it holds no tensors; {again}"));
    }
    let mut located = Vec::with_capacity(infos.len());
    for info in infos {
        let name = &info.name;
        if !info.layout.is_contiguous() {
            return Err(format!("tensor {name} is stored as a view with strides; {again}"));
        }
        let entry =
            archive.by_name(&info.path).map_err(|error| format!("the numbers of {name} are missing ({error})"))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!("tensor {name} is compressed, which torch.save never does; {again}"));
        }
        let Some(data) = entry.data_start() else { return Err(format!("the numbers of {name} cannot be found")) };
        let storage = (data as usize, entry.size() as usize);
        let size = info.dtype.size_in_bytes();
        let count = info.layout.shape().elem_count();
        let start = info.layout.start_offset().checked_mul(size);
        let end = start.and_then(|start| start.checked_add(count.checked_mul(size)?));
        let (Some(start), Some(end)) = (start, end.filter(|&end| end <= storage.1)) else {
            return Err(format!("tensor {name} reaches beyond its {} stored bytes; {again}", storage.1));
        };
        let range = storage.0 + start..storage.0 + end;
        if range.end > bytes.len() {
            return Err(format!("tensor {name} lies beyond the end of the file; {again}"));
        }
        let dtype = stored_dtype(info.dtype);
        located.push(Located { name: info.name.clone(), dtype, shape: info.layout.dims().to_vec(), range });
    }
    Ok(located)
}

fn stored_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F64 => Dtype::F64,
        DType::I64 => Dtype::I64,
        DType::U32 => Dtype::U32,
        // Whatever else: no float that a model is made of, which the reader of the tensor says.
        _ => Dtype::U8,
    }
}

/// Whether the numbers are little-endian, which is all that is read.
pub fn is_little_endian(bytes: &[u8]) -> bool {
    let Ok(mut archive) = ZipArchive::new(Cursor::new(bytes)) else { return true };
    let name = |index: usize| archive.name_for_index(index).and_then(Result::ok);
    let is_order = |index: &usize| name(*index).is_some_and(|name| name.ends_with("/byteorder"));
    let Some(index) = (0..archive.len()).find(is_order) else { return true };
    let mut text = String::new();
    let read = archive.by_index(index).is_ok_and(|entry| entry.take(16).read_to_string(&mut text).is_ok());
    !read || text.trim() != "big"
}
