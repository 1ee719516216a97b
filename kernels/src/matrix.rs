//! Weights of a linear map in the precision they were stored in.

use std::{fmt, ops::Range, str::FromStr, sync::Arc};

use bytemuck::{Zeroable, cast_slice};
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::{mmap::MappedFile, par, q8::Q8Block};

/// Element type of stored weights. Arithmetic is f32 whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
    /// Blocks of 32 with a scale: [`Q8Block`].
    Q8,
}

impl Dtype {
    pub const ALL: [Dtype; 4] = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::Q8];

    /// Bytes of a row of `cols` elements.
    pub fn row_bytes(self, cols: usize) -> usize {
        cols.div_ceil(self.item()) * self.item_bytes()
    }

    /// Elements that are stored together.
    fn item(self) -> usize {
        if self == Dtype::Q8 { Q8Block::WEIGHTS } else { 1 }
    }

    fn item_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::Q8 => size_of::<Q8Block>(),
        }
    }

    /// What the address of a row must be a multiple of.
    fn align(self) -> usize {
        if self == Dtype::F32 { 4 } else { 2 }
    }

    /// The largest f32 that does not become infinite.
    pub fn largest(self) -> f32 {
        match self {
            Dtype::F32 => f32::MAX,
            // Below the middle between the largest finite number and the next power of two.
            Dtype::Bf16 => f32::from_bits(0x7f7f_7fff),
            Dtype::F16 => 65520.0f32.next_down(),
            Dtype::Q8 => 127.0 * 65504.0,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::Q8 => "q8",
        })
    }
}

/// A name that is no [`Dtype`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {0:?}: expected f32, bf16, f16 or q8")]
pub struct UnknownDtype(pub String);

impl FromStr for Dtype {
    type Err = UnknownDtype;
    fn from_str(name: &str) -> Result<Dtype, UnknownDtype> {
        Dtype::ALL.into_iter().find(|d| d.to_string() == name).ok_or_else(|| UnknownDtype(name.to_owned()))
    }
}

/// The numbers of a [`Matrix`], row after row.
#[derive(Clone, Debug)]
pub enum Elements {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    /// ⌈columns / 32⌉ blocks a row.
    Q8(Vec<Q8Block>),
}

impl Elements {
    /// Of all dtypes but q8 the numbers, of q8 the blocks.
    fn items(&self) -> usize {
        match self {
            Elements::F32(e) => e.len(),
            Elements::Bf16(e) => e.len(),
            Elements::F16(e) => e.len(),
            Elements::Q8(e) => e.len(),
        }
    }

    pub fn values(&self) -> Values<'_> {
        match self {
            Elements::F32(e) => Values::F32(e),
            Elements::Bf16(e) => Values::Bf16(e),
            Elements::F16(e) => Values::F16(e),
            Elements::Q8(e) => Values::Q8(e),
        }
    }

    pub fn dtype(&self) -> Dtype {
        self.values().dtype()
    }
}

/// The numbers of a [`Matrix`] where they lie.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    Q8(&'a [Q8Block]),
}

/// The number of elements is not rows · columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rows} × {cols} matrix needs {} elements, got {found}", rows.saturating_mul(*cols))]
pub struct ShapeError {
    pub rows: usize,
    pub cols: usize,
    pub found: usize,
}

/// A matrix [rows = outputs, cols = inputs], row-major. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    dtype: Dtype,
    storage: Storage,
}

#[derive(Clone, Debug)]
enum Storage {
    Memory(Arc<Elements>),
    /// Bytes of a mapped file, aligned for the dtype.
    File(Arc<MappedFile>, Range<usize>),
}

impl Matrix {
    pub fn new(rows: usize, cols: usize, elements: Elements) -> Result<Matrix, ShapeError> {
        let dtype = elements.dtype();
        check_shape(rows, cols, dtype, elements.items())?;
        Ok(Matrix { rows, cols, dtype, storage: Storage::Memory(Arc::new(elements)) })
    }

    /// A matrix that stays in its file: the little-endian numbers at `bytes`. None where they do not lie aligned (or on a big-endian
    /// machine), so that they have to be copied.
    ///
    /// # Errors
    /// The range is not as long as the shape says.
    pub fn mapped(
        rows: usize,
        cols: usize,
        dtype: Dtype,
        file: &Arc<MappedFile>,
        bytes: Range<usize>,
    ) -> Result<Option<Matrix>, ShapeError> {
        let whole = |bytes: &&[u8]| bytes.len().is_multiple_of(dtype.item_bytes());
        let items = file.get(bytes.clone()).filter(whole).map_or(0, |bytes| bytes.len() / dtype.item_bytes());
        check_shape(rows, cols, dtype, items)?;
        let aligned = (file.as_ptr() as usize + bytes.start).is_multiple_of(dtype.align());
        let storage = Storage::File(file.clone(), bytes);
        Ok((aligned && cfg!(target_endian = "little")).then_some(Matrix { rows, cols, dtype, storage }))
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn values(&self) -> Values<'_> {
        match &self.storage {
            Storage::Memory(elements) => elements.values(),
            Storage::File(file, range) => match self.dtype {
                Dtype::F32 => Values::F32(cast_slice(&file[range.clone()])),
                Dtype::Bf16 => Values::Bf16(cast_slice(&file[range.clone()])),
                Dtype::F16 => Values::F16(cast_slice(&file[range.clone()])),
                Dtype::Q8 => Values::Q8(cast_slice(&file[range.clone()])),
            },
        }
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.rows * self.dtype.row_bytes(self.cols)
    }

    /// Row `row` as f32 into `out` [cols]: an embedding lookup.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix with {} rows", self.rows);
        assert_eq!(out.len(), self.cols, "copy_row: out is not [cols]");
        let range = row * self.cols..(row + 1) * self.cols;
        match self.values() {
            Values::F32(e) => out.copy_from_slice(&e[range]),
            Values::Bf16(e) => e[range].convert_to_f32_slice(out),
            Values::F16(e) => e[range].convert_to_f32_slice(out),
            Values::Q8(e) => {
                let blocks = &e[row * self.row_items()..][..self.row_items()];
                out.chunks_mut(Q8Block::WEIGHTS).zip(blocks).for_each(|(out, block)| block.copy_to(out));
            }
        }
    }

    /// Stored items of a row: numbers, or blocks.
    fn row_items(&self) -> usize {
        self.cols.div_ceil(self.dtype.item())
    }

    /// The same numbers rounded to `dtype`: to nearest, ties to even; to q8 as [`Q8Block::quantised`] does. None may be larger in
    /// magnitude than [`Dtype::largest`].
    pub fn to_dtype(self, dtype: Dtype) -> Matrix {
        if self.dtype() == dtype {
            return self;
        }
        let elements = match dtype {
            Dtype::F32 => Elements::F32(self.to_vec_f32()),
            Dtype::Bf16 => Elements::Bf16(self.to_vec_f32().into_iter().map(bf16::from_f32).collect()),
            Dtype::F16 => Elements::F16(self.to_vec_f32().into_iter().map(f16::from_f32).collect()),
            Dtype::Q8 => Elements::Q8(self.quantised()),
        };
        Matrix { dtype, storage: Storage::Memory(Arc::new(elements)), ..self }
    }

    fn quantised(&self) -> Vec<Q8Block> {
        let per_row = self.cols.div_ceil(Q8Block::WEIGHTS);
        let mut blocks = vec![Q8Block::zeroed(); self.rows * per_row];
        par::for_each_chunk(&mut blocks, per_row, self.rows * self.cols, |row, blocks| {
            let mut weights = vec![0.0; self.cols];
            self.copy_row(row, &mut weights);
            let weights = weights.chunks(Q8Block::WEIGHTS);
            blocks.iter_mut().zip(weights).for_each(|(block, weights)| *block = Q8Block::quantised(weights));
        });
        blocks
    }

    /// The same numbers as columns; of a q8 matrix in f32, since its blocks lie along the rows.
    pub fn transposed(&self) -> Matrix {
        fn turn<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
            (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
        }
        let (rows, cols) = (self.rows, self.cols);
        let elements = match self.values() {
            Values::F32(e) => Elements::F32(turn(e, rows, cols)),
            Values::Bf16(e) => Elements::Bf16(turn(e, rows, cols)),
            Values::F16(e) => Elements::F16(turn(e, rows, cols)),
            Values::Q8(_) => Elements::F32(turn(&self.to_vec_f32(), rows, cols)),
        };
        Matrix { rows: cols, cols: rows, dtype: elements.dtype(), storage: Storage::Memory(Arc::new(elements)) }
    }

    /// A matrix of the given rows, in that order. One run of rows of a mapped matrix stays in its file.
    pub fn pick_rows(&self, runs: &[Range<usize>]) -> Matrix {
        let rows = runs.iter().map(Range::len).sum();
        if let (Storage::File(file, bytes), [run]) = (&self.storage, runs) {
            let row = self.dtype.row_bytes(self.cols);
            let part = bytes.start + run.start * row..bytes.start + run.end * row;
            return Matrix { rows, storage: Storage::File(file.clone(), part), ..self.clone() };
        }
        fn pick<T: Copy>(values: &[T], width: usize, runs: &[Range<usize>]) -> Vec<T> {
            runs.iter().flat_map(|run| &values[run.start * width..run.end * width]).copied().collect()
        }
        let width = self.row_items();
        let elements = match self.values() {
            Values::F32(e) => Elements::F32(pick(e, width, runs)),
            Values::Bf16(e) => Elements::Bf16(pick(e, width, runs)),
            Values::F16(e) => Elements::F16(pick(e, width, runs)),
            Values::Q8(e) => Elements::Q8(pick(e, width, runs)),
        };
        Matrix { rows, storage: Storage::Memory(Arc::new(elements)), ..self.clone() }
    }

    /// The rows of all `parts`, one after the other, in the dtype of the first.
    ///
    /// # Panics
    /// There is no part, or the columns differ.
    pub fn stacked(parts: &[Matrix]) -> Matrix {
        let (cols, dtype) = (parts[0].cols, parts[0].dtype);
        assert!(parts.iter().all(|part| part.cols == cols), "stacked: the columns differ");
        let parts: Vec<Matrix> = parts.iter().map(|part| part.clone().to_dtype(dtype)).collect();
        fn join<'a, T: Copy + 'a>(parts: &'a [Matrix], of: impl Fn(Values<'a>) -> Option<&'a [T]>) -> Vec<T> {
            parts.iter().filter_map(|part| of(part.values())).flatten().copied().collect()
        }
        let elements = match dtype {
            Dtype::F32 => Elements::F32(join(&parts, |v| if let Values::F32(e) = v { Some(e) } else { None })),
            Dtype::Bf16 => Elements::Bf16(join(&parts, |v| if let Values::Bf16(e) = v { Some(e) } else { None })),
            Dtype::F16 => Elements::F16(join(&parts, |v| if let Values::F16(e) = v { Some(e) } else { None })),
            Dtype::Q8 => Elements::Q8(join(&parts, |v| if let Values::Q8(e) = v { Some(e) } else { None })),
        };
        let rows = parts.iter().map(Matrix::rows).sum();
        Matrix { rows, cols, dtype, storage: Storage::Memory(Arc::new(elements)) }
    }

    /// All elements as f32.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        match self.values() {
            Values::F32(e) => e.to_vec(),
            Values::Bf16(e) => e.to_f32_vec(),
            Values::F16(e) => e.to_f32_vec(),
            Values::Q8(_) => {
                let mut all = vec![0.0; self.rows * self.cols];
                all.chunks_exact_mut(self.cols.max(1)).enumerate().for_each(|(row, out)| self.copy_row(row, out));
                all
            }
        }
    }
}

fn check_shape(rows: usize, cols: usize, dtype: Dtype, items: usize) -> Result<(), ShapeError> {
    match rows.checked_mul(cols.div_ceil(dtype.item())) {
        Some(needed) if needed == items => Ok(()),
        _ => Err(ShapeError { rows, cols, found: items.saturating_mul(dtype.item()) }),
    }
}

impl Values<'_> {
    /// Element `index` as f32; in q8 the zeros that fill up a row count too.
    pub fn at(&self, index: usize) -> f32 {
        match self {
            Values::F32(e) => e[index],
            Values::Bf16(e) => e[index].to_f32(),
            Values::F16(e) => e[index].to_f32(),
            Values::Q8(e) => e[index / Q8Block::WEIGHTS].weight(index % Q8Block::WEIGHTS),
        }
    }

    /// Index of the first element that is NaN or infinite; see [`Values::at`].
    pub fn first_not_finite(&self) -> Option<usize> {
        match self {
            Values::F32(e) => first_where(e, |x| !x.is_finite()),
            Values::Bf16(e) => first_where(e, |x| !x.is_finite()),
            Values::F16(e) => first_where(e, |x| !x.is_finite()),
            Values::Q8(e) => first_where(e, |x| !x.scale.is_finite()).map(|block| block * Q8Block::WEIGHTS),
        }
    }

    /// Index of the first element that would be infinite in `dtype`.
    pub fn first_beyond(&self, dtype: Dtype) -> Option<usize> {
        let (own, limit) = (self.dtype(), dtype.largest());
        if own == dtype || own.largest() <= limit {
            return None;
        }
        match self {
            Values::F32(e) => first_where(e, |x| x.abs() > limit),
            Values::Bf16(e) => first_where(e, |x| x.to_f32().abs() > limit),
            Values::F16(e) => first_where(e, |x| x.to_f32().abs() > limit),
            Values::Q8(e) => (0..e.len() * Q8Block::WEIGHTS).find(|&i| self.at(i).abs() > limit),
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Values::F32(_) => Dtype::F32,
            Values::Bf16(_) => Dtype::Bf16,
            Values::F16(_) => Dtype::F16,
            Values::Q8(_) => Dtype::Q8,
        }
    }
}

/// Like `position`, in blocks without an early exit, which the compiler vectorises: this sees every weight of a model.
fn first_where<T: Copy>(elements: &[T], wanted: impl Fn(T) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let found = |block: &[T]| block.iter().fold(false, |any, &x| any | wanted(x));
    let block = elements.chunks(BLOCK).position(found)?;
    Some(block * BLOCK + elements[block * BLOCK..].iter().position(|&x| wanted(x))?)
}

#[cfg(test)]
#[path = "tests/matrix.rs"]
mod tests;
