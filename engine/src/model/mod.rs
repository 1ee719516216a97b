//! The only model: embed → blocks → norm → head. What differs between architectures is the mixer of a block and the names of its
//! tensors.

pub mod spec;

use statescope_kernels::activation::silu_mul;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::norm::rms_norm;

use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::names::Names;
use crate::loader::weights::{Scope, Weights};
use crate::mixer::{self, Mixer, StateSlot};
use crate::protocol::{LayerInfo, Point, TokenId};
use spec::{MlpSpec, ModelSpec};

/// A model's weights, ready to run. Its memory is outside, in one [`StateSlot`] a layer.
pub struct Model {
    spec: ModelSpec,
    /// `[V, d]`.
    embeddings: Matrix,
    blocks: Vec<Block>,
    final_norm: Vec<f32>,
    /// `[V, d]`; none when tied to the embeddings.
    head: Option<Matrix>,
}

/// x ← x + mixer(norm(x)); with an MLP also x ← x + mlp(norm(x)).
struct Block {
    norm: Vec<f32>,
    mixer: Box<dyn Mixer>,
    mlp: Option<(Vec<f32>, Mlp)>,
    parameters: u64,
}

/// SwiGLU (Shazeer 2020): down(silu(gate x) ⊙ up x).
struct Mlp {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    gate_bias: Option<Vec<f32>>,
    up_bias: Option<Vec<f32>>,
    down_bias: Option<Vec<f32>>,
}

/// Which logits a pass should make.
pub enum Logits<'a> {
    /// Of the last token only, `[V]`.
    Last(&'a mut Vec<f32>),
    /// Of every token, `[T, V]`.
    All(&'a mut Vec<f32>),
}

impl Model {
    /// Builds the model tensor by tensor. `progress` is told the share done and may say stop by returning false.
    ///
    /// # Errors
    /// A tensor is missing, has the wrong shape or holds NaN; or the load was cancelled.
    pub fn load(spec: ModelSpec, weights: &Weights, mut progress: impl FnMut(f32) -> bool) -> Result<Self, LoadError> {
        let names = Names::of(&spec.model_type)?;
        let (d, vocab) = (spec.hidden_size, spec.vocab_size);
        let root = weights.scope(String::new());
        let steps = spec.layers.len() as f32 + 2.0;
        let mut done = |layers: usize| if progress(layers as f32 / steps) { Ok(()) } else { Err(LoadError::Cancelled) };
        done(0)?;
        let embeddings = root.matrix(names.embeddings, vocab, d)?;
        let mut blocks = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            done(index + 1)?;
            let before = weights.parameters_read();
            let scope = weights.scope(names.layer(index));
            let mlp = match &layer.mlp {
                Some(mlp) => Some((scope.vector(names.mlp_norm, d)?, Mlp::load(mlp, d, &scope.scope(names.mlp))?)),
                None => None,
            };
            blocks.push(Block {
                norm: scope.vector(names.mixer_norm, d)?,
                mixer: mixer::load(&layer.mixer, d, &scope.scope(names.mixer(&layer.mixer)))?,
                mlp,
                parameters: weights.parameters_read() - before,
            });
        }
        done(spec.layers.len() + 1)?;
        let final_norm = root.vector(names.final_norm, d)?;
        // A head in the file counts even where the config says tied.
        let head =
            (!spec.tied_embeddings || root.has(names.head)).then(|| root.matrix(names.head, vocab, d)).transpose()?;
        done(spec.layers.len() + 2)?;
        weights.require_all_read()?;
        Ok(Self { spec, embeddings, blocks, final_norm, head })
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    pub fn layer_count(&self) -> usize {
        self.blocks.len()
    }

    pub fn mixer(&self, layer: usize) -> &dyn Mixer {
        self.blocks[layer].mixer.as_ref()
    }

    pub fn layer_info(&self) -> Vec<LayerInfo> {
        let mlp_dim = |index: usize| self.spec.layers[index].mlp.as_ref().map(|m| m.intermediate_size);
        self.blocks
            .iter()
            .enumerate()
            .map(|(i, b)| LayerInfo { parts: vec![b.mixer.geometry()], mlp_dim: mlp_dim(i), parameters: b.parameters })
            .collect()
    }

    /// The dtype and the bytes of the largest part, the matrices.
    pub fn dtype(&self) -> statescope_kernels::matrix::Dtype {
        self.embeddings.dtype()
    }

    /// Whether the output head is the embedding matrix.
    pub fn is_tied(&self) -> bool {
        self.head.is_none()
    }

    /// Empty memory for one sequence.
    pub fn slots(&self) -> Vec<StateSlot> {
        self.blocks.iter().map(|b| b.mixer.slot()).collect()
    }

    /// Reads `tokens`, of which the first stands at absolute position `first`, and advances `slots` by them.
    ///
    /// # Panics
    /// A token is outside the vocabulary; the session checks before.
    pub fn forward(
        &self,
        tokens: &[TokenId],
        first: usize,
        slots: &mut [StateSlot],
        hooks: &mut Hooks<'_>,
        logits: Logits<'_>,
    ) {
        let (d, rows) = (self.spec.hidden_size, tokens.len());
        hooks.begin(first, rows);
        let mut x = vec![0.0; rows * d];
        for (row, token) in x.chunks_exact_mut(d).zip(tokens) {
            self.embeddings.copy_row(*token as usize, row);
        }
        let (mut normed, mut added) = (vec![0.0; rows * d], vec![0.0; rows * d]);
        for (layer, (block, slot)) in self.blocks.iter().zip(slots).enumerate() {
            hooks.enter(layer);
            rms_norm(&x, &block.norm, self.spec.norm_eps, &mut normed);
            if rows == 1 {
                block.mixer.step(&normed, slot, hooks, &mut added);
            } else {
                block.mixer.prefill(&normed, slot, hooks, &mut added);
            }
            hooks.pass(Point::Out, &mut added);
            add(&mut x, &added);
            if let Some((norm, mlp)) = &block.mlp {
                rms_norm(&x, norm, self.spec.norm_eps, &mut normed);
                mlp.forward(&normed, &mut added);
                add(&mut x, &added);
            }
            hooks.pass(Point::Resid, &mut x);
        }
        let (from, out) = match logits {
            Logits::Last(out) => ((rows - 1) * d, out),
            Logits::All(out) => (0, out),
        };
        rms_norm(&x[from..], &self.final_norm, self.spec.norm_eps, &mut normed[from..]);
        out.resize((rows * d - from) / d * self.spec.vocab_size, 0.0);
        linear(self.head.as_ref().unwrap_or(&self.embeddings), None, &normed[from..], out);
    }
}

impl Mlp {
    fn load(spec: &MlpSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (d, inner) = (hidden_size, spec.intermediate_size);
        let bias = |name: &str, len: usize| spec.bias.then(|| scope.vector(name, len)).transpose();
        Ok(Self {
            gate: scope.matrix("gate_proj.weight", inner, d)?,
            up: scope.matrix("up_proj.weight", inner, d)?,
            down: scope.matrix("down_proj.weight", d, inner)?,
            gate_bias: bias("gate_proj.bias", inner)?,
            up_bias: bias("up_proj.bias", inner)?,
            down_bias: bias("down_proj.bias", d)?,
        })
    }

    /// xs `[T, d]` → out `[T, d]`.
    fn forward(&self, xs: &[f32], out: &mut [f32]) {
        let len = xs.len() / self.gate.cols() * self.gate.rows();
        let (mut gate, mut up, mut product) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        linear(&self.gate, self.gate_bias.as_deref(), xs, &mut gate);
        linear(&self.up, self.up_bias.as_deref(), xs, &mut up);
        silu_mul(&gate, &up, &mut product);
        linear(&self.down, self.down_bias.as_deref(), &product, out);
    }
}

fn add(x: &mut [f32], added: &[f32]) {
    x.iter_mut().zip(added).for_each(|(x, a)| *x += a);
}
