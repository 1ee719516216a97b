//! Weights on their way to the GPU.

use statescope_kernels::Matrix;
use statescope_kernels::cuda::{At, Buffer, DeviceMatrix, Element, Gemm, Gpu, Input, Linear, Norm as NormRows, Result};

use super::record::Taken;
use super::{Added, Rows};
use crate::model::norm::Norm as HostNorm;
use crate::model::spec::NormKind;
use crate::protocol::Point;

/// The GPU that weights go to.
pub struct Upload<'a> {
    pub gpu: &'a Gpu,
}

impl<'a> Upload<'a> {
    pub(super) fn new(gpu: &'a Gpu) -> Self {
        Self { gpu }
    }

    /// # Errors
    /// It does not fit, or is held in q8.
    pub(super) fn matrix(&self, matrix: &Matrix) -> Result<DeviceMatrix> {
        DeviceMatrix::upload(self.gpu, matrix)
    }

    pub(super) fn vector(&self, values: &[f32]) -> Result<Buffer<f32>> {
        self.gpu.upload(values)
    }

    pub(super) fn optional(&self, values: Option<&[f32]>) -> Result<Option<Buffer<f32>>> {
        values.map(|values| self.vector(values)).transpose()
    }

    /// Room for one token's numbers, which stay from one token to the next.
    pub(super) fn room(&self, len: usize) -> Result<Buffer<f32>> {
        self.gpu.zeros(len)
    }

    /// A norm whose result is scaled.
    pub(super) fn norm(&self, norm: &HostNorm, scale: f32) -> Result<Norm> {
        let scaled = |values: &[f32]| values.iter().map(|x| x * scale).collect::<Vec<f32>>();
        Ok(Norm {
            weight: self.vector(&scaled(&norm.scale))?,
            bias: self.optional(norm.bias.as_deref().map(scaled).as_deref())?,
            layer: norm.spec.kind == NormKind::Layer,
            eps: norm.spec.eps,
        })
    }
}

/// A norm of the residual stream.
pub(super) struct Norm {
    /// `[d]`, the 1 of an offset included.
    pub(super) weight: Buffer<f32>,
    pub(super) bias: Option<Buffer<f32>>,
    pub(super) layer: bool,
    pub(super) eps: f32,
}

impl Norm {
    /// Of one token, as what a linear map reads.
    pub(super) fn input<'a>(&'a self, x: At<'a>) -> Input<'a> {
        let (weight, eps) = (&self.weight, self.eps);
        match self.layer {
            true => Input::Layer { x, weight, bias: self.bias.as_ref(), eps },
            false => Input::Rms { x, weight, groups: 1, eps },
        }
    }

    /// Of x `[T, d]`, to y.
    pub(super) fn rows<T: Element>(&self, gpu: &Gpu, tokens: usize, x: At<'_>, y: &Buffer<T>) -> Result<()> {
        let rms = NormRows::rms(tokens, x, &self.weight, self.eps, At(y, 0));
        NormRows { bias: self.bias.as_ref(), layer: self.layer, ..rms }.run(gpu)
    }
}

/// The linear map at the end of a mixer or feed-forward.
pub(super) struct Output {
    pub(super) weight: DeviceMatrix,
    pub(super) bias: Option<Buffer<f32>>,
    /// `[d]`: of one token, scaled.
    pub(super) out: Buffer<f32>,
}

impl Output {
    pub(super) fn upload(to: &Upload<'_>, weight: &Matrix, bias: Option<&[f32]>) -> Result<Self> {
        Ok(Self { weight: to.matrix(weight)?, bias: to.optional(bias)?, out: to.room(weight.rows())? })
    }

    /// One token.
    pub(super) fn step(&self, gpu: &Gpu, input: Input<'_>, added: Added<'_>) -> Result<()> {
        Linear {
            bias: self.bias.as_ref(),
            output_scale: added.output_scale,
            residual: Some((At(added.from, 0), At(added.to, 0))),
            residual_scale: added.residual_scale,
            ..Linear::new(&self.weight, input, Some(At(&self.out, 0)))
        }
        .run(gpu)
    }

    /// Many tokens: x `[T, in]`.
    pub(super) fn rows<T: Element>(&self, rows: &mut Rows<'_, T>, x: &Buffer<T>, added: Added<'_>) -> Result<()> {
        let out = rows.wide("out", if rows.records_all() { self.weight.rows() } else { 0 })?;
        Gemm {
            bias: self.bias.as_ref(),
            output_scale: added.output_scale,
            wide: rows.records_all().then_some(&out),
            residual: Some((added.from, added.to)),
            residual_scale: added.residual_scale,
            ..Gemm::new(rows.count, &self.weight, At(x, 0))
        }
        .run(rows.gpu)?;
        let width = self.weight.rows();
        rows.show(Point::Out, Taken::Rows { from: At(&out, 0), stride: width, width })
    }
}
