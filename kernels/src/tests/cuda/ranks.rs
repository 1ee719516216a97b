//! What logits come to: ranks, sums, draws.

use super::*;
use crate::activation::exp_slice;
use crate::cuda::{At, RankRow, To, draw, draws_as_the_cpu, rank, rank_width};
use crate::reduce::{summarise_softmax, top_k};

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_logits_are_ranked() {
    let gpu = gpu();
    let row = RankRow::new(&gpu).unwrap();
    let mut rng = Rng::new(46);
    // All of one value in the last: more equals than are gathered.
    for (tokens, vocab, count) in
        [(1, 3, 2), (3, 1000, 12), (2, 50_280, 12), (1, 2000, 1), (2, 50_277, 64), (1, 256, 64), (1, 9000, 20)]
    {
        let spread = if vocab == 9000 { 0.0 } else { 20.0 };
        let mut xs: Vec<f32> = rng.vec(tokens * vocab).into_iter().map(|x| spread * x).collect();
        // Equals, in one thread's stretch and in another's.
        (xs[0], xs[1], xs[vocab - 1]) = (25.0, 25.0, 25.0);
        let (logits, out) = (put(&gpu, &xs), poisoned::<f32>(&gpu, tokens * rank_width(count)));
        let next: Vec<u32> = (0..tokens as u32).map(|t| if t == 1 { u32::MAX } else { 2 * t }).collect();
        let next_there = gpu.upload(&next).unwrap();
        rank(&gpu, At(&logits, 0), tokens, vocab, At(&next_there, 0), count, At(&out, 0)).unwrap();
        let mut found = get(&gpu, &out);
        // A single row by several blocks, twice: the second time finds all as the first did.
        for _ in 0..2 {
            let host = gpu.pinned::<f32>(1 + rank_width(count)).unwrap();
            let next = At(&next_there, 0);
            row.run(&gpu, At(&logits, 0), vocab, next, count, To::Here(&host, 1)).unwrap();
            gpu.wait().unwrap();
            let width = rank_width(count);
            let (alone, among) = (&host.as_slice()[1..], &mut found[..width]);
            let close = |i: usize| (alone[i] - among[i]).abs() < 1e-4;
            assert!(
                close(0) && close(1) && alone[2..].iter().zip(&among[2..]).all(|(a, b)| a.to_bits() == b.to_bits())
            );
            among.copy_from_slice(alone);
        }
        for (t, (row, found)) in xs.chunks_exact(vocab).zip(found.chunks_exact(rank_width(count))).enumerate() {
            let summary = summarise_softmax(row);
            assert!((found[0] - summary.log_sum_exp).abs() < 1e-4 && (found[1] - summary.entropy_bits).abs() < 1e-4);
            assert_eq!(found[2], row.get(next[t] as usize).copied().unwrap_or(0.0));
            let ranked: Vec<(u32, f32)> = found[3..].chunks_exact(2).map(|pair| (pair[0].to_bits(), pair[1])).collect();
            assert_eq!(ranked, top_k(row, count), "{tokens} × {vocab}");
        }
    }
}

/// Weights, and sums of stretches, as the engine's sampler has them.
fn stretches(logits: &[f32], temperature: f32) -> (Vec<f32>, Vec<f64>) {
    let finite = |x: f32| if x.is_finite() { x } else { f32::NEG_INFINITY };
    let peak = logits.iter().fold(f32::NEG_INFINITY, |peak, x| peak.max(finite(*x)));
    let mut weights: Vec<f32> = logits.iter().map(|x| (finite(*x) - peak) / temperature).collect();
    exp_slice(&mut weights);
    let sums = weights.chunks(64).map(|part| f64::from(part.iter().sum::<f32>())).collect();
    (weights, sums)
}

fn total(logits: &[f32], temperature: f32) -> f64 {
    stretches(logits, temperature).1.into_iter().sum()
}

/// As the engine's sampler draws.
fn drawn(logits: &[f32], temperature: f32, uniform: f64) -> u32 {
    let (weights, sums) = stretches(logits, temperature);
    let mut remaining = uniform * sums.iter().sum::<f64>();
    let mut at = 0;
    while at + 1 < sums.len() && remaining >= sums[at] {
        remaining -= sums[at];
        at += 1;
    }
    let mut last = 0;
    for (id, weight) in weights.iter().enumerate().skip(at * 64).filter(|(_, weight)| **weight > 0.0) {
        last = id;
        if remaining < f64::from(*weight) {
            break;
        }
        remaining -= f64::from(*weight);
    }
    last as u32
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_draws_are_the_samplers() {
    let gpu = gpu();
    let mut rng = Rng::new(47);
    assert!(draws_as_the_cpu(), "this processor fuses multiply-adds");
    for (vocab, spread) in [(1, 1.0), (65, 3.0), (1000, 0.0), (50_280, 2.0), (50_277, 30.0), (131_072, 1.0)] {
        let mut xs: Vec<f32> = rng.vec(vocab).into_iter().map(|x| spread * x).collect();
        if vocab > 64 {
            (xs[3], xs[17], xs[64]) = (f32::NAN, f32::NEG_INFINITY, f32::INFINITY);
        }
        let (logits, host) = (put(&gpu, &xs), gpu.pinned::<u32>(1).unwrap());
        for (i, uniform) in (0..40).map(|i| (i, f64::from(i) / 40.0)).chain([(40, 1.0 - f64::EPSILON / 2.0)]) {
            let temperature = [0.8, 1.0, 0.07, 3.0][i as usize % 4];
            draw(&gpu, At(&logits, 0), vocab, temperature, Some(uniform), To::Here(&host, 0)).unwrap();
            gpu.wait().unwrap();
            assert_eq!(host.as_slice()[0], drawn(&xs, temperature, uniform), "{vocab}, {temperature}, {uniform}");
            let sum = gpu.pinned::<u32>(2).unwrap();
            draw(&gpu, At(&logits, 0), vocab, temperature, None, To::Here(&sum, 0)).unwrap();
            gpu.wait().unwrap();
            let expected = total(&xs, temperature).to_bits();
            assert_eq!(sum.as_slice(), [expected as u32, (expected >> 32) as u32], "{vocab}, {temperature}");
        }
    }
    let (none, host) = (put(&gpu, &nan(100)), gpu.pinned::<u32>(1).unwrap());
    draw(&gpu, At(&none, 0), 100, 1.0, Some(0.5), To::Here(&host, 0)).unwrap();
    gpu.wait().unwrap();
    assert_eq!(host.as_slice(), [0]);
}
