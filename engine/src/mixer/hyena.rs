//! Hyena of any order O (Poli et al. 2023, arXiv 2302.10866), in a layout of our own (`assets/layouts.md`).
//!
//! ```text
//! [q; x_1 … x_{O−2}; k; v] = short convolution of W u + b
//! z_1 = k ⊙ v          w_i = K_i ∗ z_i + β_i ⊙ z_i          z_{i+1} = x_{O−1−i} ⊙ w_i          y = q ⊙ w_{O−1}          K as long as the text
//! K[l] = MLP(features of l) ⊙ (e^{−l |δ| / (L − 1)} + s)          features: τ = l / (L − 1), and cos fω, −sin fω at ω = 2πl / L
//! out = W_o y + b
//! ```
//!
//! Of order 2 there is one filter, y = q ⊙ (K ∗ (k ⊙ v)), and the matrix of a channel is a band between two gates. Of a higher order it is a product
//! of such, diag(q) T_{O−1} diag(x_1) T_{O−2} … diag(x_{O−2}) T_1 diag(k), drawn row by row from the left.
//!
//! The filters are made by a small network with sines for activations, once, when the model is opened. No state of fixed size says what they
//! need of the past: a mixer keeps k, v and the further z of every token in sight, like attention, and always runs as a convolution.

use std::ops::Range;

use statescope_kernels::attention::PAGE;
use statescope_kernels::conv::causal_conv;
use statescope_kernels::linear::linear;
use statescope_kernels::long_conv;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Lowered, Toeplitz};
use statescope_kernels::room::Room;

use super::slot::KvCache;
use super::{Mixer, StateSlot, columns, constant, products, project};
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
    /// `[(O + 1) C, d]`: q, the gates between the filters, the last met first, k, v.
    in_proj: Matrix,
    in_bias: Vec<f32>,
    /// `[(O + 1) C, K]`.
    short: Vec<f32>,
    short_bias: Vec<f32>,
    /// K with β in the first `[L, C]`, of every filter in the order in which they are met.
    filters: Vec<Vec<f32>>,
    /// β of the first `[C]`.
    skip: Vec<f32>,
    /// `[d, C]`.
    out_proj: Matrix,
    out_bias: Vec<f32>,
}

impl Hyena {
    pub fn load(spec: &HyenaSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (all, count) = ((spec.order + 1) * spec.channels, spec.filters());
        let function = scope.scope("filter_fn");
        // `[C, O − 1]`.
        let skips = function.vector("bias", count * spec.channels)?;
        let mut taps = filter(spec, &function)?;
        taps.iter_mut().zip(&skips).for_each(|(tap, skip)| *tap += skip);
        let of = |index: usize, all: &[f32]| all[index..].iter().step_by(count).copied().collect::<Vec<f32>>();
        Ok(Self {
            in_proj: scope.matrix("in_proj.weight", all, hidden_size)?,
            in_bias: scope.vector("in_proj.bias", all)?,
            short: scope.tensor("short_filter.weight", &[all, 1, spec.short_taps])?,
            short_bias: scope.vector("short_filter.bias", all)?,
            filters: (0..count).map(|index| of(index, &taps)).collect(),
            skip: of(0, &skips),
            out_proj: scope.matrix("out_proj.weight", hidden_size, spec.channels)?,
            out_bias: scope.vector("out_proj.bias", hidden_size)?,
            spec: spec.clone(),
        })
    }

    /// What a filter makes of new tokens z `[T, C]` and of those before them in the cache.
    fn filtered(&self, filter: usize, z: &[f32], before: &KvCache) -> Vec<f32> {
        let (channels, count) = (self.spec.channels, self.spec.filters());
        let mut all = Vec::with_capacity(before.len() * channels + z.len());
        for (keys, values) in before.key_pages().into_iter().zip(before.value_pages()) {
            let part = columns(keys, count * channels, filter * channels, channels);
            all.extend(if filter == 0 { products(&part, values) } else { part.to_vec() });
        }
        // Full pages, the last perhaps with room: what is given up is empty.
        let unused = before.len().next_multiple_of(PAGE) - before.len();
        all.truncate(all.len() - unused * channels);
        all.extend_from_slice(z);
        let mut y = vec![0.0; z.len()];
        long_conv(&all, &self.filters[filter], channels, &mut y);
        y
    }
}

/// Columns `[T, C]` of several as one `[T, C, count]`.
fn interleaved(parts: &[Room]) -> Vec<f32> {
    let len = parts.first().map_or(0, |part| part.len());
    (0..len).flat_map(|i| parts.iter().map(move |part| part[i])).collect()
}

/// K of all filters `[L, C, O − 1]`.
fn filter(spec: &HyenaSpec, scope: &Scope<'_>) -> Result<Vec<f32>, LoadError> {
    let (width, last, all) = (spec.width, 2 * (spec.inner_layers + 1), spec.channels * spec.filters());
    let layer = |index: usize| scope.scope(&format!("implicit_filter.{index}"));
    // One frequency a unit for all layers.
    let frequencies = scope.tensor("implicit_filter.1.freq", &[1, width])?;
    let mut hidden = Vec::new();
    for index in (0..last).step_by(2) {
        let inputs = if index == 0 { spec.features } else { width };
        let matrix = layer(index).matrix("weight", width, inputs)?;
        if index == 0 {
            // Only now, when a tensor has vouched for their number.
            hidden = features(spec);
        }
        hidden = project(&matrix, Some(&layer(index).vector("bias", width)?), &hidden);
        for row in hidden.chunks_exact_mut(width) {
            row.iter_mut().zip(&frequencies).for_each(|(x, frequency)| *x = (*x * frequency).sin());
        }
    }
    let mut filter = project(&layer(last).matrix("weight", all, width)?, None, &hidden);
    let rates = scope.tensor("modulation.deltas", &[1, 1, all])?;
    for (row, time) in filter.chunks_exact_mut(all).zip(times(spec.length)) {
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
        let HyenaSpec { channels, order, length, short_taps, .. } = self.spec;
        Geometry {
            kind: MixerKind::Hyena,
            heads: channels,
            head_dim: 1,
            state_dim: 1,
            groups: channels,
            rank: self.spec.filters(),
            decay_dim: 0,
            conv_taps: 0,
            gated: false,
            window: Some(self.spec.filters() * (length - 1) + 1),
            state_bytes: (order + 1) * channels * (short_taps - 1) * size_of::<f32>(),
            kv_bytes_per_token: order * channels * size_of::<f32>(),
        }
    }

    fn slot(&self) -> StateSlot {
        let HyenaSpec { channels, order, short_taps, .. } = self.spec;
        StateSlot {
            conv: vec![0.0; (order + 1) * channels * (short_taps - 1)],
            // k and the further z as keys.
            kv: KvCache::new(1, self.spec.filters() * channels, channels),
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let HyenaSpec { channels, order, .. } = self.spec;
        let projected = project(&self.in_proj, Some(&self.in_bias), xs);
        let mut mixed = vec![0.0; projected.len()];
        causal_conv(&projected, &self.short, Some(&self.short_bias), &mut slot.conv, &mut mixed);
        let part = |part: usize| columns(&mixed, (order + 1) * channels, part * channels, channels);
        let [mut q, mut k, mut v] = [0, order - 1, order].map(part);
        // Those met first come first.
        let mut inner = interleaved(&(1..order - 1).rev().map(part).collect::<Vec<_>>());
        hooks.pass(Point::Query, &mut q);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        if order > 2 {
            hooks.pass(Point::InnerGate, &mut inner);
        }
        let mut written = vec![products(&k, &v)];
        let mut y = self.filtered(0, &written[0], &slot.kv);
        for filter in 1..self.spec.filters() {
            let gates: Vec<f32> = inner[filter - 1..].iter().step_by(order - 2).copied().collect();
            written.push(products(&y, &gates));
            y = self.filtered(filter, &written[filter], &slot.kv);
        }
        written[0] = k.to_vec();
        let keys: Vec<f32> = (0..v.len() / channels)
            .flat_map(|t| written.iter().flat_map(move |part| &part[t * channels..(t + 1) * channels]).copied())
            .collect();
        slot.kv.append(&keys, &v);
        slot.kv.forget(0..slot.kv.len().saturating_sub(self.spec.length - 1));
        y.iter_mut().zip(&q).for_each(|(y, q)| *y *= q);
        hooks.pass(Point::Core, &mut y);
        linear(&self.out_proj, Some(&self.out_bias), &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (tokens, count) = (tape.positions().len(), self.spec.filters());
        let band = |filter: &Vec<f32>| {
            let column = filter[head..].iter().step_by(self.spec.channels).take(tokens.max(1));
            let mut taps: Vec<f32> = column.copied().collect();
            taps.reverse();
            taps
        };
        let taps: Vec<Vec<f32>> = self.filters.iter().map(band).collect();
        // The filter met last comes first.
        let factors: Vec<Toeplitz<'_>> = (0..count)
            .rev()
            .map(|filter| {
                let pre = match filter {
                    0 => tape.strided(Point::Key, head, 1),
                    _ => tape.strided(Point::InnerGate, head * (count - 1) + filter - 1, 1),
                };
                let last = filter == count - 1;
                let post = if last { tape.strided(Point::Query, head, 1) } else { constant(&[1.0]) };
                Toeplitz { tokens, taps: &taps[filter], pre, post }
            })
            .collect();
        match factors.as_slice() {
            [band] => draw(&Lowered::Toeplitz(*band)),
            all => draw(&Lowered::Product(all)),
        }
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let row = |point| tape.row(point, position);
        let (Some(k), Some(v)) = (row(Point::Key), row(Point::Value)) else { return false };
        match point {
            Point::Write => out.extend(heads.map(|c| (k[c] * v[c]).abs())),
            Point::Read => {
                let (Some(q), Some(y)) = (row(Point::Query), row(Point::Core)) else { return false };
                // What the last of several filters reads of the token itself is not recorded: there it is left in.
                if self.spec.order > 2 {
                    out.extend(heads.map(|c| y[c].abs()));
                    return true;
                }
                out.extend(heads.map(|c| (y[c] - q[c] * self.skip[c] * k[c] * v[c]).abs()));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, _tape: &LayerTape, _positions: Range<usize>, _state: &mut [f32]) {}
}
