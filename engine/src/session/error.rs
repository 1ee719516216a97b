//! What can go wrong with a text, one sentence each.

use crate::protocol::TokenId;
use crate::runner::DeviceError;

/// Why a text cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SessionError {
    #[error("the prompt is empty; type at least one character, or give at least one token")]
    EmptyPrompt,
    #[error("token {token} at position {position} is outside the vocabulary of {vocab_size}; use ids from 0 to {}", vocab_size - 1)]
    OutOfVocabulary { token: TokenId, position: usize, vocab_size: usize },
    #[error(
        "the model has learned {limit} positions and knows no others, so the text cannot be longer; give a shorter prompt or fewer tokens"
    )]
    TooLong { limit: usize },
    #[error("the first {count} tokens are the model's own meta tokens, which cannot be replaced; choose a later one")]
    MetaToken { count: usize },
    #[error("position {position} does not exist; the text has {length} tokens")]
    NoSuchPosition { position: usize, length: usize },
    #[error(
        "the logits after token {position} are not finite; the weights or the input overflow, so no token can be chosen"
    )]
    NotFinite { position: usize },
    #[error(transparent)]
    Device(#[from] DeviceError),
}
