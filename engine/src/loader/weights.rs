//! The weights of a model: headers read at once, tensors one by one when asked for.

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use safetensors::SafeTensors;
use statescope_kernels::matrix::{Dtype, Elements, Matrix};
use statescope_kernels::mmap::MappedFile;

use super::error::{LoadError, Shape};
use super::files::weight_files;
use super::names::{Names, canonical, is_known_buffer};
use super::pickle;
use messages::{closest, explain};
use stored::{halves, in_halves, squeezed};

mod messages;
mod sizes;
mod stored;
pub use stored::{Located, Stored};

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
    /// The names of the file's own tensors, where the format has its own, and shapes may differ by ones.
    own_names: Option<&'static Names>,
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
    stored: Stored,
    shape: Vec<usize>,
    /// Bytes within the file; checked to lie inside.
    range: Range<usize>,
    /// Rows of so many heads are stored pair by pair ([`halves`]).
    paired_heads: Option<usize>,
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
        let mut weights = Self::empty(dtype);
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
        let mut weights = Self::empty(dtype);
        weights.add(label, Bytes::Embedded(bytes))?;
        Ok(weights)
    }

    fn empty(dtype: Option<Dtype>) -> Self {
        Self { files: Vec::new(), entries: HashMap::new(), dtype, own_names: None }
    }

    /// The given tensors of one file or several, in a format that has names of its own. `paired_heads` tells in which of them the rows of
    /// so many heads are stored pair by pair; that they can be, and that each lies inside its file, is the caller's promise.
    ///
    /// # Errors
    /// A tensor that is there twice.
    pub fn located(
        files: impl IntoIterator<Item = (String, Arc<MappedFile>)>,
        tensors: Vec<Located>,
        names: &'static Names,
        paired_heads: impl Fn(&str) -> Option<usize>,
        dtype: Option<Dtype>,
    ) -> Result<Self, LoadError> {
        let files = files.into_iter().map(|(label, file)| WeightFile { label, bytes: Bytes::Mapped(file) }).collect();
        let mut weights = Self { own_names: Some(names), files, ..Self::empty(dtype) };
        for tensor in tensors {
            let (name, paired_heads) = (tensor.name.clone(), paired_heads(&tensor.name));
            weights.insert(tensor)?;
            weights.entries.entry(name).and_modify(|entry| entry.paired_heads = paired_heads);
        }
        Ok(weights)
    }

    /// The name map of the file itself, where it has one.
    pub fn own_names(&self) -> Option<&'static Names> {
        self.own_names
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
        self.files.push(WeightFile { label, bytes });
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            self.insert(Located {
                name: name.clone(),
                stored: Stored::Plain(info.dtype),
                shape: info.shape.clone(),
                file,
                range: data_start + start..data_start + end,
            })?;
        }
        Ok(())
    }

    /// Finds the tensors of a pickled file.
    fn add_pickle(&mut self, path: &Path, bytes: MappedFile) -> Result<(), LoadError> {
        let label = path.display().to_string();
        let malformed = |problem: String| LoadError::Malformed { file: label.clone(), problem };
        let (tensors, file) = (pickle::tensors(&bytes).map_err(malformed)?, self.files.len());
        self.files.push(WeightFile { label, bytes: Bytes::Mapped(Arc::new(bytes)) });
        tensors.into_iter().try_for_each(|tensor| self.insert(Located { file, ..tensor }))
    }

    fn insert(&mut self, tensor: Located) -> Result<(), LoadError> {
        let Located { name, stored, shape, file, range } = tensor;
        let (known, held) = (AtomicBool::new(false), AtomicUsize::new(0));
        let entry = Entry { file, stored, shape, range, paired_heads: None, known, held };
        let Some(other) = self.entries.insert(canonical(&name), entry) else { return Ok(()) };
        let [first, second] = [other.file, file].map(|file| self.files[file].label.clone());
        Err(LoadError::DuplicateTensor { tensor: name, first, second })
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

    /// The format of the files, for people.
    pub fn format(&self) -> &'static str {
        if self.files.iter().any(|file| file.label.ends_with(".bin")) { "PyTorch pickle" } else { "safetensors" }
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
        self.matrix_of(name, &[rows, cols], (rows, cols), false)
    }

    /// The matrix whose columns are the rows of the tensor `name` `[cols, rows]`. Errors as [`Weights::matrix`].
    pub fn transposed_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.matrix_of(name, &[cols, rows], (cols, rows), true)
    }

    /// `count` matrices in one tensor `[count, rows, cols]`, as one matrix `[count·rows, cols]`. Errors as [`Weights::matrix`].
    pub fn stacked_matrix(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.matrix_of(name, &[count, rows, cols], (count * rows, cols), false)
    }

    fn matrix_of(
        &self,
        name: &str,
        shape: &[usize],
        (rows, cols): (usize, usize),
        turned: bool,
    ) -> Result<Matrix, LoadError> {
        let entry = self.entry(name, shape)?;
        // A matrix is brought in order before it is converted: the blocks of q8 lie along its own rows.
        let ordered = |matrix: Matrix| {
            let matrix = if turned { matrix.transposed() } else { matrix };
            entry.paired_heads.map_or(matrix.clone(), |heads| halves(&matrix, heads))
        };
        if let Some(matrix) = self.in_its_file(entry, rows, cols).map(ordered) {
            entry.mark_read(matrix.bytes());
            return Ok(matrix);
        }
        let elements = self.elements(entry, name, self.dtype_of_blocks(entry))?;
        let mut matrix = ordered(Matrix::new(rows, cols, elements).expect("the shape was checked"));
        if let Some(dtype) = self.dtype {
            if let Some(index) = matrix.values().first_beyond(dtype) {
                let (file, tensor, value) = (self.label(entry), name.to_owned(), matrix.values().at(index));
                return Err(LoadError::DoesNotFit { file, tensor, index, value, dtype });
            }
            matrix = matrix.to_dtype(dtype);
        }
        entry.mark_read(matrix.bytes());
        Ok(matrix)
    }

    /// The matrix without a copy, for models so large that reading them would take long and twice the memory. Its numbers are not looked
    /// at; one that is not finite shows in the logits.
    fn in_its_file(&self, entry: &Entry, rows: usize, cols: usize) -> Option<Matrix> {
        let Bytes::Mapped(file) = &self.files[entry.file].bytes else { return None };
        let dtype = entry.stored.dtype()?;
        if self.total_bytes() < MAPPED_FROM || self.dtype.is_some_and(|wanted| wanted != dtype) {
            return None;
        }
        Matrix::mapped(rows, cols, dtype, file, entry.range.clone()).ok().flatten()
    }

    /// What numbers stored in blocks become: what was asked for, else f32, which is exact, or where that would take 1 GiB and more bf16.
    /// Blocks of 8 bits then stay what they are, as they do where q8 was asked for: nothing is rounded, and there is half as much to read
    /// for a token as in bf16. In smaller models speed matters less than that activations meet plain f32.
    fn dtype_of_blocks(&self, entry: &Entry) -> Dtype {
        let elements: usize = self.entries.values().map(|entry| entry.shape.iter().product::<usize>()).sum();
        let small = elements < MAPPED_FROM / size_of::<f32>();
        let stays = entry.stored.dtype() == Some(Dtype::Q8);
        match self.dtype {
            Some(Dtype::Q8) | None if stays && !(small && self.dtype.is_none()) => Dtype::Q8,
            // Other blocks become those of 8 bits as whole matrices, whose rows may not be in order yet.
            Some(Dtype::Q8) | None if small => Dtype::F32,
            Some(Dtype::Q8) | None => Dtype::Bf16,
            Some(dtype) => dtype,
        }
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
        let values: Vec<f32> = match self.elements(entry, name, Dtype::F32)? {
            Elements::F32(elements) => elements,
            other => Matrix::new(1, shape.iter().product(), other).expect("the shape was checked").to_vec_f32(),
        };
        let values = match entry.paired_heads {
            Some(heads) => in_halves(values.len(), heads).map(|row| values[row]).collect(),
            None => values,
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
        if entry.shape == shape || (self.own_names.is_some() && squeezed(&entry.shape) == squeezed(shape)) {
            return Ok(entry);
        }
        let (expected, found) = (Shape(shape.to_vec()), Shape(entry.shape.clone()));
        Err(LoadError::WrongShape { file: self.label(entry), tensor: name.to_owned(), expected, found })
    }

    /// A copy of the numbers, each of which is looked at; those in blocks as `dtype`.
    fn elements(&self, entry: &Entry, name: &str, dtype: Dtype) -> Result<Elements, LoadError> {
        let bytes = &self.files[entry.file].bytes[entry.range.clone()];
        let elements = entry.stored.elements(bytes, dtype).ok_or_else(|| {
            let found = entry.stored.to_string();
            LoadError::UnsupportedDtype { file: self.label(entry), tensor: name.to_owned(), found }
        })?;
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
        match (self.prefix.as_str(), name.as_str()) {
            (prefix, "") => prefix.to_owned(),
            ("", _) => name,
            (prefix, _) => format!("{prefix}.{name}"),
        }
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

    /// As [`Weights::shape`].
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.weights.shape(&self.name(name))
    }

    /// As [`Weights::matrix`].
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        if self.names.is_some_and(|names| names.transposed) {
            return self.weights.transposed_matrix(&self.name(name), rows, cols);
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

    /// A < 0 of a state space: −exp of the stored `A_log`, or itself in formats that store it so.
    pub fn rates(&self, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let stored = self.tensor("A_log", shape)?;
        match self.names {
            Some(names) if names.holds_rates => Ok(stored),
            _ => Ok(stored.into_iter().map(|log| -log.exp()).collect()),
        }
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
