//! RWKV's feed-forward, which also looks at the token before (Peng et al. 2023, 2025): out = σ(W_r x') ⊙ W_v relu²(W_k x''), x' and x''
//! each token mixed with the one before it; in RWKV-7 without the σ.

use statescope_kernels::activation::{relu2_slice, sigmoid_mul};
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;

use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::mixer::rwkv4::Mixed;
use crate::mixer::shifted;
use crate::model::feed_forward::scale;
use crate::model::spec::{ChannelMixLayout, ChannelMixSpec};

/// Weights of one channel mixing.
pub struct ChannelMix {
    /// d → I.
    key: Mixed,
    /// d → d.
    receptance: Option<Mixed>,
    /// `[d, I]`.
    value: Matrix,
    output_scale: f32,
}

impl ChannelMix {
    pub fn load(spec: &ChannelMixSpec, width: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (key, receptance) = match spec.layout {
            ChannelMixLayout::Rwkv4 => {
                let receptance = Mixed::load("receptance", width, width, scope)?;
                (Mixed::load("key", spec.inner, width, scope)?, Some(receptance))
            }
            ChannelMixLayout::Rwkv6 => {
                let mu = |name: &str| scope.vector(&format!("{name}.mu"), width);
                let receptance = Mixed::load_from(mu("receptance")?, "receptance.linear", width, scope)?;
                (Mixed::load_from(mu("key")?, "key.linear", spec.inner, scope)?, Some(receptance))
            }
            ChannelMixLayout::Rwkv6Official => {
                let mu = |name: &str| scope.tensor(&format!("{name}.mu"), &[1, 1, width]);
                let receptance = Mixed::load_from(mu("receptance")?, "receptance.linear", width, scope)?;
                (Mixed::load_from(mu("key")?, "key.linear", spec.inner, scope)?, Some(receptance))
            }
            ChannelMixLayout::Rwkv7 => (Mixed::load_from(scope.vector("x_k", width)?, "key", spec.inner, scope)?, None),
        };
        let value = scope.matrix("value.weight", width, spec.inner)?;
        Ok(Self { key, receptance, value, output_scale: spec.output_scale })
    }

    /// xs `[T, d]` → out, after the token `last` `[d]`, which becomes the newest.
    pub fn forward(&self, xs: &[f32], last: &mut [f32], out: &mut [f32]) {
        let before = shifted(xs, last);
        let mut hidden = self.key.forward(xs, &before);
        relu2_slice(&mut hidden);
        match &self.receptance {
            None => linear(&self.value, None, &hidden, out),
            Some(receptance) => {
                let mut value = vec![0.0; xs.len()];
                linear(&self.value, None, &hidden, &mut value);
                sigmoid_mul(&receptance.forward(xs, &before), &value, out);
            }
        }
        scale(out, self.output_scale);
    }
}
