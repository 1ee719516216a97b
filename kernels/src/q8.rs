//! 8-bit weights in blocks of 32 with a scale of their own: the layout of GGUF's `q8_0`, so that such a file can stay where it lies.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// 32 consecutive weights of a row, each `scale · quant`; a row's last block is filled up with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Q8Block {
    pub scale: f16,
    pub quants: [i8; Q8Block::WEIGHTS],
}

impl Q8Block {
    /// Weights of a block.
    pub const WEIGHTS: usize = 32;

    /// Up to 32 finite weights of at most 127 · 65504; each is off by half a scale at most, and the scale is max |w| / 127 up to its
    /// own rounding.
    pub fn quantised(weights: &[f32]) -> Q8Block {
        let largest = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
        let mut scale = f16::from_f32(largest / 127.0);
        // A scale below the normal range of f16 may have been rounded down so far that 127 of it do not reach the largest weight.
        if largest > 127.5 * scale.to_f32() {
            scale = f16::from_bits(scale.to_bits() + 1);
        }
        let inverse = if largest > 0.0 { scale.to_f32().recip() } else { 0.0 };
        let mut quants = [0; Self::WEIGHTS];
        quants.iter_mut().zip(weights).for_each(|(q, w)| *q = (w * inverse).round_ties_even() as i8);
        Q8Block { scale, quants }
    }

    /// The blocks at `bytes`, one after the other as GGUF has them.
    pub fn read(bytes: &[u8]) -> Vec<Q8Block> {
        bytes.chunks_exact(size_of::<Q8Block>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Weight `index`, exactly: a scale of 11 bits times a quant of 8.
    pub fn weight(&self, index: usize) -> f32 {
        self.scale.to_f32() * f32::from(self.quants[index])
    }

    /// Up to 32 weights.
    pub fn copy_to(&self, out: &mut [f32]) {
        let scale = self.scale.to_f32();
        out.iter_mut().zip(self.quants).for_each(|(w, q)| *w = scale * f32::from(q));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_off_by_half_a_scale_at_most() {
        // Down to scales that f16 holds with few bits, and below all that it holds.
        for magnitude in [1e6f32, 1.0, 0.02, 1e-3, 1e-4, 1e-5, 1e-7] {
            for count in [1, 7, 32] {
                let weights: Vec<f32> =
                    (0..count).map(|i| magnitude * ((i * 37 % 32) as f32 / 15.5 - 1.0) * 0.97).collect();
                let block = Q8Block::quantised(&weights);
                let largest = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
                let scale = block.scale.to_f32();
                assert!(scale <= largest / 127.0 * 1.001 + 6e-8, "{magnitude}: scale {scale}");
                let mut back = vec![f32::NAN; count];
                block.copy_to(&mut back);
                for (i, (w, back)) in weights.iter().zip(back).enumerate() {
                    assert_eq!(back, block.weight(i));
                    assert!((w - back).abs() <= scale * 0.501, "{magnitude}: {w} became {back} at scale {scale}");
                }
                assert!(block.quants[count..].iter().all(|q| *q == 0));
            }
        }
    }

    #[test]
    fn zeros_and_the_largest_block() {
        assert_eq!(Q8Block::quantised(&[0.0; 32]), Q8Block { scale: f16::ZERO, quants: [0; 32] });
        assert_eq!(Q8Block::quantised(&[127.0 * 65504.0]).scale, f16::MAX);
        assert_eq!(size_of::<Q8Block>(), 34);
    }
}
