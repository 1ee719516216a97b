//! Linear maps and attention of many tokens.

use half::bf16;
use statescope_kernels::cuda::{At, Buffer, DeviceMatrix, Gemm, Gpu, PromptAttention, Result};
use statescope_kernels::{Elements, Matrix};

use crate::{halves, median, numbers};

const TOKENS: usize = 8192;

/// [out, in] of mamba-2.8b, mamba2-2.7b, a transformer of 2.7B, and a head.
pub(crate) fn gemms(gpu: &Gpu) -> Result<()> {
    println!(
        "\n| linear bf16, {TOKENS} tokens | to bf16 | TFLOP/s | to a residual in f32 | TFLOP/s |\n|---|---:|---:|---:|---:|"
    );
    let shapes = [
        (10_240, 2560),
        (2560, 5120),
        (192, 5120),
        (5120, 160),
        (10_576, 2560),
        (2560, 2560),
        (6912, 2560),
        (2560, 6912),
    ];
    for (rows, cols) in shapes {
        let elements = Elements::Bf16(halves(rows * cols, 1, 1.5 / (cols as f32).sqrt()));
        let weight = DeviceMatrix::upload(gpu, &Matrix::new(rows, cols, elements).expect("rows × cols elements"))?;
        let x = gpu.upload(&halves(TOKENS * cols, 2, 1.0))?;
        let (y, residual) = (gpu.zeros::<bf16>(TOKENS * rows)?, gpu.zeros::<f32>(TOKENS * rows)?);
        let gemm = Gemm::new(TOKENS, &weight, At(&x, 0));
        let rounded = median(gpu, 20, || Gemm { y: Some(&y), ..gemm }.run(gpu))?;
        let added = median(gpu, 20, || Gemm { residual: Some((&residual, &residual)), ..gemm }.run(gpu))?;
        let exact_x = gpu.upload(&numbers(1 << 20, 3).into_iter().cycle().take(TOKENS * cols).collect::<Vec<f32>>())?;
        let of_f32 = Gemm { wide: Some(&residual), ..Gemm::new(TOKENS, &weight, At(&exact_x, 0)) };
        let split = median(gpu, 20, || of_f32.run(gpu))?;
        let rate = |time: f32| (2 * TOKENS * rows * cols) as f32 / time / 1e9;
        let rates = [rounded, added, split].map(|time| format!("{time:.3} ms | {:.0}", rate(time)));
        println!("| {rows} × {cols} | {} |", rates.join(" | "));
    }
    Ok(())
}

pub(crate) fn attention(gpu: &Gpu) -> Result<()> {
    println!("\n| attention of {TOKENS} tokens, 32 heads of 80 | f32 | bf16 | TFLOP/s |\n|---|---:|---:|---:|");
    let (heads, hd) = (32, 80);
    for first in [0, TOKENS] {
        let (own, all) = (TOKENS * heads * hd, (first + TOKENS) * heads * hd);
        let upload = |len: usize, seed: u64| {
            gpu.upload(&numbers(1 << 20, seed).into_iter().cycle().take(len).collect::<Vec<f32>>())
        };
        let (q, k, v) = (upload(own, 1)?, upload(own, 2)?, upload(own, 3)?);
        let (keys, values, y) = (upload(all, 4)?, upload(all, 5)?, gpu.zeros::<f32>(own)?);
        let (entropy, queries): (Buffer<f32>, Buffer<f32>) = (gpu.zeros(TOKENS * heads)?, gpu.zeros(own)?);
        let halves = [gpu.zeros::<bf16>(own)?, gpu.zeros(all)?, gpu.zeros(all)?];
        let op = PromptAttention {
            tokens: TOKENS,
            first,
            heads,
            kv_heads: heads,
            head_dim: hd,
            q: &q,
            k: &k,
            v: &v,
            norms: None,
            inv_freq: None,
            key_scale: 1.0,
            scale: 0.11,
            window: None,
            keys: &keys,
            values: &values,
            q_out: &queries,
            y: &y,
            entropy_bits: &entropy,
            halves: None,
        };
        let exact = median(gpu, 3, || op.run(gpu))?;
        let tensor = median(gpu, 20, || PromptAttention { halves: Some(halves.each_ref()), ..op }.run(gpu))?;
        let operations = 4 * TOKENS * (first + TOKENS / 2) * heads * hd;
        println!("| from {first} | {exact:.2} ms | {tensor:.3} ms | {:.0} |", operations as f32 / tensor / 1e9);
    }
    Ok(())
}
