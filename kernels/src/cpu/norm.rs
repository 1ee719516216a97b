//! CPU twin of [`crate::norm`].

use std::ops::Range;

use crate::{
    cpu::{
        simd::{Kernel, Simd, dispatch},
        vector::{dot, sigmoid, sum},
    },
    norm::{Gated, Order},
    par,
};

/// Numbers of a piece of work, at least.
const PIECE: usize = 1 << 12;

/// Calls `f` with pieces of whole rows of `width`, and where they lie in `out`.
fn by_rows(out: &mut [f32], width: usize, f: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let (size, work) = (PIECE.div_ceil(width.max(1)) * width, 2 * out.len());
    par::for_each_chunk(out, size, work, |i, out| f(i * size..i * size + out.len(), out));
}

pub(crate) fn rms_norm(xs: &[f32], weight: &[f32], eps: f32, ys: &mut [f32]) {
    by_rows(ys, weight.len(), |own, ys| dispatch(RmsNorm { xs: &xs[own], weight, eps, ys }));
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
            for ((x, w), y) in x.chunks(S::LANES).zip(self.weight.chunks(S::LANES)).zip(y.chunks_mut(S::LANES)) {
                s.store_some(s.mul(s.mul(s.load_some(x), scale), s.load_some(w)), y);
            }
        }
    }
}

pub(crate) fn layer_norm(xs: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    by_rows(out, weight.len(), |own, out| dispatch(LayerNorm { xs: &xs[own], weight, bias, eps, out }));
}

struct LayerNorm<'a> {
    xs: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LayerNorm { xs, weight, bias, eps, out } = self;
        let d = weight.len();
        for (x, out) in xs.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            // Centred first: the variance as a difference of squares would lose a small spread about a large mean.
            let mean = s.splat(sum(s, x) / d as f32);
            for (x, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                s.store_some(s.sub(s.load_some(x), mean), out);
            }
            // What the mean was rounded by is a part of every number, and of a small spread a large one.
            let rest = s.splat(sum(s, out) / d as f32);
            for out in out.chunks_mut(S::LANES) {
                s.store_some(s.sub(s.load_some(out), rest), out);
            }
            let scale = s.splat(rms_scale(s, out, eps));
            for (i, (out, w)) in out.chunks_mut(S::LANES).zip(weight.chunks(S::LANES)).enumerate() {
                let bias =
                    bias.map_or(s.splat(0.0), |bias| s.load_some(&bias[i * S::LANES..d.min((i + 1) * S::LANES)]));
                s.store_some(s.fma(s.mul(s.load_some(out), scale), s.load_some(w), bias), out);
            }
        }
    }
}

pub(crate) fn l2_normalise(xs: &mut [f32], width: usize, eps: f32, scale: f32) {
    dispatch(L2 { xs, width, eps, scale });
}

struct L2<'a> {
    xs: &'a mut [f32],
    width: usize,
    eps: f32,
    scale: f32,
}

impl Kernel for L2<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.xs.chunks_exact_mut(self.width) {
            let scale = s.splat(self.scale / (dot(s, x, x) + self.eps).sqrt());
            for x in x.chunks_mut(S::LANES) {
                s.store_some(s.mul(s.load_some(x), scale), x);
            }
        }
    }
}

pub(crate) fn gated(arguments: Gated, out: &mut [f32], scale_out: Option<&mut [f32]>) {
    let (width, groups, work) = (arguments.weight.len(), arguments.groups, 6 * out.len());
    let rows = PIECE.div_ceil(width);
    let mut scales = scale_out.map(|scales| scales.chunks_mut(rows * groups));
    let pieces = out.chunks_mut(rows * width).enumerate();
    let pieces: Vec<_> = pieces.map(|(i, out)| (i, out, scales.as_mut().and_then(Iterator::next))).collect();
    par::for_each(pieces.into_iter(), work, |(i, out, scale_out)| {
        let own = i * rows * width..i * rows * width + out.len();
        let arguments = Gated { ys: &arguments.ys[own.clone()], zs: &arguments.zs[own], ..arguments };
        dispatch(GatedNorm { arguments, out, scale_out });
    });
}

/// y ⊙ silu(z) of up to eight.
#[inline(always)]
fn gate<S: Simd>(s: S, y: &[f32], z: &[f32]) -> S::V {
    let z = s.load_some(z);
    s.mul(s.load_some(y), s.mul(z, sigmoid(s, z)))
}

struct GatedNorm<'a> {
    arguments: Gated<'a>,
    out: &'a mut [f32],
    scale_out: Option<&'a mut [f32]>,
}

impl Kernel for GatedNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let GatedNorm { arguments: Gated { ys, zs, weight, groups, eps, order }, out, mut scale_out } = self;
        let size = weight.len() / groups;
        for (i, ((y, z), v)) in
            ys.chunks_exact(size).zip(zs.chunks_exact(size)).zip(out.chunks_exact_mut(size)).enumerate()
        {
            match order {
                Order::GateFirst => {
                    for ((y, z), v) in y.chunks(S::LANES).zip(z.chunks(S::LANES)).zip(v.chunks_mut(S::LANES)) {
                        s.store_some(gate(s, y, z), v);
                    }
                }
                Order::NormFirst => v.copy_from_slice(y),
            }
            let scale = rms_scale(s, v, eps);
            let weight = &weight[i % groups * size..][..size];
            for (v, w) in v.chunks_mut(S::LANES).zip(weight.chunks(S::LANES)) {
                s.store_some(s.mul(s.mul(s.load_some(v), s.splat(scale)), s.load_some(w)), v);
            }
            if order == Order::NormFirst {
                for (v, z) in v.chunks_mut(S::LANES).zip(z.chunks(S::LANES)) {
                    s.store_some(gate(s, v, z), v);
                }
            }
            if let Some(scales) = &mut scale_out {
                scales[i] = scale;
            }
        }
    }
}
