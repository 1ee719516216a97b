//! The plain data that crosses between the engine and whoever drives it: a window, a headless verb, a test, later a wire.
//!
//! `Command`s go in, `Event`s come out; nothing here holds a tensor, a thread or a reference into the engine, so a recording is a
//! list of these values. Shapes are row-major. *Head* means one independent mixing matrix: an SSD or attention head, or, for
//! Mamba-1, one channel (then `head_dim` is 1), so that one vocabulary serves every mixer.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

pub use kind::MixerKind;
pub use messages::*;
pub use statescope_kernels::matrix::Dtype;

mod kind;
mod messages;

/// Index of a vocabulary entry.
pub type TokenId = u32;

/// Where a model comes from; `builtin:NAME` or a path on the command line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModelSource {
    Builtin(String),
    Path(PathBuf),
}

impl FromStr for ModelSource {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix("builtin:") {
            Some(name) => Self::Builtin(name.to_owned()),
            None => Self::Path(PathBuf::from(text)),
        })
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin(name) => write!(f, "builtin:{name}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The sizes of one mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub kind: MixerKind,
    /// Independent mixing matrices H (Mamba-1, Mamba-3 MIMO: channels E, short convolution: channels d; 1 without a mixer).
    pub heads: usize,
    /// Values each head mixes, P (where a channel is a head: 1).
    pub head_dim: usize,
    /// State entries per value, N (H3 with heads: P times those of its system); for attention the width of a key.
    pub state_dim: usize,
    /// Heads that share one key and one query (B and C groups; attention: KV heads own the keys).
    pub groups: usize,
    /// Keys and queries that such a group has at once, r (Mamba-3 MIMO), or filters that its values meet one after the other (Hyena); 1 elsewhere.
    pub rank: usize,
    /// Decay factors per head: 1, or N for Mamba-1, GLA, HGRN2, RWKV-5, RWKV-6 and RWKV-7, N/2 for S4, S4D and H3; 0 where nothing fades by a factor.
    pub decay_dim: usize,
    /// Taps of the short convolution in front of the mixer, 0 without one.
    pub conv_taps: usize,
    /// Whether an output gate follows the mixer, [`Point::Gate`].
    pub gated: bool,
    /// Tokens in sight, the current one included; none for all of them.
    pub window: Option<usize>,
    /// Bytes of the recurrent state, convolution history included; constant in the context length.
    pub state_bytes: usize,
    /// Bytes that the KV cache grows by per token; 0 for recurrent mixers.
    pub kv_bytes_per_token: usize,
}

/// One block of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// The mixers of the layer, at least one: side by side in Falcon-H1; in Zamba the layer's own and the shared attention.
    pub parts: Vec<Geometry>,
    /// What follows the mixer, or is the whole layer.
    pub feed_forward: Option<FeedForwardInfo>,
    /// Numbers stored for this layer alone; a shared block counts where it is stored.
    pub parameters: u64,
}

/// A layer's feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedForwardInfo {
    /// Width of the MLP, or of one expert.
    pub width: usize,
    /// Routed experts and how many of them a token goes to; none for a plain MLP.
    pub experts: Option<(usize, usize)>,
}

impl LayerInfo {
    /// The first mixer, which names the layer.
    pub fn mixer(&self) -> &Geometry {
        &self.parts[0]
    }
}

/// Where a model computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    #[default]
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// What a model turned out to run on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceInfo {
    pub device: Device,
    /// As the driver calls the GPU; empty on the CPU.
    pub name: String,
    /// Bytes of its memory, and those that may be taken of it, if that is bounded; 0 on the CPU.
    pub memory: usize,
    pub allowed: Option<usize>,
    /// On a GPU: what has no kernels there and runs on the CPU between two copies, such as `layers 1, 3: mixture of experts`.
    pub on_cpu: Vec<String>,
}

/// What is known of a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    pub source: ModelSource,
    /// Short name: the built-in's, or the folder's.
    pub name: String,
    /// The format of the weights, for people: `safetensors`, `GGUF, Q4_K, F32` and so on.
    pub format: String,
    /// `model_type` of config.json.
    pub model_type: String,
    pub layers: Vec<LayerInfo>,
    /// Width of the residual stream, d.
    pub hidden_size: usize,
    /// Rows of the embedding; the tokenizer may know fewer.
    pub vocab_size: usize,
    /// Learned vectors that stand before every text as its first tokens, under the ids after the vocabulary.
    pub meta_tokens: usize,
    pub tied_embeddings: bool,
    pub parameters: u64,
    pub dtype: Dtype,
    pub weights_bytes: usize,
    /// Recurrent state of all layers, constant in the context length.
    pub state_bytes: usize,
    pub kv_bytes_per_token: usize,
    /// Tokens per sequence in training, where the folder says so; beyond it the app marks the text.
    pub trained_context: Option<usize>,
    pub has_tokenizer: bool,
    pub end_tokens: Vec<TokenId>,
    pub device: DeviceInfo,
}

/// A named quantity inside a layer. The shapes are per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Residual stream after the layer, `[d]`.
    Resid,
    /// Input of the short convolution (value channels), `[H, P]`.
    ConvIn,
    /// Output of the short convolution before its SiLU (value channels), `[H, P]`.
    Conv,
    /// Step size Δ after softplus and clamp, `[H]`; of S4, S4D and H3 the same at every token.
    Delta,
    /// Delta rule: share β by which what is stored under a key is replaced, `[H]`; RWKV-7: its rate a ∈ (0, 1), `[H, N]`.
    Beta,
    /// RWKV-7: the direction κ, of length 1, under which the state is looked up and corrected, `[H, N]`.
    Erase,
    /// Logarithm of the decay, `[H]` (GLA, HGRN2, RWKV-6, RWKV-7 `[H, N]`); of an mLSTM or sLSTM relative to its stabiliser.
    LogDecay,
    /// Input gate, `[H]`: i ∈ (0, 1) of an RG-LRU; e^{ĩ − m} ∈ (0, 1] of an mLSTM or sLSTM; of Mamba-3 the share λ that is written at once; of RWKV-4 the weight in (0, 1] with which a value
    /// enters the mean.
    InputGate,
    /// RG-LRU: recurrence gate r ∈ (0, 1), from which the decay follows, `[H]`.
    RecurrenceGate,
    /// mLSTM, sLSTM: forget gate σ(f̃) ∈ (0, 1), `[H]`.
    ForgetGate,
    /// Where a token reads before it writes: what it takes of its own value, `[H]`. RWKV-4: a share in (0, 1); RWKV-5 and RWKV-6: Σ r u k.
    Bonus,
    /// Which form of a time-invariant state space ran: 1 a convolution of the tokens read together, 0 a step of the recurrence, `[1]`.
    Form,
    /// What the read is divided by, relative to the stabiliser, `[H]`: mLSTM, sLSTM, normalised linear attention.
    Normaliser,
    /// Factor by which the state is kept, exp(ΔA), `[H]` (Mamba-1, GLA, HGRN2, RWKV-5, RWKV-6, RWKV-7 `[H, N]`); of S4, S4D and H3 the size of that
    /// of every complex state, `[H, N/2]`.
    Decay,
    /// Write direction: B, or the key, `[G, N]` (Mamba-3 MIMO `[G, r, N]`, H3 with heads `[H, P]`); of a short convolution, H3 or Hyena the gate before it, of an RG-LRU the factor √(1 − a²) i, `[H]`.
    Key,
    /// Read direction: C, or the query, `[G, N]` (attention `[H, N]`, Mamba-3 MIMO `[G, r, N]`, H3 with heads `[H, P]`); of a short convolution, H3 or Hyena the gate after it, `[H]`.
    Query,
    /// Hyena of order O above 2: the gates between its filters, the one that is met first first, `[H, O − 2]`.
    InnerGate,
    /// What is mixed: x after convolution and SiLU, or the value vector, `[H, P]` (attention `[G, P]`).
    Value,
    /// Write strength ‖Δ B xᵀ‖_F, for the delta rule β‖k‖‖v‖, for attention ‖k‖‖v‖, with an input gate i‖k‖‖v‖, `[H]`.
    Write,
    /// Read strength: norm of what is read out of state or cache, skip D·x excluded, `[H]`.
    Read,
    /// Recurrent state S, `[H, P, N]`; attention has none.
    State,
    /// A row of the mixing matrix of one head, `[positions so far]`.
    Mixing(MixingView),
    /// max |M·v − y| of the row, relative to the largest |y| of the head so far, `[1]`: how true the picture is.
    MixingError,
    /// Output gate z before its activation (SiLU; σ for gated attention, mLSTM, sLSTM (where it is in y already) and RWKV-4's receptance; GELU for RG-LRU; none for RWKV-7), `[H, P]`;
    /// of Mamba-3 MIMO the factors after all that, norm included, with which a channel takes the r reads, `[H, r]`, which are in y already.
    Gate,
    /// Mixer output y before gate and norm, D·x included, `[H, P]`.
    Core,
    /// What the mixer adds to the residual stream, `[d]`.
    Out,
    /// Entropy of a softmax row in bits, `[H]`; attention only.
    Entropy,
    /// How far back a token looks, [`Reach`], `[heads, 3]`, of up to [`REACH_HEADS`] heads spread over the mixer: one axis for state
    /// spaces and attention.
    Reach,
}

/// Heads of which [`Point::Reach`] speaks at most.
pub const REACH_HEADS: usize = 16;

/// What a row of |M| says of the distance, with p_j = |M_ij| / Σ|M_i·|.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Σ_j (i − j) p_j, in tokens (DeciMamba, Ben-Kish et al. 2024).
    pub mean_distance: f32,
    /// −Σ_j p_j log₂ p_j, in bits.
    pub entropy_bits: f32,
    /// Effective receptive field: the fewest newest tokens that hold nine tenths of the row.
    pub field: f32,
}

/// Which mixing matrix is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MixingView {
    pub stage: Stage,
    pub scale: Scale,
}

/// How much of the block the matrix covers (mixers.md 2.6, exact with the gates of this run frozen).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// M on post-convolution values; Δ_j and the skip D are in.
    Core,
    /// M · diag(σ(v)) · Conv: on values before the short convolution.
    Conv,
    /// diag(silu(z)·norm scale) · M · diag(σ(v)) · Conv: up to the output projection.
    Gate,
}

/// What a cell of the matrix says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scale {
    /// M_ij, signed.
    Raw,
    /// |M_ij| / Σ_j |M_ij|: comparable with softmax weights.
    RowShare,
    /// ‖M_ij v_j‖₂: what position j contributes at i.
    Contribution,
}

/// A place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    pub layer: u16,
    /// Index of a parallel mixer inside the layer.
    pub part: u8,
    pub point: Point,
}

/// A subset of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Span {
    All,
    One(u32),
}

/// Which tokens a probe speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Positions {
    /// Every token so far.
    All,
    /// The newest processed token, whichever that is.
    Live,
    /// One token; its reading stays valid until the text before it changes.
    At(u32),
}

/// Which part of a quantity is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Select {
    pub heads: Span,
    /// Channel inside the head (matrix stages beyond the core differ per channel; `All` is their mean).
    pub channels: Span,
    pub positions: Positions,
}

impl Select {
    pub const ALL: Self = Self { heads: Span::All, channels: Span::All, positions: Positions::All };
}

/// How several numbers become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fold {
    /// Euclidean norm.
    Norm,
    Mean,
    AbsMax,
    Max,
}

/// What is done to a quantity before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    Full,
    /// One number per head.
    Head(Fold),
    /// One number per layer.
    Layer(Fold),
    /// At most `rows` × `cols` cells per head, each the entry of largest |·| of its block, sign kept.
    Pool {
        rows: u16,
        cols: u16,
    },
}

/// When readings are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cadence {
    /// One row per token, none lost; rows of past tokens are backfilled.
    EveryToken,
    /// The newest value only; refreshed as time allows.
    Latest,
}

/// One question to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    pub site: Site,
    pub select: Select,
    pub reduction: Reduction,
    pub cadence: Cadence,
}

impl Probe {
    /// A lossless series over all tokens.
    pub fn series(layer: usize, point: Point, reduction: Reduction) -> Self {
        Self {
            site: Site { layer: layer as u16, part: 0, point },
            select: Select::ALL,
            reduction,
            cadence: Cadence::EveryToken,
        }
    }

    /// The newest value at `positions`.
    pub fn latest(layer: usize, point: Point, reduction: Reduction, positions: Positions) -> Self {
        Self {
            site: Site { layer: layer as u16, part: 0, point },
            select: Select { positions, ..Select::ALL },
            reduction,
            cadence: Cadence::Latest,
        }
    }

    /// The same probe for one head only.
    pub fn head(mut self, head: usize) -> Self {
        self.select.heads = Span::One(head as u32);
        self
    }

    /// The same probe for one channel of a head only.
    pub fn channel(mut self, channel: usize) -> Self {
        self.select.channels = Span::One(channel as u32);
        self
    }
}

/// Values answering a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub probe: Probe,
    /// The tokens the values speak of. `EveryToken`: one row of `shape[1..]` each (a matrix row is padded with zeros to
    /// `positions.end` columns). `Latest`: the one token, or for a pooled matrix all tokens it covers.
    pub positions: Range<usize>,
    pub shape: Vec<usize>,
    /// Row-major. NaN stands for what is not known (any more), never for a computed value that is missing.
    pub values: Arc<[f32]>,
    /// Smallest and largest finite value.
    pub range: (f32, f32),
}

/// All that should be observed; replaces what was asked before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    pub probes: Vec<Probe>,
    /// How many likely next tokens to report per position; 0 reports none and skips surprisal and entropy too.
    pub candidates: usize,
}
