//! Mamba-1 on the GPU: see [`crate::mixer::mamba1`].

use statescope_kernels::cuda::{
    At, Buffer, DbcNorms, DeviceMatrix, Element, Gemm, Gpu, Input, Linear, Norm as NormRows, Result, Scan, ScanProbes,
    ScanStep, TokenKind, TokenLayer, TokenShape, conv, conv_product, conv_product_pays,
};

use super::memory::Slot;
use super::record::{Taken, Written};
use super::recurrent::{Made, Recurrent};
use super::upload::{Output, Upload};
use super::{Added, Rows, Token, TokenPart, all};
use crate::mixer::mamba1::Mamba1 as Host;
use crate::protocol::Point;

/// States of a channel that the kernels hold.
const MOST_STATES: usize = 64;
/// Taps of a convolution that the kernels hold.
pub(super) const MOST_TAPS: usize = 4;

/// Weights, and room for what one token makes.
pub struct Mamba1 {
    channels: usize,
    state_dim: usize,
    rank: usize,
    common: Recurrent,
    x_proj: DeviceMatrix,
    /// Where one token can run in one launch: `x_proj` turned.
    x_turned: Option<DeviceMatrix>,
    dt_proj: DeviceMatrix,
    /// ε and the scales of δ, B and C.
    norms: Option<(f32, [Buffer<f32>; 3])>,
    /// One token's δ, B and C before their norms `[R + 2N]`; B and C `[N]`.
    dbc: Buffer<f32>,
    key: Buffer<f32>,
    query: Buffer<f32>,
}

impl Mamba1 {
    /// None for channels in heads (Zamba), and for states and convolutions beyond what the kernels hold.
    pub(crate) fn upload(host: &Host, to: &Upload<'_>) -> Result<Option<Self>> {
        let spec = &host.spec;
        let (e, n, r) = (spec.channels, spec.state_dim, spec.dt_rank);
        let sizes = n <= MOST_STATES && spec.conv_taps <= MOST_TAPS;
        let ([head], true, None) = (&host.heads[..], sizes, &host.out_norm) else {
            return Ok(None);
        };
        let norms = match &host.dbc_norm {
            None => None,
            Some(norms) => {
                let [dt, b, c] = &norms.scales;
                Some((norms.eps, [to.vector(dt)?, to.vector(b)?, to.vector(c)?]))
            }
        };
        let shape = TokenShape { width: host.in_proj.cols(), inner: e, state_dim: n, rank: r, ..TokenShape::default() };
        let turned = norms.is_none() && shape.fits(to.gpu, host.in_proj.dtype(), true);
        Ok(Some(Self {
            channels: e,
            state_dim: n,
            rank: r,
            common: Recurrent {
                in_proj: to.matrix(&host.in_proj)?,
                in_bias: to.optional(host.in_bias.as_deref())?,
                conv_weight: to.vector(&host.conv_weight)?,
                conv_bias: to.optional(host.conv_bias.as_deref())?,
                dt_bias: to.vector(&head.dt_bias)?,
                a: to.vector(&host.a)?,
                d: to.vector(&host.d)?,
                output: Output::upload(to, &host.out_proj, host.out_bias.as_deref())?,
                made: Made::room(to, [2 * e, e, e, e])?,
            },
            x_proj: to.matrix(&head.x_proj)?,
            x_turned: turned.then(|| to.matrix(&head.x_proj.transposed())).transpose()?,
            dt_proj: to.matrix(&head.dt_proj)?,
            norms,
            dbc: to.room(r + 2 * n)?,
            key: to.room(n)?,
            query: to.room(n)?,
        }))
    }

    pub(super) fn slot(&self, gpu: &Gpu) -> Result<Slot> {
        self.common.slot(gpu, self.channels * self.state_dim)
    }

    pub(super) fn step(&self, token: &Token<'_>, input: Input<'_>, slot: &Slot, added: Added<'_>) -> Result<()> {
        let (gpu, common, e) = (token.gpu, &self.common, self.channels);
        let made = &common.made;
        let projection = Linear::new(&common.in_proj, input, Some(all(&made.projected)));
        let convolved = Some(common.convolved(0, slot));
        Linear { bias: common.in_bias.as_ref(), convolved, ..projection }.run(gpu)?;
        Linear::new(&self.x_proj, Input::Plain(all(&made.activated)), Some(all(&self.dbc))).run(gpu)?;
        ScanStep {
            dt_weight: &self.dt_proj,
            dt_bias: &common.dt_bias,
            dbc: &self.dbc,
            norms: self.norms.as_ref().map(|(eps, scales)| DbcNorms { scales: scales.each_ref(), eps: *eps }),
            a: &common.a,
            d: &common.d,
            x: all(&made.activated),
            gate: At(&made.projected, e),
            state: &slot.state,
            delta: all(&made.delta),
            key: all(&self.key),
            query: all(&self.query),
            core: all(&made.core),
            gated: all(&made.gated),
            state_norm: None,
        }
        .run(gpu)?;
        common.output.step(gpu, Input::Plain(all(&made.gated)), added)
    }

    pub(super) fn token_layer(&self, part: &TokenPart<'_>) -> Option<(TokenShape, TokenLayer)> {
        let kind = TokenKind::Scan {
            x_turned: self.x_turned.clone()?,
            dt_proj: self.dt_proj.clone(),
            dbc: self.dbc.clone(),
            key: self.key.clone(),
            query: self.query.clone(),
        };
        let (shape, layer) = self.common.token_layer(part, self.state_dim, kind)?;
        Some((TokenShape { rank: self.rank, ..shape }, layer))
    }

    pub(super) fn quantities(&self) -> Vec<(Point, Taken<'_, f32>)> {
        let (made, e, n) = (&self.common.made, self.channels, self.state_dim);
        let row = |from, width| Taken::Rows { from, stride: width, width };
        vec![
            (Point::ConvIn, row(all(&made.projected), e)),
            (Point::Gate, row(At(&made.projected, e), e)),
            (Point::Conv, row(all(&made.convolved), e)),
            (Point::Value, row(all(&made.activated), e)),
            (Point::Key, row(all(&self.key), n)),
            (Point::Query, row(all(&self.query), n)),
            (Point::Delta, row(all(&made.delta), e)),
            (Point::Core, row(all(&made.core), e)),
            (Point::Out, row(all(&self.common.output.out), self.common.output.out.len())),
        ]
    }

    pub(super) fn strength(&self) -> Taken<'_, f32> {
        self.written(all(&self.common.made.delta), (all(&self.key), self.state_dim), all(&self.common.made.activated))
    }

    fn written<'a, T: Element>(
        &self,
        delta: At<'a>,
        (keys, keys_stride): (At<'a, T>, usize),
        x: At<'a, T>,
    ) -> Taken<'a, T> {
        Taken::Write(Written {
            heads: self.channels,
            delta: Some(delta),
            keys,
            keys_stride,
            groups: 1,
            key_dim: self.state_dim,
            values: x,
            values_stride: self.channels,
            value_groups: self.channels,
            value_dim: 1,
        })
    }

    pub(super) fn rows<T: Element>(
        &self,
        rows: &mut Rows<'_, T>,
        normed: &Buffer<T>,
        slot: &Slot,
        added: Added<'_>,
    ) -> Result<()> {
        let (gpu, count, e, n, r) = (rows.gpu, rows.count, self.channels, self.state_dim, self.rank);
        let common = &self.common;
        let dbc_stride = r + 2 * n;
        let projected = rows.own("projected", 2 * e)?;
        let (activated, dbc) = (rows.own("activated", e)?, rows.own("dbc", dbc_stride)?);
        let (steps, gated) = (rows.own("steps", e)?, rows.own("gated", e)?);
        let gemm = Gemm::new(count, &common.in_proj, all(normed));
        Gemm { bias: common.in_bias.as_ref(), y: Some(&projected), ..gemm }.run(gpu)?;

        let history = rows.wide.get(gpu, "history", slot.conv.len())?;
        let convolution = |silu| common.conv(slot, &history, silu);
        if rows.records_all() {
            let convolved = rows.own("convolved", e)?;
            conv(gpu, convolution(false), all(&projected), 2 * e, count, &convolved)?;
            rows.show(Point::ConvIn, Taken::Rows { from: all(&projected), stride: 2 * e, width: e })?;
            rows.show(Point::Gate, Taken::Rows { from: At(&projected, e), stride: 2 * e, width: e })?;
            rows.show(Point::Conv, Taken::Rows { from: all(&convolved), stride: e, width: e })?;
        }
        if conv_product_pays(gpu, count) {
            let product = (&self.x_proj, &dbc);
            conv_product(gpu, convolution(true), all(&projected), 2 * e, count, &activated, product)?;
        } else {
            conv(gpu, convolution(true), all(&projected), 2 * e, count, &activated)?;
            Gemm { y: Some(&dbc), ..Gemm::new(count, &self.x_proj, all(&activated)) }.run(gpu)?;
        }
        gpu.copy(&history, &slot.conv)?;
        if let Some((eps, scales)) = &self.norms {
            for (scale, from) in scales.iter().zip([0, r, r + n]) {
                let norm = NormRows::rms(count, At(&dbc, from), scale, *eps, At(&dbc, from));
                NormRows { x_stride: dbc_stride, y_stride: dbc_stride, ..norm }.run(gpu)?;
            }
        }
        let gemm = Gemm { x_stride: dbc_stride, ..Gemm::new(count, &self.dt_proj, all(&dbc)) };
        Gemm { y: Some(&steps), ..gemm }.run(gpu)?;
        let looked_at = rows.depth != crate::hooks::Depth::Nothing;
        let delta = rows.wide("delta", if looked_at { e } else { 0 })?;
        let core = rows.own("core", if rows.records_all() { e } else { 0 })?;
        Scan {
            tokens: count,
            channels: e,
            groups: 1,
            delta: all(&steps),
            delta_stride: e,
            delta_bias: Some(&common.dt_bias),
            softplus: true,
            a: &common.a,
            b: At(&dbc, r),
            c: At(&dbc, r + n),
            bc_stride: dbc_stride,
            x: all(&activated),
            x_stride: e,
            d: Some(&common.d),
            gate: Some((At(&projected, e), 2 * e)),
            state: &slot.state,
            y: &gated,
            core: rows.records_all().then_some(&core),
            probes: ScanProbes { delta: looked_at.then_some(&delta), state_norm: None },
        }
        .run(gpu)?;
        rows.show_strength(self.written(all(&delta), (At(&dbc, r), dbc_stride), all(&activated)))?;
        rows.show(Point::Value, Taken::Rows { from: all(&activated), stride: e, width: e })?;
        rows.show(Point::Key, Taken::Rows { from: At(&dbc, r), stride: dbc_stride, width: n })?;
        rows.show(Point::Query, Taken::Rows { from: At(&dbc, r + n), stride: dbc_stride, width: n })?;
        rows.show(Point::Delta, Taken::Rows { from: all(&delta), stride: e, width: e })?;
        rows.show(Point::Core, Taken::Rows { from: all(&core), stride: e, width: e })?;
        common.output.rows(rows, &gated, added)
    }
}
