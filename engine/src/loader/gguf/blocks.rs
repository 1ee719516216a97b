//! Numbers stored in blocks of 32 or 256 with common scales: Q8_0 and its older kin, and the K-quants. candle turns them into f32; here
//! a piece at a time, so that a large matrix is never in memory three times.

use std::borrow::Cow;
use std::fmt;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::{bf16, f16};
use statescope_kernels::matrix::{Dtype, Elements};
use statescope_kernels::q8::Q8Block;

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks(GgmlDType);

/// Kinds by their code in the file, as ggml names them.
const KINDS: [(u32, GgmlDType, &str); 10] = [
    (2, GgmlDType::Q4_0, "Q4_0"),
    (3, GgmlDType::Q4_1, "Q4_1"),
    (6, GgmlDType::Q5_0, "Q5_0"),
    (7, GgmlDType::Q5_1, "Q5_1"),
    (8, GgmlDType::Q8_0, "Q8_0"),
    (10, GgmlDType::Q2K, "Q2_K"),
    (11, GgmlDType::Q3K, "Q3_K"),
    (12, GgmlDType::Q4K, "Q4_K"),
    (13, GgmlDType::Q5K, "Q5_K"),
    (14, GgmlDType::Q6K, "Q6_K"),
];

/// Kinds that are refused by name.
const OTHERS: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (31, "Q4_0_4_4"),
    (36, "IQ4_NL_4_4"),
];

/// What a code stands for, in messages.
pub fn name(code: u32) -> String {
    OTHERS
        .iter()
        .find(|(other, _)| *other == code)
        .map_or_else(|| format!("kind {code}"), |(_, name)| (*name).to_owned())
}

/// Numbers that are turned at once, a multiple of any block.
const PIECE: usize = 1 << 16;

impl Blocks {
    pub fn of(code: u32) -> Option<Self> {
        KINDS.iter().find(|(kind, ..)| *kind == code).map(|&(_, kind, _)| Self(kind))
    }

    /// Bytes of `count` numbers in rows of `row`; none where rows are not made of whole blocks.
    pub fn bytes(self, count: usize, row: usize) -> Option<usize> {
        let size = self.0.block_size();
        if row == 0 || !row.is_multiple_of(size) {
            return None;
        }
        (count / size).checked_mul(self.0.type_size())
    }

    /// Whether these are the blocks of [`Dtype::Q8`].
    pub fn are_q8(self) -> bool {
        self.0 == GgmlDType::Q8_0
    }

    /// The numbers at `bytes`, which begin at a multiple of 8, rounded to `dtype`. None where candle finds something wrong, and for q8 of
    /// other blocks, which is made of whole matrices.
    pub fn elements(self, bytes: &[u8], dtype: Dtype) -> Option<Elements> {
        let (block, size) = (self.0.block_size(), self.0.type_size());
        let count = bytes.len() / size * block;
        let mut pieces = bytes.chunks(PIECE / block * size).map(|piece| self.floats(piece));
        Some(match dtype {
            Dtype::F32 => {
                let mut all = Vec::with_capacity(count);
                pieces.try_for_each(|piece| piece.map(|piece| all.extend(piece)))?;
                Elements::F32(all)
            }
            Dtype::Bf16 => {
                let mut all = Vec::with_capacity(count);
                pieces.try_for_each(|piece| piece.map(|piece| all.extend(piece.into_iter().map(bf16::from_f32))))?;
                Elements::Bf16(all)
            }
            Dtype::F16 => {
                let mut all = Vec::with_capacity(count);
                pieces.try_for_each(|piece| piece.map(|piece| all.extend(piece.into_iter().map(f16::from_f32))))?;
                Elements::F16(all)
            }
            Dtype::Q8 if self.are_q8() => Elements::Q8(Q8Block::read(bytes)),
            Dtype::Q8 => return None,
        })
    }

    fn floats(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let count = bytes.len() / self.0.type_size() * self.0.block_size();
        let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, self.0).ok()?;
        QTensor::new(storage, count).ok()?.dequantize(&Device::Cpu).ok()?.to_vec1().ok()
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KINDS.iter().find(|(_, kind, _)| *kind == self.0).map_or("?", |(.., name)| name))
    }
}
