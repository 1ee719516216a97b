//! The weights of a model: headers read at once, tensors one by one when asked for.

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use half::{bf16, f16};
use safetensors::{Dtype as StoredDtype, SafeTensors};
use statescope_kernels::matrix::{Dtype, Elements, Matrix};
use statescope_kernels::mmap::MappedFile;

use super::error::{LoadError, Shape};
use super::files::weight_files;
use super::names::{Names, canonical, is_known_buffer};
use super::pickle::{self, Located};

/// Models from this size on stay in their files.
const MAPPED_FROM: usize = 1 << 30;

/// Named tensors over one or several safetensors files, mapped rather than read.
///
/// Names are the newer Hugging Face ones ([`canonical`]); a file saved from the model without its head, which leaves out the first
/// part of the names, is read too. Every read checks shape, element type and finiteness.
pub struct Weights {
    files: Vec<WeightFile>,
    entries: HashMap<String, Entry>,
    /// What matrices are converted to; the file's own if none.
    dtype: Option<Dtype>,
}

/// Bytes of one safetensors file and its name in messages.
struct WeightFile {
    label: String,
    bytes: Bytes,
}

enum Bytes {
    Mapped(Arc<MappedFile>),
    Embedded(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::Embedded(bytes) => bytes,
        }
    }
}

struct Entry {
    /// Index into `files`.
    file: usize,
    dtype: StoredDtype,
    shape: Vec<usize>,
    /// Bytes within the file; checked to lie inside.
    range: Range<usize>,
    /// Read, or ignored on purpose.
    known: AtomicBool,
    /// Bytes in memory of what was read; 0 before.
    held: AtomicUsize,
}

impl Entry {
    fn mark_read(&self, held: usize) {
        self.known.store(true, Relaxed);
        self.held.store(held, Relaxed);
    }
}

impl Weights {
    /// Maps the weight files of a folder and reads their headers.
    ///
    /// # Errors
    /// No weights, only pickled weights, a missing shard, a damaged file, a tensor that is in two files.
    pub fn open(folder: &Path, dtype: Option<Dtype>) -> Result<Self, LoadError> {
        let mut weights = Self { files: Vec::new(), entries: HashMap::new(), dtype };
        for path in weight_files(folder)? {
            let file = MappedFile::open(&path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
            match path.extension().is_some_and(|end| end == "bin") {
                true => weights.add_pickle(&path, file)?,
                false => weights.add(path.display().to_string(), Bytes::Mapped(Arc::new(file)))?,
            }
        }
        Ok(weights)
    }

    /// Over one safetensors file in memory; `label` is its name in messages.
    ///
    /// # Errors
    /// A damaged file.
    pub fn embedded(label: String, bytes: &'static [u8], dtype: Option<Dtype>) -> Result<Self, LoadError> {
        let mut weights = Self { files: Vec::new(), entries: HashMap::new(), dtype };
        weights.add(label, Bytes::Embedded(bytes))?;
        Ok(weights)
    }

    /// Reads the header of a file. The crate checks that offsets neither overlap nor leave the file, and that they fit the shapes.
    fn add(&mut self, label: String, bytes: Bytes) -> Result<(), LoadError> {
        let malformed = |problem: String| LoadError::Malformed { file: label.clone(), problem };
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(malformed("it is a Git LFS pointer; run `git lfs pull` to fetch the weights".to_owned()));
        }
        let (header_len, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| malformed(explain(&error, bytes.len())))?;
        let data_start = size_of::<u64>() + header_len;
        let file = self.files.len();
        for (stored, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let (name, range) = (stored.clone(), data_start + start..data_start + end);
            self.insert(&label, file, Located { name, dtype: info.dtype, shape: info.shape.clone(), range })?;
        }
        self.files.push(WeightFile { label, bytes });
        Ok(())
    }

    /// Finds the tensors of a pickled file.
    fn add_pickle(&mut self, path: &Path, bytes: MappedFile) -> Result<(), LoadError> {
        let label = path.display().to_string();
        let malformed = |problem: String| LoadError::Malformed { file: label.clone(), problem };
        if !pickle::is_little_endian(&bytes) {
            return Err(malformed("it was written on a big-endian machine; convert it to safetensors".to_owned()));
        }
        for tensor in pickle::tensors(path, &bytes).map_err(malformed)? {
            self.insert(&label, self.files.len(), tensor)?;
        }
        self.files.push(WeightFile { label, bytes: Bytes::Mapped(Arc::new(bytes)) });
        Ok(())
    }

    fn insert(&mut self, label: &str, file: usize, tensor: Located) -> Result<(), LoadError> {
        let Located { name, dtype, shape, range } = tensor;
        let (known, held) = (AtomicBool::new(false), AtomicUsize::new(0));
        let Some(other) = self.entries.insert(canonical(&name), Entry { file, dtype, shape, range, known, held })
        else {
            return Ok(());
        };
        let first = self.files.get(other.file).map_or_else(|| label.to_owned(), |file| file.label.clone());
        Err(LoadError::DuplicateTensor { tensor: name, first, second: label.to_owned() })
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// All tensors, sorted by name.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Sizes of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|entry| entry.shape.as_slice())
    }

    /// Bytes of all tensors as they are stored.
    pub fn total_bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.range.len()).sum()
    }

    /// Bytes that the tensors read so far take in memory: matrices in their dtype, the rest in f32.
    pub fn bytes_read(&self) -> usize {
        self.entries.values().map(|entry| entry.held.load(Relaxed)).sum()
    }

    /// Elements of the tensors that were read so far; a model's parameters once it is built.
    pub fn parameters_read(&self) -> u64 {
        let read = |entry: &&Entry| entry.held.load(Relaxed) > 0;
        self.entries.values().filter(read).map(|entry| entry.shape.iter().product::<usize>() as u64).sum()
    }

    /// Tensors that nothing has read, sorted; buffers that models carry along are left out. After a model is built, an entry here
    /// means that the files hold more than config.json says, such as a bias that would be silently dropped.
    pub fn unused(&self) -> Vec<&str> {
        let unread = |(_, entry): &(&String, &Entry)| !entry.known.load(Relaxed);
        let mut names: Vec<&str> = self
            .entries
            .iter()
            .filter(unread)
            .map(|(name, _)| name.as_str())
            .filter(|name| !is_known_buffer(name))
            .collect();
        names.sort_unstable();
        names
    }

    /// After a model is built: that the files hold nothing else.
    ///
    /// # Errors
    /// [`LoadError::UnexpectedTensor`] with the first of [`Weights::unused`].
    pub fn require_all_read(&self) -> Result<(), LoadError> {
        let unused = self.unused();
        let Some(&tensor) = unused.first() else { return Ok(()) };
        let file = self.find(tensor).map_or_else(String::new, |entry| self.label(entry));
        Err(LoadError::UnexpectedTensor { file, tensor: tensor.to_owned(), others: unused.len() - 1 })
    }

    /// Marks a tensor as known and not needed, such as the head of a model that ties it.
    pub fn ignore(&self, name: &str) {
        if let Some(entry) = self.find(name) {
            entry.known.store(true, Relaxed);
        }
    }

    /// The matrix `name`, `[rows, cols]`, in the dtype asked for when opening, else in the file's own.
    ///
    /// # Errors
    /// Missing, of another shape, of an element type that is no float, or not finite.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.matrix_of(name, &[rows, cols], rows, cols)
    }

    /// `count` matrices in one tensor `[count, rows, cols]`, as one matrix `[count·rows, cols]`. Errors as [`Weights::matrix`].
    pub fn stacked_matrix(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.matrix_of(name, &[count, rows, cols], count * rows, cols)
    }

    fn matrix_of(&self, name: &str, shape: &[usize], rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        let entry = self.entry(name, shape)?;
        if let Some(matrix) = self.in_its_file(entry, rows, cols) {
            entry.mark_read(matrix.bytes());
            return Ok(matrix);
        }
        let mut matrix = Matrix::new(rows, cols, self.elements(entry, name)?).expect("the shape was checked");
        if let Some(dtype) = self.dtype.filter(|&dtype| dtype != matrix.dtype()) {
            let converted = matrix.clone().to_dtype(dtype);
            if let Some(index) = converted.values().first_not_finite() {
                let (file, tensor, value) = (self.label(entry), name.to_owned(), matrix.values().at(index));
                return Err(LoadError::DoesNotFit { file, tensor, index, value, dtype });
            }
            matrix = converted;
        }
        entry.mark_read(matrix.bytes());
        Ok(matrix)
    }

    /// The matrix without a copy, for models so large that reading them would take long and twice the memory. Its numbers are not looked
    /// at; one that is not finite shows in the logits.
    fn in_its_file(&self, entry: &Entry, rows: usize, cols: usize) -> Option<Matrix> {
        let Bytes::Mapped(file) = &self.files[entry.file].bytes else { return None };
        let dtype = match entry.dtype {
            StoredDtype::F32 => Dtype::F32,
            StoredDtype::BF16 => Dtype::Bf16,
            StoredDtype::F16 => Dtype::F16,
            _ => return None,
        };
        if self.total_bytes() < MAPPED_FROM || self.dtype.is_some_and(|wanted| wanted != dtype) {
            return None;
        }
        Matrix::mapped(rows, cols, dtype, file, entry.range.clone()).ok().flatten()
    }

    /// The vector `name`, `[len]`, as f32. Errors as [`Weights::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.tensor(name, &[len])
    }

    /// The vector `name` if there is one.
    pub fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
        if self.has(name) { self.vector(name, len).map(Some) } else { Ok(None) }
    }

    /// The tensor `name` of the given shape, row-major, as f32. Errors as [`Weights::matrix`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let entry = self.entry(name, shape)?;
        let values = match self.elements(entry, name)? {
            Elements::F32(elements) => elements,
            Elements::Bf16(elements) => elements.into_iter().map(bf16::to_f32).collect(),
            Elements::F16(elements) => elements.into_iter().map(f16::to_f32).collect(),
        };
        entry.mark_read(size_of_val(values.as_slice()));
        Ok(values)
    }

    /// The tensors whose names begin with `prefix` and a dot; all with an empty one.
    pub fn scope(&self, prefix: impl Into<String>) -> Scope<'_> {
        Scope { weights: self, prefix: prefix.into(), names: None }
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        let headless =
            || ["backbone.", "model.", "transformer.", "gpt_neox."].iter().find_map(|p| name.strip_prefix(p));
        self.entries.get(name).or_else(|| self.entries.get(headless()?))
    }

    fn label(&self, entry: &Entry) -> String {
        self.files[entry.file].label.clone()
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry, LoadError> {
        let entry = self.find(name).ok_or_else(|| self.missing(name, Some(shape)))?;
        if entry.shape == shape {
            return Ok(entry);
        }
        let (expected, found) = (Shape(shape.to_vec()), Shape(entry.shape.clone()));
        Err(LoadError::WrongShape { file: self.label(entry), tensor: name.to_owned(), expected, found })
    }

    /// A copy of the numbers, each of which is looked at.
    fn elements(&self, entry: &Entry, name: &str) -> Result<Elements, LoadError> {
        let bytes = &self.files[entry.file].bytes[entry.range.clone()];
        let elements = match entry.dtype {
            StoredDtype::F32 => Elements::F32(decode(bytes, f32::from_le_bytes)),
            StoredDtype::BF16 => Elements::Bf16(decode(bytes, bf16::from_le_bytes)),
            StoredDtype::F16 => Elements::F16(decode(bytes, f16::from_le_bytes)),
            other => {
                let found = format!("{other:?}");
                return Err(LoadError::UnsupportedDtype { file: self.label(entry), tensor: name.to_owned(), found });
            }
        };
        if let Some(index) = elements.values().first_not_finite() {
            let (file, tensor, value) = (self.label(entry), name.to_owned(), elements.values().at(index));
            return Err(LoadError::NotFinite { file, tensor, index, value });
        }
        Ok(elements)
    }

    fn missing(&self, name: &str, expected: Option<&[usize]>) -> LoadError {
        let files = match self.files.as_slice() {
            [only] => only.label.clone(),
            [first, ..] => format!("{} (and {} more)", first.label, self.files.len() - 1),
            [] => "the weights".to_owned(),
        };
        let expected = expected.map(|shape| Shape(shape.to_vec()));
        LoadError::MissingTensor { files, tensor: name.to_owned(), expected, candidates: closest(name, &self.names()) }
    }
}

/// The tensors under one prefix, such as `backbone.layers.0.mixer`.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
    names: Option<&'static Names>,
}

impl<'a> Scope<'a> {
    /// The whole name of a tensor in this scope; an empty prefix adds nothing.
    pub fn name(&self, name: &str) -> String {
        let name = self.names.map_or_else(|| name.to_owned(), |names| names.stored(name));
        if self.prefix.is_empty() { name } else { format!("{}.{name}", self.prefix) }
    }

    /// This scope with a family's own spellings.
    pub fn renamed(self, names: &'static Names) -> Self {
        Self { names: Some(names), ..self }
    }

    /// A scope within this one.
    pub fn scope(&self, prefix: &str) -> Scope<'a> {
        Scope { prefix: self.name(prefix), ..self.clone() }
    }

    /// The whole model, under the names as they are stored.
    pub fn root(&self) -> Scope<'a> {
        self.weights.scope("")
    }

    /// As [`Weights::has`].
    pub fn has(&self, name: &str) -> bool {
        self.weights.has(&self.name(name))
    }

    /// As [`Weights::matrix`].
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        if self.names.is_some_and(|names| names.transposed) {
            return Ok(self.weights.matrix(&self.name(name), cols, rows)?.transposed());
        }
        self.weights.matrix(&self.name(name), rows, cols)
    }

    /// As [`Weights::stacked_matrix`].
    pub fn stacked_matrix(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.weights.stacked_matrix(&self.name(name), count, rows, cols)
    }

    /// As [`Weights::vector`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.weights.vector(&self.name(name), len)
    }

    /// As [`Weights::optional_vector`].
    pub fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
        self.weights.optional_vector(&self.name(name), len)
    }

    /// The vector `name` where the spec has one (a bias), else none; a vector that the spec has not stays unread.
    pub fn vector_if(&self, wanted: bool, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
        if wanted { self.vector(name, len).map(Some) } else { Ok(None) }
    }

    /// As [`Weights::tensor`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        self.weights.tensor(&self.name(name), shape)
    }
}

fn decode<const SIZE: usize, T>(bytes: &[u8], from_le_bytes: fn([u8; SIZE]) -> T) -> Vec<T> {
    bytes.as_chunks::<SIZE>().0.iter().map(|&chunk| from_le_bytes(chunk)).collect()
}

/// What is wrong with a file, in words that say what to do.
fn explain(error: &safetensors::SafeTensorError, file_len: usize) -> String {
    use safetensors::SafeTensorError as E;
    let cut = "the file is cut off or no safetensors file, download it again";
    match error {
        E::HeaderTooSmall => format!("it has {file_len} bytes, fewer than a header; {cut}"),
        E::HeaderTooLarge | E::InvalidHeaderLength => {
            format!("its header would end beyond its {file_len} bytes; {cut}")
        }
        E::MetadataIncompleteBuffer => format!("its tensors do not fill its {file_len} bytes exactly; {cut}"),
        E::InvalidOffset(tensor) => {
            format!("the place of tensor {tensor} overlaps another or leaves a gap; download it again")
        }
        E::TensorInvalidInfo => "the size of a tensor does not fit its shape; download it again".to_owned(),
        other => format!("{other}; download it again"),
    }
}

/// Up to three names that differ least from `name`.
fn closest(name: &str, names: &[&str]) -> Vec<String> {
    const LONGEST: usize = 256;
    let mut ranked: Vec<(usize, &str)> = names
        .iter()
        .filter(|other| other.len() <= LONGEST && name.len() <= LONGEST)
        .map(|&other| (edit_distance(name.as_bytes(), other.as_bytes()), other))
        .filter(|&(distance, other)| distance <= name.len().max(other.len()) / 2)
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().take(3).map(|(_, other)| other.to_owned()).collect()
}

/// Levenshtein distance.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
