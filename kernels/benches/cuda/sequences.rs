//! Scan and SSD over long texts.

use half::bf16;
use statescope_kernels::cuda::{At, Buffer, Element, Gpu, Result, Scan, ScanProbes, Ssd};

use crate::{halves, median, numbers};

const LENGTHS: [usize; 3] = [2048, 16_384, 131_072];

fn scan<T: Element>(
    gpu: &Gpu,
    e: usize,
    tokens: usize,
    upload: impl Fn(usize, u64, f32) -> Result<Buffer<T>>,
) -> Result<()> {
    let n = 16;
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
        println!("| selective scan {}, D{e} N16 L{tokens}{with} | {time:.3} ms |", T::NAME);
    }
    Ok(())
}

pub fn scans(gpu: &Gpu) -> Result<()> {
    for tokens in LENGTHS {
        scan::<bf16>(gpu, 5120, tokens, |n, seed, scale| gpu.upload(&halves(n, seed, scale)))?;
        scan::<f32>(gpu, 5120, tokens, |n, seed, scale| {
            gpu.upload(&halves(n, seed, scale).into_iter().map(f32::from).collect::<Vec<f32>>())
        })?;
    }
    for e in [1536, 3072] {
        scan::<bf16>(gpu, e, 16_384, |n, seed, scale| gpu.upload(&halves(n, seed, scale)))?;
    }
    Ok(())
}

fn ssd<T: Element>(
    gpu: &Gpu,
    (heads, groups, tokens): (usize, usize, usize),
    upload: impl Fn(usize, u64, f32) -> Result<Buffer<T>>,
) -> Result<()> {
    let (p, n) = (64, 128);
    let e = heads * p;
    let x = upload(tokens * e, 1, 1.0)?;
    let (b, c) = (upload(tokens * groups * n, 2, 1.0)?, upload(tokens * groups * n, 3, 1.0)?);
    let delta = upload(tokens * heads, 4, 0.5)?;
    let rates: Vec<f32> = (0..heads).map(|i| -1.0 - i as f32 / 8.0).collect();
    let (a, d, bias) = (gpu.upload(&rates)?, gpu.upload(&numbers(heads, 5))?, gpu.upload(&vec![-4.0f32; heads])?);
    let (state, y) = (gpu.zeros(e * n)?, gpu.zeros::<T>(tokens * e)?);
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
    println!("| SSD {}, H{heads} P{p} N{n} G{groups} L{tokens} | {time:.3} ms |", T::NAME);
    Ok(())
}

pub fn ssds(gpu: &Gpu) -> Result<()> {
    for shape in [(80, 1, 2048), (80, 1, 16_384), (80, 1, 131_072), (128, 8, 16_384)] {
        ssd::<bf16>(gpu, shape, |n, seed, scale| gpu.upload(&halves(n, seed, scale)))?;
    }
    for shape in [(24, 1, 2048), (24, 1, 16_384)] {
        ssd::<f32>(gpu, shape, |n, seed, scale| {
            gpu.upload(&halves(n, seed, scale).into_iter().map(f32::from).collect::<Vec<f32>>())
        })?;
    }
    Ok(())
}
