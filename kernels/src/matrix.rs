//! Weights of a linear map in the precision they were stored in.

use std::{fmt, ops::Range, str::FromStr, sync::Arc};

use bytemuck::cast_slice;
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::mmap::MappedFile;

/// Element type of stored weights. Arithmetic is f32 whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        })
    }
}

/// A name that is no [`Dtype`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {0:?}: expected f32, bf16 or f16")]
pub struct UnknownDtype(pub String);

impl FromStr for Dtype {
    type Err = UnknownDtype;
    fn from_str(name: &str) -> Result<Dtype, UnknownDtype> {
        match name {
            "f32" => Ok(Dtype::F32),
            "bf16" => Ok(Dtype::Bf16),
            "f16" => Ok(Dtype::F16),
            _ => Err(UnknownDtype(name.to_owned())),
        }
    }
}

/// The numbers of a [`Matrix`], row after row.
#[derive(Clone, Debug)]
pub enum Elements {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Elements {
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(e) => e.len(),
            Elements::Bf16(e) => e.len(),
            Elements::F16(e) => e.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn values(&self) -> Values<'_> {
        match self {
            Elements::F32(e) => Values::F32(e),
            Elements::Bf16(e) => Values::Bf16(e),
            Elements::F16(e) => Values::F16(e),
        }
    }

    pub fn dtype(&self) -> Dtype {
        match self {
            Elements::F32(_) => Dtype::F32,
            Elements::Bf16(_) => Dtype::Bf16,
            Elements::F16(_) => Dtype::F16,
        }
    }
}

/// The numbers of a [`Matrix`] where they lie.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
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
        if rows.checked_mul(cols) != Some(elements.len()) {
            return Err(ShapeError { rows, cols, found: elements.len() });
        }
        Ok(Matrix { rows, cols, dtype: elements.dtype(), storage: Storage::Memory(Arc::new(elements)) })
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
        let found = file.get(bytes.clone()).map_or(0, |bytes| bytes.len() / dtype.bytes());
        if rows.checked_mul(cols) != Some(found) {
            return Err(ShapeError { rows, cols, found });
        }
        let aligned = (file.as_ptr() as usize + bytes.start).is_multiple_of(dtype.bytes());
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
            },
        }
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.bytes()
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
        }
    }

    /// The same numbers rounded to `dtype` (to nearest, ties to even).
    pub fn to_dtype(self, dtype: Dtype) -> Matrix {
        if self.dtype() == dtype {
            return self;
        }
        let elements = match dtype {
            Dtype::F32 => Elements::F32(self.to_vec_f32()),
            Dtype::Bf16 => Elements::Bf16(self.to_vec_f32().into_iter().map(bf16::from_f32).collect()),
            Dtype::F16 => Elements::F16(self.to_vec_f32().into_iter().map(f16::from_f32).collect()),
        };
        Matrix { dtype, storage: Storage::Memory(Arc::new(elements)), ..self }
    }

    /// The same numbers as columns.
    pub fn transposed(&self) -> Matrix {
        fn turn<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
            (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
        }
        let (rows, cols) = (self.rows, self.cols);
        let elements = match self.values() {
            Values::F32(e) => Elements::F32(turn(e, rows, cols)),
            Values::Bf16(e) => Elements::Bf16(turn(e, rows, cols)),
            Values::F16(e) => Elements::F16(turn(e, rows, cols)),
        };
        Matrix { rows: cols, cols: rows, dtype: self.dtype, storage: Storage::Memory(Arc::new(elements)) }
    }

    /// A matrix of the given rows, in that order. One run of rows of a mapped matrix stays in its file.
    pub fn pick_rows(&self, runs: &[Range<usize>]) -> Matrix {
        let rows = runs.iter().map(Range::len).sum();
        if let (Storage::File(file, bytes), [run]) = (&self.storage, runs) {
            let row = self.cols * self.dtype.bytes();
            let part = bytes.start + run.start * row..bytes.start + run.end * row;
            return Matrix { rows, storage: Storage::File(file.clone(), part), ..self.clone() };
        }
        fn pick<T: Copy>(values: &[T], cols: usize, runs: &[Range<usize>]) -> Vec<T> {
            runs.iter().flat_map(|run| &values[run.start * cols..run.end * cols]).copied().collect()
        }
        let elements = match self.values() {
            Values::F32(e) => Elements::F32(pick(e, self.cols, runs)),
            Values::Bf16(e) => Elements::Bf16(pick(e, self.cols, runs)),
            Values::F16(e) => Elements::F16(pick(e, self.cols, runs)),
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
        }
    }
}

impl Values<'_> {
    /// Element `index` as f32.
    pub fn at(&self, index: usize) -> f32 {
        match self {
            Values::F32(e) => e[index],
            Values::Bf16(e) => e[index].to_f32(),
            Values::F16(e) => e[index].to_f32(),
        }
    }

    /// Index of the first element that is NaN or infinite.
    pub fn first_not_finite(&self) -> Option<usize> {
        match self {
            Values::F32(e) => first_where(e, |x| !x.is_finite()),
            Values::Bf16(e) => first_where(e, |x| !x.is_finite()),
            Values::F16(e) => first_where(e, |x| !x.is_finite()),
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
mod tests {
    use super::*;

    #[test]
    fn shape_must_fit() {
        assert!(Matrix::new(2, 3, Elements::F32(vec![0.0; 6])).is_ok());
        let error = Matrix::new(2, 3, Elements::F32(vec![0.0; 5])).unwrap_err();
        assert_eq!(error.to_string(), "2 × 3 matrix needs 6 elements, got 5");
        assert!(Matrix::new(usize::MAX, 2, Elements::F32(vec![])).is_err());
    }

    #[test]
    fn dtypes_round_trip() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            let m =
                Matrix::new(3, 5, Elements::F32((0..15).map(|i| i as f32 * 0.25).collect())).unwrap().to_dtype(dtype);
            assert_eq!((m.dtype(), m.bytes()), (dtype, 15 * dtype.bytes()));
            let mut row = [f32::NAN; 5];
            m.copy_row(2, &mut row);
            assert_eq!(row, [2.5, 2.75, 3.0, 3.25, 3.5]);
            assert_eq!(m.values().first_not_finite(), None);
        }
        assert!("q4".parse::<Dtype>().is_err());
    }

    #[test]
    fn sees_what_is_not_finite() {
        let m = Matrix::new(1, 2, Elements::F32(vec![1.0, 1e30])).unwrap();
        assert_eq!(m.clone().to_dtype(Dtype::Bf16).values().first_not_finite(), None);
        assert_eq!(m.to_dtype(Dtype::F16).values().first_not_finite(), Some(1));
    }

    #[test]
    fn rows_and_columns_can_be_picked() {
        let m = Matrix::new(3, 2, Elements::F32(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0])).unwrap();
        assert_eq!(m.pick_rows(&[2..3, 0..1]).to_vec_f32(), [4.0, 5.0, 0.0, 1.0]);
        let both = Matrix::stacked(&[m.pick_rows(&[1..2, 0..1]), m.clone()]);
        assert_eq!((both.rows(), both.to_vec_f32()[..5].to_vec()), (5, vec![2.0, 3.0, 0.0, 1.0, 0.0]));
        assert_eq!(m.transposed().to_vec_f32(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!((m.transposed().rows(), m.transposed().cols()), (2, 3));
    }

    #[test]
    fn a_mapped_matrix_reads_its_file() {
        let path = std::env::temp_dir().join(format!("statescope-matrix-{}", std::process::id()));
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(&path, bytes).unwrap();
        let file = Arc::new(MappedFile::open(&path).unwrap());
        let m = Matrix::mapped(2, 2, Dtype::F32, &file, 4..20).unwrap().unwrap();
        assert_eq!(m.to_vec_f32(), [2.0, 3.0, 4.0, 5.0]);
        let second = 1..2;
        assert_eq!(m.pick_rows(std::slice::from_ref(&second)).to_vec_f32(), [4.0, 5.0]);
        assert!(Matrix::mapped(2, 2, Dtype::F32, &file, 2..18).unwrap().is_none(), "not aligned");
        assert!(Matrix::mapped(3, 2, Dtype::F32, &file, 0..24).is_err(), "beyond the end");
        std::fs::remove_file(&path).unwrap();
    }
}
