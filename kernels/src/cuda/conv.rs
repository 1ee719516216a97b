//! Depthwise causal convolution of many tokens.

use super::launch::{Ptr, Shape};
use super::{At, Buffer, Element, Gpu, Result, number, optional};

/// Weights and memory of a convolution of K ≤ 4 taps over C channels.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// [C, K].
    pub weight: &'a Buffer<f32>,
    /// [C].
    pub bias: Option<&'a Buffer<f32>>,
    /// [K−1, C]: the inputs before, and those that the next call needs; two buffers.
    pub history: (&'a Buffer<f32>, &'a Buffer<f32>),
    pub channels: usize,
    /// silu after it.
    pub silu: bool,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    x: Ptr,
    weight: Ptr,
    bias: Ptr,
    history: Ptr,
    next_history: Ptr,
    y: Ptr,
    tokens: u32,
    channels: u32,
    taps: u32,
    stride: u32,
    run: u32,
    silu: u32,
}

/// y [T, C] of x [T, C], a row every `stride`: see [`crate::causal_conv`].
pub fn conv<T: Element>(
    gpu: &Gpu,
    conv: Conv<'_>,
    x: At<'_, T>,
    stride: usize,
    tokens: usize,
    y: &Buffer<T>,
) -> Result<()> {
    let (channels, taps) = (conv.channels, conv.weight.len() / conv.channels.max(1));
    assert!(conv.weight.len() == channels * taps && (1..=4).contains(&taps), "conv: {taps} taps");
    assert!(conv.history.0.ptr(0) != conv.history.1.ptr(0) || taps == 1, "conv: one history for before and after");
    if tokens == 0 {
        return Ok(());
    }
    // Long enough runs that the taps' overlap costs little, short enough to fill the device.
    let run = if tokens > 4096 { 64 } else { 16 };
    let params = Params {
        x: x.rows(tokens, channels, stride, "conv: x"),
        weight: conv.weight.ptr(0),
        bias: optional(conv.bias.map(At::from), channels, "conv: bias"),
        history: At::from(conv.history.0).ptr((taps - 1) * channels, "conv: history"),
        next_history: At::from(conv.history.1).ptr((taps - 1) * channels, "conv: history"),
        y: At::from(y).ptr(tokens * channels, "conv: y"),
        tokens: number(tokens),
        channels: number(channels),
        taps: number(taps),
        stride: number(stride),
        run,
        silu: conv.silu.into(),
    };
    if [channels, stride, x.1].iter().all(|n| n.is_multiple_of(8)) && channels >= 512 {
        let params = Params { run: if tokens > 2048 { 32 } else { 8 }, ..params };
        let grid = (number(channels / 8).div_ceil(128), number(tokens).div_ceil(params.run));
        let shape = Shape { grid, threads: 128, shared: 0, early: false };
        return gpu.launch("conv", &format!("conv_wide_{}", T::NAME), shape, &params);
    }
    let grid = (number(channels).div_ceil(128), number(tokens).div_ceil(run));
    gpu.launch("conv", &format!("conv_{}", T::NAME), Shape { grid, threads: 128, shared: 0, early: false }, &params)
}
