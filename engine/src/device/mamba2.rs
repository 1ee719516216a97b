//! Mamba-2 on the GPU: see [`crate::mixer::mamba2`].

use statescope_kernels::Activation;
use statescope_kernels::cuda::{
    At, Buffer, Element, Entry, GateFunction, GateRows, Gating, Gemm, Gpu, Input, Linear, Norm as NormRows, Result,
    Ssd, SsdStep, TokenKind, TokenLayer, TokenShape, conv,
};

use super::mamba1::MOST_TAPS;
use super::memory::Slot;
use super::record::{Taken, Written};
use super::recurrent::{Made, Recurrent};
use super::upload::{Output, Upload};
use super::{Added, Rows, Token, TokenPart, all};
use crate::hooks::Depth;
use crate::mixer::mamba2::Mamba2 as Host;
use crate::model::spec::{GateNorm, Mamba2Spec};
use crate::protocol::Point;

/// States of a channel, and groups, that the kernels hold.
const MOST_STATES: usize = 256;

/// Weights, and room for what one token makes.
pub struct Mamba2 {
    spec: Mamba2Spec,
    common: Recurrent,
    /// `[2E + 2GN + H]`: factors on z, x, B, C and dt.
    multipliers: Option<Buffer<f32>>,
    /// `[E]`; empty without a norm.
    norm: Buffer<f32>,
}

/// (E, 2GN + E, GN).
fn widths(spec: &Mamba2Spec) -> (usize, usize, usize) {
    let (inner, keys) = (spec.heads * spec.head_dim, spec.groups * spec.state_dim);
    (inner, inner + 2 * keys, keys)
}

impl Mamba2 {
    /// None for states, groups and convolutions beyond what the kernels hold.
    pub(crate) fn upload(host: &Host, to: &Upload<'_>) -> Result<Option<Self>> {
        let spec = &host.spec;
        let held = spec.state_dim <= MOST_STATES && spec.groups <= MOST_STATES && spec.conv_taps <= MOST_TAPS;
        if !held {
            return Ok(None);
        }
        let (inner, conv_dim, keys) = widths(spec);
        let factors = spec.multipliers.iter().zip([inner, inner, keys, keys, spec.heads]);
        let factors: Vec<f32> = factors.flat_map(|(factor, width)| std::iter::repeat_n(*factor, width)).collect();
        let multipliers = (spec.multipliers != [1.0; 5]).then_some(&factors[..]);
        Ok(Some(Self {
            common: Recurrent {
                in_proj: to.matrix(&host.in_proj)?,
                in_bias: to.optional(host.in_bias.as_deref())?,
                conv_weight: to.vector(&host.conv_weight)?,
                conv_bias: to.optional(host.conv_bias.as_deref())?,
                dt_bias: to.vector(&host.dt_bias)?,
                a: to.vector(&host.a)?,
                d: to.vector(&host.d)?,
                output: Output::upload(to, &host.out_proj, host.out_bias.as_deref())?,
                made: Made::room(to, [host.in_proj.rows(), conv_dim, spec.heads, inner])?,
            },
            multipliers: to.optional(multipliers)?,
            norm: to.vector(&host.norm)?,
            spec: spec.clone(),
        }))
    }

    pub(super) fn slot(&self, gpu: &Gpu) -> Result<Slot> {
        self.common.slot(gpu, widths(&self.spec).0 * self.spec.state_dim)
    }

    pub(super) fn step(&self, token: &Token<'_>, input: Input<'_>, slot: &Slot, added: Added<'_>) -> Result<()> {
        let (gpu, common, spec) = (token.gpu, &self.common, &self.spec);
        let (made, (inner, _, keys)) = (&common.made, widths(spec));
        let (low, high) = spec.delta_limit;
        Linear {
            bias: common.in_bias.as_ref(),
            row_scale: self.multipliers.as_ref(),
            convolved: Some(common.convolved(inner, slot)),
            delta: Some((&common.dt_bias, all(&made.delta), low, high)),
            ..Linear::new(&common.in_proj, input, Some(all(&made.projected)))
        }
        .run(gpu)?;
        SsdStep {
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.state_dim,
            groups: spec.groups,
            delta: all(&made.delta),
            a: &common.a,
            d: &common.d,
            x: all(&made.activated),
            key: At(&made.activated, inner),
            query: At(&made.activated, inner + keys),
            state: &slot.state,
            core: all(&made.core),
            gate: Some((all(&made.projected), all(&made.gated))),
        }
        .run(gpu)?;
        let (weight, groups, eps) = (&self.norm, spec.groups, spec.norm_eps);
        let input = match spec.norm {
            GateNorm::GateFirst => Input::Rms { x: all(&made.gated), weight, groups, eps },
            GateNorm::NormFirst => {
                Input::RmsGate { x: all(&made.core), gate: all(&made.projected), weight, groups, eps }
            }
            GateNorm::GateOnly => Input::Plain(all(&made.gated)),
        };
        common.output.step(gpu, input, added)
    }

    pub(super) fn token_layer(&self, part: &TokenPart<'_>) -> Option<(TokenShape, TokenLayer)> {
        let spec = &self.spec;
        let norm = match spec.norm {
            GateNorm::GateFirst => Some(self.norm.clone()),
            GateNorm::NormFirst => return None,
            GateNorm::GateOnly => None,
        };
        if spec.groups != 1 || self.common.d.len() != spec.heads || self.multipliers.is_some() {
            return None;
        }
        let (shape, layer) = self.common.token_layer(part, spec.state_dim, TokenKind::Ssd { norm })?;
        let (heads, gated_eps, delta_limit) = (spec.heads, spec.norm_eps, spec.delta_limit);
        Some((TokenShape { heads, gated_eps, delta_limit, ..shape }, layer))
    }

    pub(super) fn quantities(&self) -> Vec<(Point, Taken<'_, f32>)> {
        let (inner, _, keys) = widths(&self.spec);
        let row = |from, width| Taken::Rows { from, stride: width, width };
        let made = &self.common.made;
        vec![
            (Point::Gate, row(all(&made.projected), inner)),
            (Point::ConvIn, row(At(&made.projected, inner), inner)),
            (Point::Conv, row(all(&made.convolved), inner)),
            (Point::Value, row(all(&made.activated), inner)),
            (Point::Key, row(At(&made.activated, inner), keys)),
            (Point::Query, row(At(&made.activated, inner + keys), keys)),
            (Point::Delta, row(all(&made.delta), self.spec.heads)),
            (Point::Core, row(all(&made.core), inner)),
            (Point::Out, row(all(&self.common.output.out), self.common.output.out.len())),
        ]
    }

    pub(super) fn strength(&self) -> Taken<'_, f32> {
        self.written(all(&self.common.made.delta), &self.common.made.activated)
    }

    /// `activated` `[T, E + 2GN]`.
    fn written<'a, T: Element>(&self, delta: At<'a>, activated: &'a Buffer<T>) -> Taken<'a, T> {
        let (inner, conv_dim, _) = widths(&self.spec);
        Taken::Write(Written {
            heads: self.spec.heads,
            delta: Some(delta),
            keys: At(activated, inner),
            keys_stride: conv_dim,
            groups: self.spec.groups,
            key_dim: self.spec.state_dim,
            values: all(activated),
            values_stride: conv_dim,
            value_groups: self.spec.heads,
            value_dim: self.spec.head_dim,
        })
    }

    pub(super) fn rows<T: Element>(
        &self,
        rows: &mut Rows<'_, T>,
        normed: &Buffer<T>,
        slot: &Slot,
        added: Added<'_>,
    ) -> Result<()> {
        let (gpu, count, spec) = (rows.gpu, rows.count, &self.spec);
        let ((inner, conv_dim, keys), stride) = (widths(spec), self.common.in_proj.rows());
        let common = &self.common;
        let (projected, activated) = (rows.own("projected", stride)?, rows.own("activated", conv_dim)?);
        let (core, gated) = (rows.own("core", inner)?, rows.own("gated", inner)?);
        let gemm = Gemm::new(count, &common.in_proj, all(normed));
        Gemm { bias: common.in_bias.as_ref(), row_scale: self.multipliers.as_ref(), y: Some(&projected), ..gemm }
            .run(gpu)?;

        let history = rows.wide.get(gpu, "history", slot.conv.len())?;
        let convolution = |silu| common.conv(slot, &history, silu);
        let row = |from, width| Taken::Rows { from, stride, width };
        if rows.records_all() {
            let convolved = rows.own("convolved", conv_dim)?;
            conv(gpu, convolution(false), At(&projected, inner), stride, count, &convolved)?;
            rows.show(Point::Gate, row(all(&projected), inner))?;
            rows.show(Point::ConvIn, row(At(&projected, inner), inner))?;
            rows.show(Point::Conv, Taken::Rows { from: all(&convolved), stride: conv_dim, width: inner })?;
        }
        conv(gpu, convolution(true), At(&projected, inner), stride, count, &activated)?;
        gpu.copy(&history, &slot.conv)?;

        let ssd = Ssd {
            tokens: count,
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.state_dim,
            groups: spec.groups,
            delta: At(&projected, inner + conv_dim),
            delta_stride: stride,
            delta_bias: Some(&common.dt_bias),
            softplus: true,
            delta_limit: spec.delta_limit,
            a: &common.a,
            b: At(&activated, inner),
            c: At(&activated, inner + keys),
            bc_stride: conv_dim,
            x: all(&activated),
            x_stride: conv_dim,
            d: Some(&common.d),
            state: &slot.state,
            y: &core,
        };
        ssd.run(gpu, &rows.wide.get(gpu, "segments", ssd.scratch_len(gpu))?)?;
        if rows.depth != Depth::Nothing {
            let (low, high) = spec.delta_limit;
            let from = At(&projected, inner + conv_dim);
            let steps = Taken::Steps { from, stride, bias: &common.dt_bias, low, high };
            let part = |from, width| Taken::Rows { from, stride: conv_dim, width };
            let delta = rows.wide("delta", spec.heads)?;
            if rows.depth == Depth::Strength {
                Entry::new(steps, count, all(&delta)).run(gpu, count)?;
            }
            rows.show_strength(self.written(all(&delta), &activated))?;
            rows.show(Point::Value, part(all(&activated), inner))?;
            rows.show(Point::Key, part(At(&activated, inner), keys))?;
            rows.show(Point::Query, part(At(&activated, inner + keys), keys))?;
            rows.show(Point::Delta, steps)?;
            rows.show(Point::Core, Taken::Rows { from: all(&core), stride: inner, width: inner })?;
        }
        let norm = NormRows {
            groups: spec.groups,
            ..NormRows::rms(count, all(&core), &self.norm, spec.norm_eps, all(&gated))
        };
        let gate = (all(&projected), stride);
        match spec.norm {
            GateNorm::GateFirst => NormRows { gating: Gating::Before(gate.0, gate.1), ..norm }.run(gpu)?,
            GateNorm::NormFirst => NormRows { gating: Gating::After(gate.0, gate.1), ..norm }.run(gpu)?,
            GateNorm::GateOnly => GateRows {
                tokens: count,
                width: inner,
                x: all(&core),
                x_stride: inner,
                gate: Some(gate),
                function: GateFunction::Activation(Activation::Silu),
                gate_scale: 1.0,
                y: &gated,
            }
            .run(gpu)?,
        }
        common.output.rows(rows, &gated, added)
    }
}
