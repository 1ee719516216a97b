//! Hyena of order 2 (Poli et al. 2023, arXiv 2302.10866), in a layout of our own (`assets/layouts.md`).
//!
//! ```text
//! [q; k; v] = short convolution of W u + b
//! y_t = q_t ⊙ (Σ_l K[l] ⊙ (k ⊙ v)_{t−l} + β ⊙ (k ⊙ v)_t)          K as long as the text
//! K[l] = MLP(features of l) ⊙ (e^{−l |δ| / (L − 1)} + s)          features: τ = l / (L − 1), and cos fω, −sin fω at ω = 2πl / L
//! out = W_o y + b
//! ```
//!
//! The filter is made by a small network with sines for activations, once, when the model is opened. No state of fixed size says what it
//! needs of the past: it keeps k and v of every token in sight, like attention, and always runs as a convolution.

use std::ops::Range;

use statescope_kernels::attention::PAGE;
use statescope_kernels::conv::causal_conv;
use statescope_kernels::linear::linear;
use statescope_kernels::long_conv;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Lowered, Toeplitz};

use super::slot::KvCache;
use super::{Mixer, StateSlot, columns, products, project};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::HyenaSpec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// The lowest frequency of the features of a position.
const LOWEST_BAND: f64 = 1e-4;

/// Weights of one Hyena. Every channel is a head of its own.
pub struct Hyena {
    spec: HyenaSpec,
    /// `[3C, d]`: q, k, v.
    in_proj: Matrix,
    in_bias: Vec<f32>,
    /// `[3C, K]`.
    short: Vec<f32>,
    short_bias: Vec<f32>,
    /// K with β in the first `[L, C]`.
    filter: Vec<f32>,
    /// β `[C]`.
    skip: Vec<f32>,
    /// `[d, C]`.
    out_proj: Matrix,
    out_bias: Vec<f32>,
}

impl Hyena {
    pub fn load(spec: &HyenaSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let all = 3 * spec.channels;
        let function = scope.scope("filter_fn");
        let skip = function.vector("bias", spec.channels)?;
        let mut filter = filter(spec, &function)?;
        filter.iter_mut().zip(&skip).for_each(|(tap, skip)| *tap += skip);
        Ok(Self {
            in_proj: scope.matrix("in_proj.weight", all, hidden_size)?,
            in_bias: scope.vector("in_proj.bias", all)?,
            short: scope.tensor("short_filter.weight", &[all, 1, spec.short_taps])?,
            short_bias: scope.vector("short_filter.bias", all)?,
            filter,
            skip,
            out_proj: scope.matrix("out_proj.weight", hidden_size, spec.channels)?,
            out_bias: scope.vector("out_proj.bias", hidden_size)?,
            spec: spec.clone(),
        })
    }
}

/// K `[L, C]`.
fn filter(spec: &HyenaSpec, scope: &Scope<'_>) -> Result<Vec<f32>, LoadError> {
    let (width, last) = (spec.width, 2 * (spec.inner_layers + 1));
    let layer = |index: usize| scope.scope(&format!("implicit_filter.{index}"));
    // One frequency a unit for all layers.
    let frequencies = scope.tensor("implicit_filter.1.freq", &[1, width])?;
    let mut hidden = features(spec);
    for index in (0..last).step_by(2) {
        let inputs = if index == 0 { spec.features } else { width };
        let matrix = layer(index).matrix("weight", width, inputs)?;
        hidden = project(&matrix, Some(&layer(index).vector("bias", width)?), &hidden);
        for row in hidden.chunks_exact_mut(width) {
            row.iter_mut().zip(&frequencies).for_each(|(x, frequency)| *x = (*x * frequency).sin());
        }
    }
    let mut filter = project(&layer(last).matrix("weight", spec.channels, width)?, None, &hidden);
    let rates = scope.tensor("modulation.deltas", &[1, 1, spec.channels])?;
    for (row, time) in filter.chunks_exact_mut(spec.channels).zip(times(spec.length)) {
        row.iter_mut().zip(&rates).for_each(|(k, rate)| *k *= (-(time as f32) * rate.abs()).exp() + spec.shift);
    }
    Ok(filter)
}

/// τ of every position, from 0 to 1.
fn times(length: usize) -> impl Iterator<Item = f64> {
    let last = (length - 1).max(1) as f64;
    (0..length).map(move |position| position as f64 / last)
}

/// `[L, F]`.
fn features(spec: &HyenaSpec) -> Vec<f32> {
    let bands = (spec.features - 1) / 2;
    let spacing = (bands as f64 - 1.0 - LOWEST_BAND) / (bands as f64 - 1.0).max(1.0);
    let mut features = Vec::with_capacity(spec.length * spec.features);
    for (position, time) in times(spec.length).enumerate() {
        let angle = std::f64::consts::TAU * position as f64 / spec.length as f64;
        let phase = |band: usize| angle * (LOWEST_BAND + band as f64 * spacing);
        features.push(time as f32);
        features.extend((0..bands).map(|band| phase(band).cos() as f32));
        features.extend((0..bands).map(|band| -phase(band).sin() as f32));
    }
    features
}

impl Mixer for Hyena {
    fn geometry(&self) -> Geometry {
        let channels = self.spec.channels;
        Geometry {
            kind: MixerKind::Hyena,
            heads: channels,
            head_dim: 1,
            state_dim: 1,
            groups: channels,
            rank: 1,
            decay_dim: 0,
            conv_taps: 0,
            gated: false,
            window: Some(self.spec.length),
            state_bytes: 3 * channels * (self.spec.short_taps - 1) * size_of::<f32>(),
            kv_bytes_per_token: 2 * channels * size_of::<f32>(),
        }
    }

    fn slot(&self) -> StateSlot {
        StateSlot {
            conv: vec![0.0; 3 * self.spec.channels * (self.spec.short_taps - 1)],
            kv: KvCache::new(self.spec.channels, self.spec.channels),
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let channels = self.spec.channels;
        let projected = project(&self.in_proj, Some(&self.in_bias), xs);
        let mut mixed = vec![0.0; projected.len()];
        causal_conv(&projected, &self.short, Some(&self.short_bias), &mut slot.conv, &mut mixed);
        let [mut q, mut k, mut v] = [0, 1, 2].map(|part| columns(&mixed, 3 * channels, part * channels, channels));
        hooks.pass(Point::Query, &mut q);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        let before = slot.kv.len();
        slot.kv.append(&k, &v);
        // Full pages, the last perhaps with room: what is given up is empty.
        let written: Vec<f32> =
            slot.kv.key_pages().iter().zip(slot.kv.value_pages()).flat_map(|(k, v)| products(k, v)).collect();
        let unused = slot.kv.len().next_multiple_of(PAGE) - slot.kv.len();
        let mut y = vec![0.0; k.len()];
        long_conv(&written[..written.len() - unused * channels], &self.filter, channels, &mut y);
        slot.kv.forget(0..(before + k.len() / channels).saturating_sub(self.spec.length - 1));
        y.iter_mut().zip(&q).for_each(|(y, q)| *y *= q);
        hooks.pass(Point::Core, &mut y);
        linear(&self.out_proj, Some(&self.out_bias), &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let tokens = tape.positions().len();
        let column = self.filter[head..].iter().step_by(self.spec.channels).take(tokens.max(1));
        let mut taps: Vec<f32> = column.copied().collect();
        taps.reverse();
        let (pre, post) = (tape.strided(Point::Key, head, 1), tape.strided(Point::Query, head, 1));
        draw(&Lowered::Toeplitz(Toeplitz { tokens, taps: &taps, pre, post }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let row = |point| tape.row(point, position);
        let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
        match point {
            Point::Write => out.extend(heads.map(|c| (k[c] * v[c]).abs())),
            Point::Read => {
                let (Some(q), Some(y)) = (row(Point::Query), row(Point::Core)) else { return false };
                out.extend(heads.map(|c| (y[c] - q[c] * self.skip[c] * k[c] * v[c]).abs()));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, _tape: &LayerTape, _positions: Range<usize>, _state: &mut [f32]) {}
}
