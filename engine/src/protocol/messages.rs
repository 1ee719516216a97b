//! What is told and asked: tokens, predictions, frames, events, commands.

use std::sync::Arc;

use super::{Device, Dtype, ModelInfo, ModelSource, Observation, Reading, TokenId};
use crate::sampler::Sampling;

/// Where a token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenSource {
    Prompt,
    Sampled,
    /// Put there by the user instead of a sample.
    Forced,
}

/// One token of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRecord {
    pub position: usize,
    pub id: TokenId,
    pub source: TokenSource,
    /// The bytes it stands for; a character may be split over several tokens. Empty for special tokens.
    pub bytes: Vec<u8>,
    /// The vocabulary's own spelling of a special token such as `<|endoftext|>`.
    pub special: Option<String>,
}

/// A likely next token.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub id: TokenId,
    pub bytes: Vec<u8>,
    pub special: Option<String>,
    /// Under the model itself, before temperature and truncation.
    pub probability: f32,
}

/// What the model expects after having read the token at `position`.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    pub position: usize,
    pub entropy_bits: f32,
    /// −log₂ p of the token at `position` under the prediction before it; none for the first token.
    pub surprisal_bits: Option<f32>,
    /// Most likely first.
    pub candidates: Vec<Candidate>,
}

/// What the engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RunState {
    /// No model.
    #[default]
    Empty,
    /// Waiting for a command.
    Paused,
    /// Reading the prompt, or replaying towards a position.
    Reading,
    Running,
}

/// Milliseconds per token and memory, averaged over the last tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Performance {
    pub tokens_per_s: f32,
    pub prefill_tokens_per_s: f32,
    pub model_ms: f32,
    pub probes_ms: f32,
    pub transfer_ms: f32,
    pub state_bytes: usize,
    pub kv_bytes: usize,
    /// GPU memory in use, of weights, memories, snapshots and workspace.
    pub device_bytes: usize,
    /// Recorded gates, keys and values of past tokens.
    pub tape_bytes: usize,
    pub snapshot_bytes: usize,
    /// What was bounded or dropped to stay in the budgets, one sentence each.
    pub bounded: Vec<String>,
}

/// Work on past tokens that a new probe asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backfill {
    pub done: usize,
    pub total: usize,
}

/// One batch of news.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Counts prompts; a new number means that everything known of tokens is void.
    pub epoch: u64,
    /// Within an epoch: only the first `keep` tokens of what was sent earlier are still true (a branch cut the rest).
    pub keep: Option<usize>,
    pub state: RunState,
    /// Tokens known (prompt, sampled, forced).
    pub length: usize,
    /// Tokens processed; the next step reads the token at this position, or samples it.
    pub position: usize,
    /// New tokens, in order.
    pub tokens: Vec<TokenRecord>,
    pub predictions: Vec<Prediction>,
    pub readings: Vec<Reading>,
    pub performance: Performance,
    pub backfill: Option<Backfill>,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The requested number of tokens was made.
    Length,
    /// The model ended the text.
    EndOfText,
    /// The user stopped it.
    Stopped,
}

impl FinishReason {
    /// The spelling used in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::EndOfText => "end_of_text",
            Self::Stopped => "stopped",
        }
    }
}

/// An error as a person should read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One sentence: what went wrong and what to do next.
    pub message: String,
    /// The chain of causes, for copying.
    pub details: String,
}

/// What the engine tells.
#[derive(Clone, Debug)]
pub enum Event {
    Loading { fraction: f32, what: String },
    Loaded(Arc<ModelInfo>),
    Frame(Arc<Frame>),
    Done(FinishReason),
    Failed(Failure),
}

/// A prompt as text, or as token ids for folders without a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptInput {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// What can be asked of the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `dtype`: what to hold the weights in; the file's own if none. `device`: where to compute. `memory`: bytes of a GPU's memory to take at
    /// most; all that is free if none.
    Load {
        source: ModelSource,
        dtype: Option<Dtype>,
        device: Device,
        memory: Option<usize>,
    },
    /// Starts a new text and reads it; the run state stays paused.
    Prompt(PromptInput),
    Sample(Sampling),
    /// Makes `tokens` more tokens.
    Run {
        tokens: usize,
    },
    /// One token.
    Step,
    Pause,
    /// Ends the run; what is left of its tokens is forgotten.
    Stop,
    /// At most so many tokens/s; none is full speed.
    Speed(Option<f32>),
    /// Makes `position` tokens the processed ones, exactly as if the run had stopped there; later tokens stay known.
    Seek {
        position: usize,
    },
    /// Cuts the text before `position` and puts `token` there, then reads it.
    Force {
        position: usize,
        token: TokenId,
    },
    Observe(Observation),
    Shutdown,
}
