//! Times the CUDA kernels on random data: `cargo bench -p statescope-kernels --features cuda --bench cuda -- [--only copy|gemm|rows|attention|scan|ssd|decode]`.
//! Correctness is the tests' business. Times are medians of device events; `peers.py` beside this times the peers on the same shapes.

mod decode;
mod prompts;
mod rows;
mod sequences;

use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use statescope_kernels::cuda::{Buffer, Gpu, Result};

/// Reproducible numbers in [−1, 1).
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        z ^= z << 13;
        z ^= z >> 7;
        z ^= z << 17;
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// As [`numbers`] times `scale`, of a large count: one stretch repeated.
fn halves(n: usize, seed: u64, scale: f32) -> Vec<bf16> {
    let stretch: Vec<bf16> = numbers(n.min(1 << 20), seed).into_iter().map(|x| bf16::from_f32(x * scale)).collect();
    stretch.iter().copied().cycle().take(n).collect()
}

/// Median milliseconds of `count` calls, each between two events.
fn median(gpu: &Gpu, count: usize, mut call: impl FnMut() -> Result<()>) -> Result<f32> {
    // An idle device takes milliseconds to raise its clock.
    let begun = Instant::now();
    for calls in 0.. {
        call()?;
        gpu.wait()?;
        if calls > 1 && begun.elapsed().as_millis() > 50 {
            break;
        }
    }
    let mut times = Vec::new();
    for _ in 0..count {
        let from = gpu.mark()?;
        call()?;
        let to = gpu.mark()?;
        times.push(gpu.milliseconds(&from, &to)?);
    }
    times.sort_by(f32::total_cmp);
    Ok(times[times.len() / 2])
}

fn copy(gpu: &Gpu) -> Result<()> {
    use statescope_kernels::cuda::{At, Conv, conv};
    // The convolution of one tap is a copy through the same kinds of loads; large enough to leave the cache behind.
    let (tokens, channels) = (1 << 16, 5120);
    let x: Buffer<f32> = gpu.zeros(tokens * channels)?;
    let y: Buffer<f32> = gpu.zeros(tokens * channels)?;
    let (weight, none) = (gpu.upload(&vec![1.0f32; channels])?, gpu.zeros::<f32>(0)?);
    let op = Conv { weight: &weight, bias: None, history: (&none, &none), channels, silu: false };
    let time = median(gpu, 20, || conv(gpu, op, At(&x, 0), channels, tokens, &y))?;
    println!(
        "| copy of {} MB | {time:.3} ms | {:.0} GB/s |",
        tokens * channels * 4 / 1_000_000,
        (8 * tokens * channels) as f32 / time / 1e6
    );
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let only = arguments.iter().position(|a| a == "--only").and_then(|i| arguments.get(i + 1).cloned());
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let gpu: Arc<Gpu> = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("skipped: cuda: {error}");
            return Ok(());
        }
    };
    println!("{}, {} multiprocessors, {:?} bytes free of all", gpu.name(), gpu.processors(), gpu.memory()?);
    if wanted("copy") {
        copy(&gpu)?;
    }
    if wanted("gemm") {
        prompts::gemms(&gpu)?;
    }
    if wanted("rows") {
        rows::all(&gpu)?;
    }
    if wanted("attention") {
        prompts::attention(&gpu)?;
    }
    if wanted("scan") {
        sequences::scans(&gpu)?;
    }
    if wanted("ssd") {
        sequences::ssds(&gpu)?;
    }
    if wanted("decode") {
        decode::all(&gpu)?;
    }
    Ok(())
}
