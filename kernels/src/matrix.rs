//! Weights of a linear map in the precision they were stored in.

use std::{fmt, str::FromStr};

use half::{bf16, f16, slice::HalfFloatSliceExt};

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

    pub fn dtype(&self) -> Dtype {
        match self {
            Elements::F32(_) => Dtype::F32,
            Elements::Bf16(_) => Dtype::Bf16,
            Elements::F16(_) => Dtype::F16,
        }
    }
}

/// The number of elements is not rows · columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rows} × {cols} matrix needs {} elements, got {found}", rows.saturating_mul(*cols))]
pub struct ShapeError {
    pub rows: usize,
    pub cols: usize,
    pub found: usize,
}

/// A matrix [rows = outputs, cols = inputs], row-major.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    elements: Elements,
}

impl Matrix {
    pub fn new(rows: usize, cols: usize, elements: Elements) -> Result<Matrix, ShapeError> {
        if rows.checked_mul(cols) != Some(elements.len()) {
            return Err(ShapeError { rows, cols, found: elements.len() });
        }
        Ok(Matrix { rows, cols, elements })
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
        self.elements.dtype()
    }

    pub fn elements(&self) -> &Elements {
        &self.elements
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.elements.len() * self.dtype().bytes()
    }

    /// Row `row` as f32 into `out` [cols]: an embedding lookup.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix with {} rows", self.rows);
        assert_eq!(out.len(), self.cols, "copy_row: out is not [cols]");
        let range = row * self.cols..(row + 1) * self.cols;
        match &self.elements {
            Elements::F32(e) => out.copy_from_slice(&e[range]),
            Elements::Bf16(e) => e[range].convert_to_f32_slice(out),
            Elements::F16(e) => e[range].convert_to_f32_slice(out),
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
        Matrix { elements, ..self }
    }

    /// True where no element is NaN or infinite.
    pub fn all_finite(&self) -> bool {
        match &self.elements {
            Elements::F32(e) => e.iter().all(|x| x.is_finite()),
            Elements::Bf16(e) => e.iter().all(|x| x.is_finite()),
            Elements::F16(e) => e.iter().all(|x| x.is_finite()),
        }
    }

    /// All elements as f32.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        match &self.elements {
            Elements::F32(e) => e.clone(),
            Elements::Bf16(e) => e.to_f32_vec(),
            Elements::F16(e) => e.to_f32_vec(),
        }
    }
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
            assert!(m.all_finite());
        }
        assert!("q4".parse::<Dtype>().is_err());
    }

    #[test]
    fn sees_what_is_not_finite() {
        let m = Matrix::new(1, 2, Elements::F32(vec![1.0, 1e30])).unwrap();
        assert!(m.clone().to_dtype(Dtype::Bf16).all_finite());
        assert!(!m.to_dtype(Dtype::F16).all_finite());
    }
}
