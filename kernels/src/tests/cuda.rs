//! The kernels of `cuda/` against the f64 references, into outputs filled with NaN. Skipped by name where there is no GPU; to run them:
//! `cargo test -p statescope-kernels --features cuda -- --ignored cuda`.

mod attention;
mod decode;
mod prompts;
mod ranks;
mod sequences;
mod token;

use std::sync::Arc;

use half::{bf16, f16};

use super::*;
use crate::cuda::{Buffer, Element, Gpu};

pub(super) fn gpu() -> Arc<Gpu> {
    Gpu::open(0).expect("a CUDA device")
}

/// A 16- or 32-bit float.
pub(super) trait Float: Element {
    fn round(x: f32) -> Self;
    fn widen(self) -> f32;
    /// What rounding of the largest value may cost.
    const ERROR: f64;
}
impl Float for f32 {
    fn round(x: f32) -> Self {
        x
    }
    fn widen(self) -> f32 {
        self
    }
    const ERROR: f64 = 2e-5;
}
impl Float for bf16 {
    fn round(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
    const ERROR: f64 = 4e-3;
}
impl Float for f16 {
    fn round(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
    const ERROR: f64 = 6e-4;
}

/// `xs` rounded to T on the device, and what they became.
pub(super) fn rounded<T: Float>(gpu: &Gpu, xs: &[f32]) -> (Buffer<T>, Vec<f32>) {
    let rounded: Vec<T> = xs.iter().map(|&x| T::round(x)).collect();
    (gpu.upload(&rounded).unwrap(), rounded.iter().map(|x| x.widen()).collect())
}

pub(super) fn put(gpu: &Gpu, xs: &[f32]) -> Buffer<f32> {
    gpu.upload(xs).unwrap()
}

pub(super) fn poisoned<T: Float>(gpu: &Gpu, len: usize) -> Buffer<T> {
    gpu.upload(&vec![T::round(f32::NAN); len]).unwrap()
}

pub(super) fn get<T: Float>(gpu: &Gpu, buffer: &Buffer<T>) -> Vec<f32> {
    gpu.download(buffer).unwrap().into_iter().map(T::widen).collect()
}

/// Without a driver the reason is one sentence; with one, this says nothing.
#[test]
fn without_a_driver_the_reason_is_one_sentence() {
    if let Err(error) = Gpu::open(0) {
        let text = error.to_string();
        assert!(text.len() > 20 && !text.contains('\n'), "{text}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_memory_goes_there_and_back() {
    let gpu = gpu();
    let values = Rng::new(1).vec(1001);
    let buffer = put(&gpu, &values);
    assert_eq!(get(&gpu, &buffer), values);
    gpu.write(&buffer, 7, &[1.0, 2.0]).unwrap();
    let mut part = [0.0; 3];
    gpu.read(&buffer, 6, &mut part).unwrap();
    assert_eq!(part, [values[6], 1.0, 2.0]);
    let (mut host, zeros) = (gpu.pinned(5).unwrap(), gpu.zeros::<f32>(5).unwrap());
    gpu.copy_out(&buffer, 7, &mut host, 1, 2).unwrap();
    gpu.wait().unwrap();
    assert_eq!(host.as_slice(), [0.0, 1.0, 2.0, 0.0, 0.0]);
    gpu.copy_in(&host, &zeros, 0).unwrap();
    assert_eq!(get(&gpu, &zeros), host.as_slice());
    let (free, all) = gpu.memory().unwrap();
    assert!(0 < free && free <= all && !gpu.name().is_empty());
}

/// A captured launch reads what its buffers hold at each replay, and keeps them alive.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_graphs_replay() {
    use crate::cuda::{At, Norm};
    let gpu = gpu();
    let mut rng = Rng::new(2);
    let (x, weight) = (put(&gpu, &rng.vec(6 * 33)), put(&gpu, &rng.vec(33)));
    let y = poisoned::<f32>(&gpu, 6 * 33);
    let norm = Norm::rms(6, At(&x, 0), &weight, 1e-5, At(&y, 0));
    let graph = gpu.capture(|| norm.run(&gpu)).unwrap();
    assert!(get(&gpu, &y).iter().all(|y| y.is_nan()), "capturing runs nothing");
    for _ in 0..2 {
        let xs = rng.vec(6 * 33);
        gpu.write(&x, 0, &xs).unwrap();
        graph.replay().unwrap();
        let expected = crate::norm::rms_norm_reference(&xs, &get(&gpu, &weight), 1e-5);
        assert_close(&get(&gpu, &y), &expected, 1e-6, "replayed");
    }
    drop((x, weight));
    graph.replay().unwrap();
    gpu.wait().unwrap();
}
