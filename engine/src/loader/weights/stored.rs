//! How numbers are stored, and where.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype as StoredDtype;
use statescope_kernels::matrix::{Dtype, Elements, Matrix};

use crate::loader::gguf::blocks::Blocks;

/// A tensor in a file.
pub struct Located {
    pub name: String,
    pub stored: Stored,
    pub shape: Vec<usize>,
    /// Which of the model's files.
    pub file: usize,
    /// Bytes within that file.
    pub range: Range<usize>,
}

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// One after another.
    Plain(StoredDtype),
    /// In blocks with common scales (GGUF).
    Blocks(Blocks),
}

impl Stored {
    /// Bytes of `count` numbers in rows of `row`; none where that does not come out even.
    pub fn bytes(self, count: usize, row: usize) -> Option<usize> {
        match self {
            Self::Plain(dtype) => count.checked_mul(dtype.bitsize() / 8),
            Self::Blocks(blocks) => blocks.bytes(count, row),
        }
    }

    /// The element type of a matrix that stays as it is stored; none for what the kernels do not read.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Plain(StoredDtype::F32) => Some(Dtype::F32),
            Self::Plain(StoredDtype::BF16) => Some(Dtype::Bf16),
            Self::Plain(StoredDtype::F16) => Some(Dtype::F16),
            Self::Blocks(blocks) if blocks.are_q8() => Some(Dtype::Q8),
            _ => None,
        }
    }

    /// The numbers at `bytes`; blocks as `dtype`. None for an element type that is no float.
    pub fn elements(self, bytes: &[u8], dtype: Dtype) -> Option<Elements> {
        match self {
            Self::Plain(StoredDtype::F32) => Some(Elements::F32(decode(bytes, f32::from_le_bytes))),
            Self::Plain(StoredDtype::BF16) => Some(Elements::Bf16(decode(bytes, bf16::from_le_bytes))),
            Self::Plain(StoredDtype::F16) => Some(Elements::F16(decode(bytes, f16::from_le_bytes))),
            Self::Plain(_) => None,
            Self::Blocks(blocks) => blocks.elements(bytes, dtype),
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(blocks) => write!(f, "{blocks}"),
        }
    }
}

fn decode<const SIZE: usize, T>(bytes: &[u8], from_le_bytes: fn([u8; SIZE]) -> T) -> Vec<T> {
    bytes.as_chunks::<SIZE>().0.iter().map(|&chunk| from_le_bytes(chunk)).collect()
}

/// Rows of a matrix whose heads are stored pair by pair (row 2j of a head is its row j, row 2j + 1 its row j + half), as llama.cpp keeps
/// the queries and keys of Llama, in the order of halves.
pub fn halves(matrix: &Matrix, heads: usize) -> Matrix {
    let runs: Vec<Range<usize>> = in_halves(matrix.rows(), heads).map(|row| row..row + 1).collect();
    matrix.pick_rows(&runs)
}

/// Where each row is stored.
pub fn in_halves(rows: usize, heads: usize) -> impl Iterator<Item = usize> {
    let width = rows / heads;
    (0..rows).map(move |row| {
        let (head, within) = (row / width, row % width);
        head * width + 2 * (within % (width / 2)) + within / (width / 2)
    })
}

/// Sizes without the ones.
pub fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&size| size != 1).collect()
}
