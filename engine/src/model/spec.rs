//! What a config.json says, in one vocabulary for every architecture. The loader makes it, the model is built from it.

mod recurrent;
mod time_invariant;

use std::ops::Range;

use statescope_kernels::activation::Activation;

use crate::protocol::TokenId;
pub use recurrent::*;
pub use time_invariant::*;

/// A whole model: embed → layers → norm → head.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// `model_type` of config.json (`mamba` or `mamba2` for the original state-spaces files, which have none).
    pub model_type: String,
    pub vocab_size: usize,
    /// Learned vectors that stand before every text as its first tokens (Hymba).
    pub meta_tokens: usize,
    /// Width of the residual stream, d.
    pub hidden_size: usize,
    /// Block norms and final norm.
    pub norm: NormSpec,
    /// Rows of a learned table that is added to the embedding by position (GPT-2); such a model knows no further positions.
    pub learned_positions: Option<usize>,
    /// Factor on the embedding.
    pub embedding_scale: f32,
    /// Factor on what a mixer or feed-forward adds to the residual stream.
    pub residual_scale: f32,
    /// Factor on the logits.
    pub logits_scale: f32,
    /// c of c tanh(z / c), which bounds the logits.
    pub logits_cap: Option<f32>,
    /// Whether the embedding is normed before the first layer (RWKV).
    pub embedding_norm: bool,
    pub tied_embeddings: bool,
    pub layers: Vec<LayerSpec>,
    pub trained_context: Option<usize>,
    pub end_tokens: Vec<TokenId>,
}

impl ModelSpec {
    /// A model in which nothing is scaled and positions are the mixers' business.
    pub fn new(
        model_type: &str,
        vocab_size: usize,
        hidden_size: usize,
        norm: NormSpec,
        layers: Vec<LayerSpec>,
    ) -> Self {
        Self {
            model_type: model_type.to_owned(),
            vocab_size,
            meta_tokens: 0,
            hidden_size,
            norm,
            learned_positions: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logits_scale: 1.0,
            logits_cap: None,
            embedding_norm: false,
            tied_embeddings: false,
            layers,
            trained_context: None,
            end_tokens: Vec::new(),
        }
    }

    /// The ids of the meta tokens, which follow those of the vocabulary.
    pub fn meta_ids(&self) -> Range<TokenId> {
        self.vocab_size as TokenId..(self.vocab_size + self.meta_tokens) as TokenId
    }
}

/// A norm over the last axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    pub kind: NormKind,
    pub eps: f32,
}

impl NormSpec {
    pub fn rms(eps: f32) -> Self {
        Self { kind: NormKind::Rms, eps }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// w ⊙ x / rms(x).
    Rms,
    /// (1 + w) ⊙ x / rms(x): the file holds the offset from 1.
    RmsFromOne,
    /// Layer norm with a bias.
    Layer,
}

/// One block: x ← x + Σ mixers(norm(x)), then x ← x + feed_forward(norm(x)). Either may be missing.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Mixers that read the same normed input side by side; one in most models, none in a layer that is feed-forward alone.
    pub parts: Vec<PartSpec>,
    /// A transformer block, stored once for several layers, whose output joins the input of the mixers.
    pub shared: Option<SharedSpec>,
    pub feed_forward: Option<FeedForwardSpec>,
    /// The feed-forward reads x itself, beside the mixer, instead of what the mixer has made of it.
    pub parallel: bool,
}

impl LayerSpec {
    /// One mixer, and what follows it.
    pub fn new(mixer: MixerSpec, feed_forward: Option<FeedForwardSpec>) -> Self {
        let part = PartSpec { mixer, input_scale: 1.0, output_scale: 1.0 };
        Self { parts: vec![part], shared: None, feed_forward, parallel: false }
    }

    /// A layer without a mixer.
    pub fn feed_forward(feed_forward: FeedForwardSpec) -> Self {
        Self { parts: Vec::new(), shared: None, feed_forward: Some(feed_forward), parallel: false }
    }
}

/// One of the mixers of a layer, with the factors on what it reads and on what it adds.
#[derive(Clone, Debug, PartialEq)]
pub struct PartSpec {
    pub mixer: MixerSpec,
    pub input_scale: f32,
    pub output_scale: f32,
}

/// The use of a shared transformer block (Glorioso et al. 2024, Zamba): on t = [x; x₀], the residual stream beside the embedding,
/// t ← linear(mlp(norm(attention(norm(t))))), which is added to what the layer's mixer reads.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedSpec {
    /// The layer whose tensors hold the block.
    pub stored_at: usize,
    /// Reads 2d, writes d.
    pub attention: AttentionSpec,
    pub mlp: MlpSpec,
    /// Which use of any shared block this is, in the order of layers: the index of its low-rank adapters.
    pub usage: usize,
    /// Rank of the adapters of q, k and v.
    pub attention_rank: Option<usize>,
    /// Rank of the adapter of the MLP's first projection.
    pub mlp_rank: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FeedForwardSpec {
    Mlp(MlpSpec),
    Moe(MoeSpec),
    ChannelMix(ChannelMixSpec),
}

/// RWKV's feed-forward, which also reads the token before.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMixSpec {
    pub inner: usize,
    pub layout: ChannelMixLayout,
    /// Factor on the output.
    pub output_scale: f32,
}

/// Whose channel mixing it is, and so how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelMixLayout {
    /// `time_mix_key` and `time_mix_receptance`, shares of the token itself; σ(r) scales the output.
    Rwkv4,
    /// `key.mu`, `key.linear` and so on, shares of the token before; σ(r) scales the output.
    Rwkv6,
    /// As RWKV-6, `time_maa_k`, `key` and so on (the official files).
    Rwkv6Official,
    /// `x_k`, a share of the token before; no receptance.
    Rwkv7,
}

/// down(act(gate x) ⊙ up x), or down(act(up x)).
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    pub intermediate_size: usize,
    pub activation: Activation,
    pub layout: MlpLayout,
    pub bias: bool,
    /// Factor on gate x before the activation.
    pub gate_scale: f32,
    /// Factor on the output.
    pub output_scale: f32,
}

impl MlpSpec {
    /// SwiGLU (Shazeer 2020) with three matrices.
    pub fn swiglu(intermediate_size: usize, bias: bool) -> Self {
        Self {
            intermediate_size,
            activation: Activation::Silu,
            layout: MlpLayout::Gated,
            bias,
            gate_scale: 1.0,
            output_scale: 1.0,
        }
    }
}

/// How the matrices of an MLP are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpLayout {
    /// `gate_proj`, `up_proj`, `down_proj`.
    Gated,
    /// `gate_up_proj` `[2I, d]`, gate first, and `down_proj`.
    FusedGate,
    /// No gate: `up_proj`, `down_proj`.
    Plain,
}

/// A mixture of experts: Σ_e p_e(x) expert_e(x), plus a shared expert that sees every token.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    pub experts: usize,
    /// Experts that a token goes to.
    pub chosen: usize,
    pub router: RouterSpec,
    /// One expert.
    pub expert: MlpSpec,
    pub storage: ExpertStorage,
    pub shared: Option<SharedExpertSpec>,
    /// Width that the routed experts work in, below d, between two projections of their own.
    pub latent_size: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RouterSpec {
    /// Softmax over all experts, then the k largest, divided by their sum or not.
    SoftmaxTopK { renormalise: bool },
    /// The k largest logits, then softmax over them.
    TopKSoftmax,
    /// σ of each logit; chosen by σ + bias within the best groups; then divided by the sum or not, and scaled (DeepSeek-V3).
    Sigmoid { groups: usize, chosen_groups: usize, renormalise: bool, scale: f32 },
}

/// How the experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertStorage {
    /// `experts.{e}.…`.
    Each,
    /// `gate_up_proj` `[E, 2I, d]` and `down_proj` `[E, d, I]`.
    Stacked,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SharedExpertSpec {
    pub mlp: MlpSpec,
    /// Whether σ(w·x), one number a token, scales it.
    pub gated: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum MixerSpec {
    Mamba1(Mamba1Spec),
    Mamba2(Mamba2Spec),
    Mamba3(Mamba3Spec),
    Attention(AttentionSpec),
    DeltaRule(DeltaRuleSpec),
    LinearAttention(LinearAttentionSpec),
    Rwkv4(Rwkv4Spec),
    Rwkv5(Rwkv5Spec),
    Rwkv6(Rwkv6Spec),
    Rwkv7(Rwkv7Spec),
    RgLru(RgLruSpec),
    Mlstm(MlstmSpec),
    Slstm(SlstmSpec),
    S4(S4Spec),
    H3(H3Spec),
    Hyena(HyenaSpec),
    ShortConv(ShortConvSpec),
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
    /// RMS norms of δ, B and C, each over its own width.
    pub dbc_norm: Option<DbcNorm>,
    /// Zamba: channels fall into so many heads, each with its own x_proj and dt_proj, and in_proj alternates rows of x and z.
    pub heads: Option<usize>,
    /// Rows of in_proj before x̂, which the attention beside this mixer reads (Hymba).
    pub in_offset: usize,
    /// Norm of what enters out_proj (Hymba).
    pub out_norm: Option<NormSpec>,
}

/// The norms of δ, B and C.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DbcNorm {
    pub eps: f32,
    /// Whether the file holds scales (Jamba) or not (Falcon-Mamba).
    pub learned: bool,
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
    pub out_bias: bool,
    pub conv_bias: bool,
    /// Δ is clamped to this after softplus.
    pub delta_limit: (f32, f32),
    /// How y meets the gate.
    pub norm: GateNorm,
    /// Epsilon of the gated group norm.
    pub norm_eps: f32,
    /// Factors on the z, x, B, C and dt that in_proj makes (Falcon-H1); all 1 elsewhere.
    pub multipliers: [f32; 5],
}

/// Mamba-3 (Lahoti et al. 2026).
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba3Spec {
    /// H.
    pub heads: usize,
    /// P.
    pub head_dim: usize,
    /// N.
    pub state_dim: usize,
    /// G: head h reads the B and C of group ⌊h·G/H⌋.
    pub groups: usize,
    /// Pairs of state entries that are turned.
    pub angles: usize,
    /// The least rate −A of forgetting.
    pub floor: f32,
    /// r, with several inputs and outputs (MIMO); none with one of each.
    pub ranks: Option<usize>,
    /// Whether y is normed inside each head before the gate.
    pub output_norm: bool,
    /// Epsilon of all norms inside.
    pub norm_eps: f32,
}

impl Mamba3Spec {
    /// Inputs and outputs of a head.
    pub fn rank(&self) -> usize {
        self.ranks.unwrap_or(1)
    }
}

/// Order of output gate and group norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateNorm {
    /// w ⊙ RMS(y ⊙ silu(z)).
    GateFirst,
    /// (w ⊙ RMS(y)) ⊙ silu(z).
    NormFirst,
    /// y ⊙ silu(z).
    GateOnly,
}

/// Causal softmax attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    pub heads: usize,
    /// Fewer than `heads` for GQA: head h reads KV head ⌊h·H_kv/H⌋.
    pub kv_heads: usize,
    /// Of queries and keys.
    pub head_dim: usize,
    /// Of values and outputs.
    pub value_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// Inverse frequencies of the rotary embedding; `2 · len` leading dims rotate. None: no positions (NoPE).
    pub rope: Option<Vec<f32>>,
    /// Tokens in sight, the current one included; none for all.
    pub window: Option<usize>,
    /// First tokens that stay in sight of every window (Hymba's meta tokens).
    pub sinks: usize,
    pub kv: KvUse,
    pub qkv_bias: bool,
    pub out_bias: bool,
    pub layout: QkvLayout,
    /// RMS norm over head_dim of q and k, before the rotary embedding.
    pub qk_norm: Option<NormSpec>,
    /// Whether σ(gate) scales the output; q_proj makes `[q; gate]` for each head.
    pub gated: bool,
    /// Factor on k before the rotary embedding.
    pub key_scale: f32,
    /// Norm of what enters o_proj (Hymba).
    pub out_norm: Option<NormSpec>,
}

impl AttentionSpec {
    /// Plain attention with separate projections, no bias, no positions, scaled by head_dim^{−1/2}.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            value_dim: head_dim,
            scale: (head_dim as f64).powf(-0.5) as f32,
            rope: None,
            window: None,
            sinks: 0,
            kv: KvUse::Own,
            qkv_bias: false,
            out_bias: false,
            layout: QkvLayout::Separate,
            qk_norm: None,
            gated: false,
            key_scale: 1.0,
            out_norm: None,
        }
    }

    /// Rows of an `in_proj` that make q, k and v ([`QkvLayout::InProj`]).
    pub fn in_proj_rows(&self) -> usize {
        let kv = match self.kv {
            KvUse::Borrowed { .. } => 0,
            _ => self.kv_heads * (self.head_dim + self.value_dim),
        };
        self.heads * self.head_dim + kv
    }
}

/// Whose keys and values an attention reads (Brandon et al. 2024, cross-layer attention).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvUse {
    /// Its own, which nobody else reads.
    Own,
    /// Its own, which later layers read too; `layer` is this one.
    Lent { layer: usize },
    /// Those of an earlier `layer`; it makes and keeps none.
    Borrowed { layer: usize },
}

/// How the projections to q, k and v are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// `q_proj`, `k_proj`, `v_proj`.
    Separate,
    /// `qkv_proj`, head by head `[q; k; v]` (GPT-NeoX).
    ByHead,
    /// `qkv_proj`, all q, then all k, then all v (GPT-2).
    ByKind,
    /// The first rows of `in_proj`: all q, all k, all v, k and v only where they are not borrowed; then come x̂ and z of the Mamba mixer
    /// beside it, as many rows each as all heads have values (Hymba).
    InProj,
}

/// Double-gated short convolution (LFM2): y = C ⊙ conv(B ⊙ x).
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConvSpec {
    /// d.
    pub channels: usize,
    /// K.
    pub taps: usize,
    /// Biases of in_proj, convolution and out_proj.
    pub bias: bool,
}
