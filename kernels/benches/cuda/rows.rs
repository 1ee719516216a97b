//! What stands between the products of a prompt: convolutions, norms and small products, in bf16.

use half::bf16;
use statescope_kernels::cuda::{At, Conv, DeviceMatrix, Gating, Gemm, Gpu, Norm, Result, conv, conv_product};
use statescope_kernels::{Elements, Matrix};

use crate::{halves, median, numbers};

/// Of mamba-2.8b and mamba2-2.7b.
pub fn all(gpu: &Gpu) -> Result<()> {
    let matrix = |rows: usize, cols: usize| {
        let elements = Elements::Bf16(halves(rows * cols, 1, 1.5 / (cols as f32).sqrt()));
        DeviceMatrix::upload(gpu, &Matrix::new(rows, cols, elements).expect("rows × cols elements"))
    };
    println!("\n| rows in bf16 | ms | GB/s |\n|---|---:|---:|");
    for tokens in [2048, 8192, 16_384] {
        let report = |what: &str, bytes: usize, time: f32| {
            println!("| {what}, {tokens} tokens | {time:.4} | {:.0} |", (tokens * bytes) as f32 / time / 1e6);
        };
        for (channels, from, stride) in [(5120, 0, 10_240), (5376, 5120, 10_576)] {
            let x = gpu.upload(&halves(tokens * stride, 2, 1.0))?;
            let (weight, bias) = (gpu.upload(&numbers(4 * channels, 3))?, gpu.upload(&numbers(channels, 4))?);
            let (history, after) = (gpu.zeros(3 * channels)?, gpu.zeros(3 * channels)?);
            let (y, made) = (gpu.zeros::<bf16>(tokens * channels)?, gpu.zeros::<bf16>(tokens * 192)?);
            let op = Conv { weight: &weight, bias: Some(&bias), history: (&history, &after), channels, silu: true };
            let run = || conv(gpu, op, At(&x, from), stride, tokens, &y);
            report(&format!("convolution of {channels}"), 4 * channels, median(gpu, 20, run)?);
            let x_proj = matrix(192, channels)?;
            let run = || conv_product(gpu, op, At(&x, from), stride, tokens, &y, (&x_proj, &made));
            report(&format!("convolution of {channels} and product to 192"), 4 * channels, median(gpu, 20, run)?);
        }
        let resid = gpu.upload(&numbers(1 << 20, 5).into_iter().cycle().take(tokens * 2560).collect::<Vec<f32>>())?;
        let (weight, y) = (gpu.upload(&numbers(2560, 6))?, gpu.zeros::<bf16>(tokens * 2560)?);
        let run = || Norm::rms(tokens, At(&resid, 0), &weight, 1e-5, At(&y, 0)).run(gpu);
        report("norm of 2560", 6 * 2560, median(gpu, 20, run)?);
        let (x, z) = (gpu.upload(&halves(tokens * 5120, 7, 1.0))?, gpu.upload(&halves(tokens * 10_576, 8, 1.0))?);
        let (weight, y) = (gpu.upload(&numbers(5120, 6))?, gpu.zeros::<bf16>(tokens * 5120)?);
        let norm = Norm::rms(tokens, At(&x, 0), &weight, 1e-5, At(&y, 0));
        let run = || Norm { gating: Gating::Before(At(&z, 0), 10_576), ..norm }.run(gpu);
        report("gated norm of 5120", 6 * 5120, median(gpu, 20, run)?);
        let (dt_proj, dbc) = (matrix(5120, 160)?, gpu.upload(&halves(tokens * 192, 9, 1.0))?);
        let gemm = Gemm { x_stride: 192, ..Gemm::new(tokens, &dt_proj, At(&dbc, 0)) };
        let run = || Gemm { y: Some(&y), ..gemm }.run(gpu);
        report("product 5120 × 160", 2 * 5120, median(gpu, 20, run)?);
    }
    Ok(())
}
