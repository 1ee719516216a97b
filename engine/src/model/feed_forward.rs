//! What stands between the mixers: a gated or plain MLP, or a mixture of them.

use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::room::Room;

use super::channel_mix::ChannelMix;
use super::moe::Moe;
use super::spec::{FeedForwardSpec, MlpLayout, MlpSpec};
use crate::loader::LoadError;
use crate::loader::names::Names;
use crate::loader::weights::Scope;
use crate::protocol::FeedForwardInfo;

/// Maps each token on its own, or together with the one before, `[T, d]` → `[T, d]`.
pub enum FeedForward {
    Mlp(Box<Mlp>),
    Moe(Box<Moe>),
    ChannelMix(Box<ChannelMix>),
}

impl FeedForward {
    /// From the tensors of a layer.
    pub fn load(spec: &FeedForwardSpec, width: usize, layer: &Scope<'_>, names: &Names) -> Result<Self, LoadError> {
        Ok(match spec {
            FeedForwardSpec::Mlp(spec) => Self::Mlp(Box::new(Mlp::load(spec, width, &layer.scope(names.mlp))?)),
            FeedForwardSpec::Moe(spec) => Self::Moe(Box::new(Moe::load(spec, width, layer, names)?)),
            FeedForwardSpec::ChannelMix(spec) => {
                Self::ChannelMix(Box::new(ChannelMix::load(spec, width, &layer.scope(names.mlp))?))
            }
        })
    }

    /// Numbers that it remembers of the token before.
    pub fn memory(&self, width: usize) -> usize {
        if matches!(self, Self::ChannelMix(_)) { width } else { 0 }
    }

    /// `last`: its memory, [`FeedForward::memory`] long.
    pub fn forward(&self, xs: &[f32], last: &mut [f32], out: &mut [f32]) {
        match self {
            Self::Mlp(mlp) => mlp.forward(xs, out),
            Self::Moe(moe) => moe.forward(xs, out),
            Self::ChannelMix(mix) => mix.forward(xs, last, out),
        }
    }
}

impl From<&FeedForwardSpec> for FeedForwardInfo {
    fn from(spec: &FeedForwardSpec) -> Self {
        match spec {
            FeedForwardSpec::Mlp(mlp) => Self { width: mlp.intermediate_size, experts: None },
            FeedForwardSpec::ChannelMix(spec) => Self { width: spec.inner, experts: None },
            FeedForwardSpec::Moe(moe) => {
                Self { width: moe.expert.intermediate_size, experts: Some((moe.experts, moe.chosen)) }
            }
        }
    }
}

/// down(act(gate x) ⊙ up x), SwiGLU with silu (Shazeer 2020), or down(act(up x)).
#[derive(Clone)]
pub struct Mlp {
    pub(crate) spec: MlpSpec,
    /// `[I, d]`; none without a gate.
    pub(crate) gate: Option<Matrix>,
    /// `[I, d]`.
    pub(crate) up: Matrix,
    /// `[d, I]`.
    pub(crate) down: Matrix,
    pub(crate) gate_bias: Option<Vec<f32>>,
    pub(crate) up_bias: Option<Vec<f32>>,
    pub(crate) down_bias: Option<Vec<f32>>,
    pub(crate) adapter: Option<Adapter>,
}

impl Mlp {
    pub fn load(spec: &MlpSpec, width: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let inner = spec.intermediate_size;
        let (gate, up) = match spec.layout {
            MlpLayout::Gated => {
                let gate = scope.matrix("gate_proj.weight", inner, width)?;
                (Some(gate), scope.matrix("up_proj.weight", inner, width)?)
            }
            MlpLayout::FusedGate => {
                let both = scope.matrix("gate_up_proj.weight", 2 * inner, width)?;
                let half = |first: usize| both.pick_rows(std::slice::from_ref(&(first..first + inner)));
                (Some(half(0)), half(inner))
            }
            MlpLayout::Plain => (None, scope.matrix("up_proj.weight", inner, width)?),
        };
        let down = scope.matrix("down_proj.weight", width, inner)?;
        let bias = |name: &str, len: usize| scope.vector_if(spec.bias, name, len);
        let (gate_bias, up_bias) = match spec.layout {
            MlpLayout::Gated => (bias("gate_proj.bias", inner)?, bias("up_proj.bias", inner)?),
            MlpLayout::FusedGate => match bias("gate_up_proj.bias", 2 * inner)? {
                Some(both) => (Some(both[..inner].to_vec()), Some(both[inner..].to_vec())),
                None => (None, None),
            },
            MlpLayout::Plain => (None, bias("up_proj.bias", inner)?),
        };
        let down_bias = bias("down_proj.bias", width)?;
        Ok(Self { spec: spec.clone(), gate, up, down, gate_bias, up_bias, down_bias, adapter: None })
    }

    /// From matrices already cut out of a larger tensor, without biases.
    pub fn from_parts(spec: &MlpSpec, gate: Option<Matrix>, up: Matrix, down: Matrix) -> Self {
        let (gate_bias, up_bias, down_bias, adapter) = (None, None, None, None);
        Self { spec: spec.clone(), gate, up, down, gate_bias, up_bias, down_bias, adapter }
    }

    /// The same MLP with a low-rank addition to `[gate; up]`.
    pub fn with_adapter(&self, adapter: Option<Adapter>) -> Self {
        Self { adapter, ..self.clone() }
    }

    /// xs `[T, d]` → out `[T, d]`.
    pub fn forward(&self, xs: &[f32], out: &mut [f32]) {
        let inner = self.up.rows();
        let len = xs.len() / self.up.cols() * inner;
        let mut up = Room::new(len);
        linear(&self.up, self.up_bias.as_deref(), xs, &mut up);
        let hidden = match &self.gate {
            None => {
                self.spec.activation.apply(&mut up);
                up
            }
            Some(matrix) => {
                let (mut gate, mut product) = (Room::new(len), Room::new(len));
                linear(matrix, self.gate_bias.as_deref(), xs, &mut gate);
                if let Some(adapter) = &self.adapter {
                    let added = adapter.forward(xs);
                    let rows = added.chunks_exact(2 * inner);
                    for ((row, gate), up) in rows.zip(gate.chunks_exact_mut(inner)).zip(up.chunks_exact_mut(inner)) {
                        add(gate, &row[..inner]);
                        add(up, &row[inner..]);
                    }
                }
                scale(&mut gate, self.spec.gate_scale);
                self.spec.activation.apply_mul(&gate, &up, &mut product);
                product
            }
        };
        linear(&self.down, self.down_bias.as_deref(), &hidden, out);
        scale(out, self.spec.output_scale);
    }
}

/// A low-rank addition to a linear map: up (down x) (LoRA, Hu et al. 2021).
#[derive(Clone)]
pub struct Adapter {
    /// `[r, in]`.
    down: Matrix,
    /// `[out, r]`.
    up: Matrix,
}

impl Adapter {
    /// `0.weight` `[rank, inputs]` and `1.weight` `[outputs, rank]`.
    pub fn load(inputs: usize, rank: usize, outputs: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        Ok(Self { down: scope.matrix("0.weight", rank, inputs)?, up: scope.matrix("1.weight", outputs, rank)? })
    }

    /// xs `[T, in]` → `[T, out]`.
    pub fn forward(&self, xs: &[f32]) -> Vec<f32> {
        let rows = xs.len() / self.down.cols();
        let mut low = vec![0.0; rows * self.down.rows()];
        linear(&self.down, None, xs, &mut low);
        let mut out = vec![0.0; rows * self.up.rows()];
        linear(&self.up, None, &low, &mut out);
        out
    }
}

/// x += added.
pub fn add(x: &mut [f32], added: &[f32]) {
    x.iter_mut().zip(added).for_each(|(x, a)| *x += a);
}

/// x *= factor; a factor of 1 leaves every bit.
pub fn scale(x: &mut [f32], factor: f32) {
    if factor != 1.0 {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}
