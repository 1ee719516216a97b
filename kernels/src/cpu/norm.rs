//! CPU twin of [`crate::norm`].

use crate::cpu::{
    simd::{Kernel, LANES, Simd, dispatch},
    vector::{dot, sigmoid},
};

pub(crate) fn rms_norm(xs: &[f32], weight: &[f32], eps: f32, ys: &mut [f32]) {
    dispatch(RmsNorm { xs, weight, eps, ys });
}

struct RmsNorm<'a> {
    xs: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    ys: &'a mut [f32],
}

#[inline(always)]
fn rms_scale<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(s, x, x) / x.len() as f32 + eps).sqrt()
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.weight.len();
        for (x, y) in self.xs.chunks_exact(d).zip(self.ys.chunks_exact_mut(d)) {
            let scale = s.splat(rms_scale(s, x, self.eps));
            for ((x, w), y) in x.chunks(LANES).zip(self.weight.chunks(LANES)).zip(y.chunks_mut(LANES)) {
                s.store_some(s.mul(s.mul(s.load_some(x), scale), s.load_some(w)), y);
            }
        }
    }
}

pub(crate) fn gated_group_rms_norm(
    ys: &[f32],
    zs: &[f32],
    weight: &[f32],
    groups: usize,
    eps: f32,
    out: &mut [f32],
    scale_out: Option<&mut [f32]>,
) {
    dispatch(GatedNorm { ys, zs, weight, groups, eps, out, scale_out });
}

struct GatedNorm<'a> {
    ys: &'a [f32],
    zs: &'a [f32],
    weight: &'a [f32],
    groups: usize,
    eps: f32,
    out: &'a mut [f32],
    scale_out: Option<&'a mut [f32]>,
}

impl Kernel for GatedNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let size = self.weight.len() / self.groups;
        let inputs = self.ys.chunks_exact(size).zip(self.zs.chunks_exact(size));
        for (i, ((y, z), v)) in inputs.zip(self.out.chunks_exact_mut(size)).enumerate() {
            for ((y, z), v) in y.chunks(LANES).zip(z.chunks(LANES)).zip(v.chunks_mut(LANES)) {
                let z = s.load_some(z);
                s.store_some(s.mul(s.load_some(y), s.mul(z, sigmoid(s, z))), v);
            }
            let scale = rms_scale(s, v, self.eps);
            let weight = &self.weight[i % self.groups * size..][..size];
            for (v, w) in v.chunks_mut(LANES).zip(weight.chunks(LANES)) {
                s.store_some(s.mul(s.mul(s.load_some(v), s.splat(scale)), s.load_some(w)), v);
            }
            if let Some(scales) = &mut self.scale_out {
                scales[i] = scale;
            }
        }
    }
}
