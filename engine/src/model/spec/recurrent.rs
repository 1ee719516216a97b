//! The delta rule, linear attention and the other recurrences.

/// Gated delta rule (Yang et al. 2024, arXiv 2412.06464).
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaRuleSpec {
    /// H_k: head h of the values reads query and key of head ⌊h·H_k/H⌋.
    pub key_heads: usize,
    /// H.
    pub heads: usize,
    /// D_k.
    pub key_dim: usize,
    /// D_v.
    pub head_dim: usize,
    /// K.
    pub conv_taps: usize,
    /// Epsilon of the norm before the output gate.
    pub norm_eps: f32,
    pub layout: DeltaLayout,
    /// Whether the state decays; a DeltaNet's does not.
    pub decays: bool,
    /// Whether β is σ of a projection, or 1.
    pub learned_beta: bool,
    /// Factor on β: 2 where eigenvalues may be negative.
    pub beta_scale: f32,
    /// Whether silu(z) scales the output.
    pub gated: bool,
}

/// How the projections of a delta rule are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaLayout {
    /// `in_proj_qkvz` and `in_proj_ba`, key head by key head, one `conv1d` (Qwen3-Next).
    ByHead,
    /// `q_proj`, `k_proj`, `v_proj`, `g_proj`, `b_proj`, `a_proj`, three convolutions (flash-linear-attention).
    Separate,
}

/// Linear attention with a fading state, as flash-linear-attention stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearAttentionSpec {
    /// H.
    pub heads: usize,
    /// Heads of keys, values and decays, each shared by as many heads of queries.
    pub kv_heads: usize,
    /// D_k.
    pub key_dim: usize,
    /// D_v.
    pub head_dim: usize,
    pub decay: LinearDecay,
    pub feature_map: FeatureMap,
    /// Whether the features of q, and of k, are divided by their sum.
    pub sum_to_one: [bool; 2],
    /// Whether what is read is divided by the sum of its row.
    pub normalised: bool,
    /// Inverse frequencies of the rotary embedding of q and k.
    pub rope: Option<Vec<f32>>,
    /// K of the convolutions of q, k and v, with silu behind them.
    pub conv_taps: Option<usize>,
    /// Whether silu(W_g u) scales the output.
    pub gated: bool,
    /// Whether all heads are normed together, or each by itself.
    pub norm_whole: bool,
    pub norm_eps: f32,
}

/// How the state fades.
#[derive(Clone, Debug, PartialEq)]
pub enum LinearDecay {
    None,
    /// 1 − 2^{−5−h} in head h (RetNet).
    Retention,
    /// σ(W_2 W_1 u + b)^{1 / normaliser}, its logarithm not below the floor (GLA).
    LowRank {
        rank: usize,
        normaliser: f32,
        floor: Option<f32>,
    },
    /// λ + (1 − λ) σ(W_f u) with the λ of this of so many layers; 0 without them. The key is what is left to 1 (HGRN2).
    Bounded {
        layer: usize,
        layers: Option<usize>,
    },
}

/// What is done to q and k before they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureMap {
    Identity,
    /// (W_1 x + b_1) ⊙ (W_2 x + b_2).
    Hadamard,
    /// elu(x) + 1.
    EluPlusOne,
    Relu,
}

/// The time mixing of RWKV-4 (Peng et al. 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct Rwkv4Spec {
    pub channels: usize,
}

/// The time mixing of RWKV-5.2 (Peng et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct Rwkv5Spec {
    /// H.
    pub heads: usize,
    /// N, of keys and values.
    pub head_dim: usize,
    pub norm_eps: f32,
}

/// The time mixing of RWKV-6 (Peng et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct Rwkv6Spec {
    /// H.
    pub heads: usize,
    /// D_k.
    pub key_dim: usize,
    /// D_v.
    pub head_dim: usize,
    /// Of the maps from a token to how it is mixed with the one before.
    pub mix_rank: usize,
    pub decay_rank: usize,
    pub norm_eps: f32,
    pub layout: Rwkv6Layout,
}

/// How the maps from a token to its mixes and its decay are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rwkv6Layout {
    /// `x_proj`, `x_bias`, `w_proj` in the order r, w, k, v, g (flash-linear-attention).
    Fla,
    /// `time_maa_…`, `time_decay_…` in the order w, k, v, r, g, matrices `[in, out]` (the official files).
    Official,
    /// The same with matrices `[out, in]` (GGUF).
    Gguf,
}

/// The time mixing of RWKV-7 (Peng et al. 2025).
#[derive(Clone, Debug, PartialEq)]
pub struct Rwkv7Spec {
    /// H.
    pub heads: usize,
    /// N.
    pub head_dim: usize,
    /// Of the low-rank maps to decay, rate, value share and gate.
    pub ranks: [usize; 4],
    /// Whether this is the first layer, whose values the others mix in.
    pub first: bool,
    pub norm_eps: f32,
    /// Inside the root of the norm of κ.
    pub l2_eps: f32,
}

/// The recurrent block of Griffin (De et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct RgLruSpec {
    pub channels: usize,
    /// Blocks of the two gates.
    pub gate_heads: usize,
    /// K.
    pub conv_taps: usize,
}

/// Scalar LSTM (Beck et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct SlstmSpec {
    pub channels: usize,
    /// Blocks of the maps to the gates, and groups of the norm.
    pub heads: usize,
    /// K of the convolution before input and forget gate.
    pub conv_taps: usize,
    pub norm_eps: f32,
}

/// Matrix LSTM (Beck et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct MlstmSpec {
    /// H.
    pub heads: usize,
    /// D_k.
    pub key_dim: usize,
    /// D_v.
    pub head_dim: usize,
    /// c of c tanh(x / c), which bounds the gates before their activation.
    pub gate_cap: f32,
    /// Whether q, k, v and o, and i and f, are stored together.
    pub fused: bool,
    /// Added to the normaliser.
    pub eps: f32,
    pub norm_eps: f32,
}
