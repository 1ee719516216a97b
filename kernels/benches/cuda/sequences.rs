//! Scan and SSD over long texts.

use half::bf16;
use statescope_kernels::cuda::{At, Buffer, Element, Gpu, Result, Scan, ScanProbes, Ssd};

use crate::{halves, median, numbers};

const LENGTHS: [usize; 3] = [2048, 16_384, 131_072];

fn scan<T: Element>(gpu: &Gpu, tokens: usize, upload: impl Fn(usize, u64, f32) -> Result<Buffer<T>>) -> Result<()> {
    let (e, n) = (5120, 16);
    let (x, z, delta, b, c) = (
        upload(tokens * e, 1, 1.0)?,
        upload(tokens * e, 2, 1.0)?,
        upload(tokens * e, 3, 0.5)?,
        upload(tokens * n, 4, 1.0)?,
        upload(tokens * n, 5, 1.0)?,
    );
    let rates: Vec<f32> = (0..e * n).map(|i| -1.0 - (i % n) as f32).collect();
    let (a, d, bias) = (gpu.upload(&rates)?, gpu.upload(&numbers(e, 6))?, gpu.upload(&vec![-4.0f32; e])?);
    let (state, y, norms) = (gpu.zeros(e * n)?, gpu.zeros::<T>(tokens * e)?, gpu.zeros(tokens * e)?);
    for probes in [ScanProbes::default(), ScanProbes { state_norm: Some(&norms), delta: None }] {
        let op = Scan {
            tokens,
            channels: e,
            groups: 1,
            delta: At(&delta, 0),
            delta_stride: e,
            delta_bias: Some(&bias),
            softplus: true,
            a: &a,
            b: At(&b, 0),
            c: At(&c, 0),
            bc_stride: n,
            x: At(&x, 0),
            x_stride: e,
            d: Some(&d),
            gate: Some((At(&z, 0), e)),
            state: &state,
            y: &y,
            core: None,
            probes,
        };
        let time = median(gpu, 20, || op.run(gpu))?;
        let with = if probes.state_norm.is_some() { ", with ‖h‖" } else { "" };
        println!("| selective scan {}, D5120 N16 L{tokens}{with} | {time:.3} ms |", T::NAME);
    }
    Ok(())
}

pub fn scans(gpu: &Gpu) -> Result<()> {
    for tokens in LENGTHS {
        scan::<bf16>(gpu, tokens, |n, seed, scale| gpu.upload(&halves(n, seed, scale)))?;
        scan::<f32>(gpu, tokens, |n, seed, scale| {
            gpu.upload(&halves(n, seed, scale).into_iter().map(f32::from).collect::<Vec<f32>>())
        })?;
    }
    Ok(())
}

pub fn ssds(gpu: &Gpu) -> Result<()> {
    for (heads, groups, tokens) in [(80, 1, 2048), (80, 1, 16_384), (80, 1, 131_072), (128, 8, 16_384)] {
        let (p, n) = (64, 128);
        let e = heads * p;
        let x = gpu.upload(&halves(tokens * e, 1, 1.0))?;
        let (b, c) =
            (gpu.upload(&halves(tokens * groups * n, 2, 1.0))?, gpu.upload(&halves(tokens * groups * n, 3, 1.0))?);
        let delta = gpu.upload(&halves(tokens * heads, 4, 0.5))?;
        let rates: Vec<f32> = (0..heads).map(|i| -1.0 - i as f32 / 8.0).collect();
        let (a, d, bias) = (gpu.upload(&rates)?, gpu.upload(&numbers(heads, 5))?, gpu.upload(&vec![-4.0f32; heads])?);
        let (state, y) = (gpu.zeros(e * n)?, gpu.zeros::<bf16>(tokens * e)?);
        let op = Ssd {
            tokens,
            heads,
            head_dim: p,
            state_dim: n,
            groups,
            delta: At(&delta, 0),
            delta_stride: heads,
            delta_bias: Some(&bias),
            softplus: true,
            delta_limit: (0.0, f32::INFINITY),
            a: &a,
            b: At(&b, 0),
            c: At(&c, 0),
            bc_stride: groups * n,
            x: At(&x, 0),
            x_stride: e,
            d: Some(&d),
            state: &state,
            y: &y,
        };
        let scratch = gpu.zeros(op.scratch_len(gpu))?;
        let time = median(gpu, 20, || op.run(gpu, &scratch))?;
        println!("| SSD bf16, H{heads} P{p} N{n} G{groups} L{tokens} | {time:.3} ms |");
    }
    Ok(())
}
