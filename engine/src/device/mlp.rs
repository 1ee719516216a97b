//! Gated and plain MLPs on the GPU: see [`crate::model::feed_forward`].

use statescope_kernels::Activation;
use statescope_kernels::cuda::{
    Buffer, DeviceMatrix, Element, GateFunction, GateRows, GatedUnit, Gemm, Input, Linear, Result,
};

use super::upload::{Output, Upload};
use super::{Added, Rows, Token, all};
use crate::model::feed_forward::Mlp as Host;

/// Weights, and room for what one token makes.
pub(super) struct Mlp {
    activation: Activation,
    gate_scale: f32,
    pub(super) output_scale: f32,
    gate: Option<(DeviceMatrix, Option<Buffer<f32>>)>,
    up: DeviceMatrix,
    up_bias: Option<Buffer<f32>>,
    pub(super) output: Output,
    hidden: Buffer<f32>,
}

impl Mlp {
    /// None with a low-rank adapter (Zamba2), or a gate held in another type.
    pub(super) fn upload(host: &Host, to: &Upload<'_>) -> Result<Option<Self>> {
        if host.adapter.is_some() || host.gate.as_ref().is_some_and(|gate| gate.dtype() != host.up.dtype()) {
            return Ok(None);
        }
        let gate = match &host.gate {
            None => None,
            Some(gate) => Some((to.matrix(gate)?, to.optional(host.gate_bias.as_deref())?)),
        };
        Ok(Some(Self {
            activation: host.spec.activation,
            gate_scale: host.spec.gate_scale,
            output_scale: host.spec.output_scale,
            gate,
            up: to.matrix(&host.up)?,
            up_bias: to.optional(host.up_bias.as_deref())?,
            output: Output::upload(to, &host.down, host.down_bias.as_deref())?,
            hidden: to.room(host.up.rows())?,
        }))
    }

    pub(super) fn step(&self, token: &Token<'_>, input: Input<'_>, added: Added<'_>) -> Result<()> {
        let (gpu, up_bias) = (token.gpu, self.up_bias.as_ref());
        let activation = Some(self.activation);
        match &self.gate {
            Some((gate, bias)) => {
                let unit = GatedUnit { up: &self.up, up_bias, gate_scale: self.gate_scale };
                let plain = Linear::new(gate, input, Some(all(&self.hidden)));
                Linear { bias: bias.as_ref(), gated: Some(unit), activation, ..plain }.run(gpu)?;
            }
            None => {
                let plain = Linear::new(&self.up, input, Some(all(&self.hidden)));
                Linear { bias: up_bias, activation, ..plain }.run(gpu)?;
            }
        }
        self.output.step(gpu, Input::Plain(all(&self.hidden)), added)
    }

    pub(super) fn rows<T: Element>(&self, rows: &mut Rows<'_, T>, normed: &Buffer<T>, added: Added<'_>) -> Result<()> {
        let (gpu, count, inner) = (rows.gpu, rows.count, self.up.rows());
        let hidden = rows.own("hidden", inner)?;
        let up = Gemm { bias: self.up_bias.as_ref(), ..Gemm::new(count, &self.up, all(normed)) };
        match &self.gate {
            None => Gemm { activation: Some(self.activation), y: Some(&hidden), ..up }.run(gpu)?,
            Some((gate, bias)) => {
                let (gated, upper) = (rows.own("mlp gate", inner)?, rows.own("mlp up", inner)?);
                Gemm { bias: bias.as_ref(), y: Some(&gated), ..Gemm::new(count, gate, all(normed)) }.run(gpu)?;
                Gemm { y: Some(&upper), ..up }.run(gpu)?;
                GateRows {
                    tokens: count,
                    width: inner,
                    x: all(&upper),
                    x_stride: inner,
                    gate: Some((all(&gated), inner)),
                    function: GateFunction::Activation(self.activation),
                    gate_scale: self.gate_scale,
                    y: &hidden,
                }
                .run(gpu)?;
            }
        }
        // A mixer's own output is the layer's; this one is only where there is no mixer.
        self.output.rows(rows, &hidden, added)
    }
}
