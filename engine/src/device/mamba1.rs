//! Mamba-1 on the GPU: see [`crate::mixer::mamba1`].

use statescope_kernels::cuda::{
    At, Buffer, Conv, Convolved, DbcNorms, DeviceMatrix, Element, Gemm, Gpu, Input, Linear, Norm as NormRows, Result,
    Scan, ScanProbes, ScanStep, TokenKind, TokenLayer, TokenShape, conv, conv_product, conv_product_pays,
};

use super::memory::Slot;
use super::record::{Taken, Written};
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
    in_proj: DeviceMatrix,
    in_bias: Option<Buffer<f32>>,
    conv_weight: Buffer<f32>,
    conv_bias: Option<Buffer<f32>>,
    x_proj: DeviceMatrix,
    /// Where one token can run in one launch: `x_proj` turned.
    x_turned: Option<DeviceMatrix>,
    dt_proj: DeviceMatrix,
    dt_bias: Buffer<f32>,
    /// ε and the scales of δ, B and C.
    norms: Option<(f32, [Buffer<f32>; 3])>,
    a: Buffer<f32>,
    d: Buffer<f32>,
    output: Output,
    made: Made,
}

/// One token's numbers: x̂ and z `[2E]`; δ, B and C before their norms `[R + 2N]`; `[E]` or `[N]` each.
struct Made {
    projected: Buffer<f32>,
    convolved: Buffer<f32>,
    activated: Buffer<f32>,
    dbc: Buffer<f32>,
    delta: Buffer<f32>,
    key: Buffer<f32>,
    query: Buffer<f32>,
    core: Buffer<f32>,
    gated: Buffer<f32>,
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
            in_proj: to.matrix(&host.in_proj)?,
            in_bias: to.optional(host.in_bias.as_deref())?,
            conv_weight: to.vector(&host.conv_weight)?,
            conv_bias: to.optional(host.conv_bias.as_deref())?,
            x_proj: to.matrix(&head.x_proj)?,
            x_turned: turned.then(|| to.matrix(&head.x_proj.transposed())).transpose()?,
            dt_proj: to.matrix(&head.dt_proj)?,
            dt_bias: to.vector(&head.dt_bias)?,
            norms,
            a: to.vector(&host.a)?,
            d: to.vector(&host.d)?,
            output: Output::upload(to, &host.out_proj, host.out_bias.as_deref())?,
            made: Made {
                projected: to.room(2 * e)?,
                convolved: to.room(e)?,
                activated: to.room(e)?,
                dbc: to.room(r + 2 * n)?,
                delta: to.room(e)?,
                key: to.room(n)?,
                query: to.room(n)?,
                core: to.room(e)?,
                gated: to.room(e)?,
            },
        }))
    }

    fn taps(&self) -> usize {
        self.conv_weight.len() / self.channels
    }

    pub(super) fn slot(&self, gpu: &Gpu) -> Result<Slot> {
        let (state, conv) = (self.channels * self.state_dim, (self.taps() - 1) * self.channels);
        Ok(Slot { state: gpu.zeros(state)?, conv: gpu.zeros(conv)?, cache: None, kv_width: 0 })
    }

    pub(super) fn step(&self, token: &Token<'_>, input: Input<'_>, slot: &Slot, added: Added<'_>) -> Result<()> {
        let (gpu, made, e) = (token.gpu, &self.made, self.channels);
        let convolved = Convolved {
            from: 0,
            channels: e,
            weight: &self.conv_weight,
            bias: self.conv_bias.as_ref(),
            history: &slot.conv,
            convolved: all(&made.convolved),
            activated: all(&made.activated),
        };
        let projection = Linear::new(&self.in_proj, input, Some(all(&made.projected)));
        Linear { bias: self.in_bias.as_ref(), convolved: Some(convolved), ..projection }.run(gpu)?;
        Linear::new(&self.x_proj, Input::Plain(all(&made.activated)), Some(all(&made.dbc))).run(gpu)?;
        ScanStep {
            dt_weight: &self.dt_proj,
            dt_bias: &self.dt_bias,
            dbc: &made.dbc,
            norms: self.norms.as_ref().map(|(eps, scales)| DbcNorms { scales: scales.each_ref(), eps: *eps }),
            a: &self.a,
            d: &self.d,
            x: all(&made.activated),
            gate: At(&made.projected, e),
            state: &slot.state,
            delta: all(&made.delta),
            key: all(&made.key),
            query: all(&made.query),
            core: all(&made.core),
            gated: all(&made.gated),
            state_norm: None,
        }
        .run(gpu)?;
        self.output.step(gpu, Input::Plain(all(&made.gated)), added)
    }

    pub(super) fn token_layer(&self, part: TokenPart<'_>) -> Option<(TokenShape, TokenLayer)> {
        let (Some(x_turned), None, None) = (&self.x_turned, &self.in_bias, &self.output.bias) else { return None };
        let made = &self.made;
        let shape = TokenShape {
            width: self.in_proj.cols(),
            inner: self.channels,
            state_dim: self.state_dim,
            rank: self.rank,
            eps: part.norm.eps,
            output_scale: part.output_scale,
            residual_scale: part.residual_scale,
            ..TokenShape::default()
        };
        let layer = TokenLayer {
            in_proj: self.in_proj.clone(),
            out_proj: self.output.weight.clone(),
            norm: part.norm.weight.clone(),
            conv_weight: self.conv_weight.clone(),
            conv_bias: self.conv_bias.clone(),
            dt_bias: self.dt_bias.clone(),
            a: self.a.clone(),
            d: self.d.clone(),
            state: part.slot.state.clone(),
            history: part.slot.conv.clone(),
            projected: made.projected.clone(),
            convolved: made.convolved.clone(),
            activated: made.activated.clone(),
            delta: made.delta.clone(),
            core: made.core.clone(),
            gated: made.gated.clone(),
            output: self.output.out.clone(),
            resid: part.resid.clone(),
            kind: TokenKind::Scan {
                x_turned: x_turned.clone(),
                dt_proj: self.dt_proj.clone(),
                dbc: made.dbc.clone(),
                key: made.key.clone(),
                query: made.query.clone(),
            },
        };
        Some((shape, layer))
    }

    pub(super) fn quantities(&self) -> Vec<(Point, Taken<'_, f32>)> {
        let (made, e, n) = (&self.made, self.channels, self.state_dim);
        let row = |from, width| Taken::Rows { from, stride: width, width };
        vec![
            (Point::ConvIn, row(all(&made.projected), e)),
            (Point::Gate, row(At(&made.projected, e), e)),
            (Point::Conv, row(all(&made.convolved), e)),
            (Point::Value, row(all(&made.activated), e)),
            (Point::Key, row(all(&made.key), n)),
            (Point::Query, row(all(&made.query), n)),
            (Point::Delta, row(all(&made.delta), e)),
            (Point::Core, row(all(&made.core), e)),
            (Point::Out, row(all(&self.output.out), self.output.out.len())),
        ]
    }

    pub(super) fn strength(&self) -> Taken<'_, f32> {
        self.written(all(&self.made.delta), (all(&self.made.key), self.state_dim), all(&self.made.activated))
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
        let dbc_stride = r + 2 * n;
        let projected = rows.own("projected", 2 * e)?;
        let (activated, dbc) = (rows.own("activated", e)?, rows.own("dbc", dbc_stride)?);
        let (steps, gated) = (rows.own("steps", e)?, rows.own("gated", e)?);
        let gemm = Gemm::new(count, &self.in_proj, all(normed));
        Gemm { bias: self.in_bias.as_ref(), y: Some(&projected), ..gemm }.run(gpu)?;

        let history = rows.wide.get(gpu, "history", slot.conv.len())?;
        let convolution = |silu| Conv {
            weight: &self.conv_weight,
            bias: self.conv_bias.as_ref(),
            history: (&slot.conv, &history),
            channels: e,
            silu,
        };
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
            delta_bias: Some(&self.dt_bias),
            softplus: true,
            a: &self.a,
            b: At(&dbc, r),
            c: At(&dbc, r + n),
            bc_stride: dbc_stride,
            x: all(&activated),
            x_stride: e,
            d: Some(&self.d),
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
        self.output.rows(rows, &gated, added)
    }
}
