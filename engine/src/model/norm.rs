//! The norms of the residual stream.

use statescope_kernels::norm::{layer_norm, rms_norm};

use super::spec::{NormKind, NormSpec};
use crate::loader::LoadError;
use crate::loader::weights::Scope;

/// A norm over the last axis, with its weights.
#[derive(Clone)]
pub struct Norm {
    /// `[width]`, the 1 of an offset included.
    pub(crate) scale: Vec<f32>,
    /// `[width]`; layer norm only.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) spec: NormSpec,
}

impl Norm {
    /// `name.weight` and, of a layer norm, `name.bias`.
    pub fn load(spec: NormSpec, name: &str, width: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let mut scale = scope.vector(&format!("{name}.weight"), width)?;
        if spec.kind == NormKind::RmsFromOne {
            scale.iter_mut().for_each(|w| *w += 1.0);
        }
        let bias = scope.vector_if(spec.kind == NormKind::Layer, &format!("{name}.bias"), width)?;
        Ok(Self { scale, bias, spec })
    }

    /// xs `[…, width]` → out, of the same shape.
    pub fn forward(&self, xs: &[f32], out: &mut [f32]) {
        match self.spec.kind {
            NormKind::Rms | NormKind::RmsFromOne => rms_norm(xs, &self.scale, self.spec.eps, out),
            NormKind::Layer => layer_norm(xs, &self.scale, self.bias.as_deref(), self.spec.eps, out),
        }
    }

    /// xs `[…, width]`, each row replaced by its norm.
    pub fn apply(&self, xs: &mut [f32]) {
        let before = xs.to_vec();
        self.forward(&before, xs);
    }
}
