//! The operations on an NVIDIA GPU, feature `cuda`: twins of those in `cpu/`, over [`Buffer`]s. `<op>.cu` is the kernel, `<op>.rs` checks
//! shapes and launches it; [`launch`] has the device and all unsafe code.
//!
//! | op | twin of | shapes |
//! |---|---|---|
//! | [`Linear`] | `linear` of one token, norm, gate, convolution, softplus, gated unit and residual in the same launch | W [out, in], x [in] |
//! | [`Gemm`] | `linear` of many tokens: f32 in any shape, bf16 on tensor cores | W [out, in], x [T, in] |
//! | [`Embed`], [`EmbedRows`] | rows of the embedding | |
//! | [`GateRows`] | `Activation::apply_mul`, `sigmoid_mul` | x [T, E] |
//! | [`Norm`] | `rms_norm`, `layer_norm`, gated group norms | x [T, d] |
//! | [`conv()`] | `causal_conv` (+ silu) | x [T, C] |
//! | [`ScanStep`], [`Scan`] | `SelectiveScan` of one token, of any number | |
//! | [`SsdStep`], [`Ssd`] | `Ssd` of one token, of any number | |
//! | [`TokenPass`] | `Linear`, `ScanStep` or `SsdStep` of all layers in one launch, embedding and head with them, where they fit (Hopper) | token [1] |
//! | [`AttentionStep`], [`PromptAttention`] | norm, `Rope` and `Attention` of one token, of any number, over a contiguous cache | |
//! | [`rank()`], [`RankRow`] | `summarise_softmax`, `top_k` of many rows, of one | logits [T, V] |
//! | [`draw()`] | the engine's sampler, bit for bit | logits [V] |
//! | [`record()`] | none: copies many quantities, as f32, into one stretch of memory | |

mod attention;
mod conv;
mod gemm;
pub mod launch;
mod linear;
mod norm;
mod prompt_attention;
mod rank;
mod rows;
mod selective_scan;
mod ssd;
mod step;
mod token;

pub use attention::{AttentionStep, attention_supported};
pub use conv::{Conv, conv, conv_product, conv_product_pays};
pub use gemm::Gemm;
pub use launch::{Buffer, CudaError, Element, Gpu, Graph, Mark, Pinned, Result, find};
pub use linear::{Convolved, DeviceMatrix, Embed, GatedUnit, Input, Linear};
pub use norm::{Gating, Norm};
pub use prompt_attention::PromptAttention;
pub use rank::{RankRow, draw, draws_as_the_cpu, rank, rank_width};
pub use rows::{ENTRY_WORDS, EmbedRows, Entry, GateFunction, GateRows, Taken, Written, record};
pub use selective_scan::{Scan, ScanProbes};
pub use ssd::Ssd;
pub use step::{DbcNorms, ScanStep, SsdStep};
pub use token::{TokenHead, TokenKind, TokenLayer, TokenPass, TokenShape};

use crate::Activation;
use launch::Ptr;

/// Numbers from an element of a buffer on: a part of a packed projection.
#[derive(Debug)]
pub struct At<'a, T: Element = f32>(pub &'a Buffer<T>, pub usize);

impl<T: Element> Clone for At<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Element> Copy for At<'_, T> {}

impl<'a, T: Element> From<&'a Buffer<T>> for At<'a, T> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        At(buffer, 0)
    }
}

/// Where a kernel puts numbers, or finds one that the host has chosen.
#[derive(Debug)]
pub enum To<'a, T: Element = f32> {
    There(At<'a, T>),
    /// From a number of page-locked memory on, over the bus. It must be kept until the kernel has run.
    Here(&'a Pinned<T>, usize),
}

impl<'a, T: Element> From<At<'a, T>> for To<'a, T> {
    fn from(at: At<'a, T>) -> Self {
        Self::There(at)
    }
}

impl<T: Element> To<'_, T> {
    #[track_caller]
    fn ptr(self, len: usize, what: &str) -> Ptr {
        match self {
            Self::There(at) => at.ptr(len, what),
            Self::Here(host, from) => host.ptr(from, len, what),
        }
    }
}

impl<T: Element> At<'_, T> {
    /// The address, having checked that `len` elements follow.
    #[track_caller]
    fn ptr(self, len: usize, what: &str) -> Ptr {
        assert!(self.1 + len <= self.0.len(), "{what}: {len} elements from {} of {}", self.1, self.0.len());
        self.0.ptr(self.1)
    }

    /// As [`At::ptr`] for `rows` of `width`, one every `stride`.
    #[track_caller]
    fn rows(self, rows: usize, width: usize, stride: usize, what: &str) -> Ptr {
        assert!(rows < 2 || stride >= width, "{what}: rows of {width} every {stride}");
        self.ptr(if rows == 0 { 0 } else { (rows - 1) * stride + width }, what)
    }
}

#[track_caller]
fn optional<T: Element>(at: Option<At<'_, T>>, len: usize, what: &str) -> Ptr {
    at.map_or(Ptr::default(), |at| at.ptr(len, what))
}

fn number(n: usize) -> u32 {
    u32::try_from(n).expect("sizes fit 32 bits")
}

/// As `enum Activation` of common.cuh.
fn activation_code(activation: Option<Activation>) -> u32 {
    match activation {
        Some(Activation::Silu) => 0,
        Some(Activation::Gelu) => 1,
        Some(Activation::GeluTanh) => 2,
        Some(Activation::Relu2) => 3,
        None => 4,
    }
}
