//! What a config.json says, in one vocabulary for every architecture. The loader makes it, the model is built from it.

use crate::protocol::TokenId;

/// A whole model: embed → layers → norm → head.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// `model_type` of config.json (`mamba` or `mamba2` for the original state-spaces files, which have none).
    pub model_type: String,
    pub vocab_size: usize,
    /// Width of the residual stream, d.
    pub hidden_size: usize,
    /// Epsilon of the block norms and of the final norm (RMS).
    pub norm_eps: f32,
    pub tied_embeddings: bool,
    pub layers: Vec<LayerSpec>,
    pub trained_context: Option<usize>,
    pub end_tokens: Vec<TokenId>,
}

/// One block: x ← x + mixer(norm(x)), then, with an MLP, x ← x + mlp(norm(x)).
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    pub mixer: MixerSpec,
    pub mlp: Option<MlpSpec>,
}

/// down(silu(gate x) ⊙ up x).
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    pub intermediate_size: usize,
    pub bias: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum MixerSpec {
    Mamba1(Mamba1Spec),
    Mamba2(Mamba2Spec),
    Attention(AttentionSpec),
}

/// Selective scan (Gu & Dao 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba1Spec {
    /// Inner width E.
    pub channels: usize,
    /// N.
    pub state_dim: usize,
    /// R.
    pub dt_rank: usize,
    /// K.
    pub conv_taps: usize,
    /// Biases of in_proj and out_proj.
    pub proj_bias: bool,
    pub conv_bias: bool,
}

/// State-space duality (Dao & Gu 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Spec {
    /// H.
    pub heads: usize,
    /// P.
    pub head_dim: usize,
    /// N.
    pub state_dim: usize,
    /// G: head h reads the B and C of group ⌊h·G/H⌋.
    pub groups: usize,
    pub conv_taps: usize,
    pub proj_bias: bool,
    pub conv_bias: bool,
    /// Δ is clamped to this after softplus.
    pub delta_limit: (f32, f32),
    /// Epsilon of the gated group norm.
    pub norm_eps: f32,
}

/// Causal softmax attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    pub heads: usize,
    /// Fewer than `heads` for GQA: head h reads KV head ⌊h·H_kv/H⌋.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// Inverse frequencies of the rotary embedding; `2 · len` leading dims rotate. None: no positions (NoPE).
    pub rope: Option<Vec<f32>>,
    pub qkv_bias: bool,
    pub out_bias: bool,
}
