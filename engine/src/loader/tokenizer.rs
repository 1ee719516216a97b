//! tokenizer.json: text → token ids, and token ids → the bytes they stand for.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::tokenizer::Tokenizer as HfTokenizer;

use super::world::World;
use crate::protocol::TokenId;

/// Ids beyond this are taken for damage; the largest vocabularies have 2^18 entries.
const MAX_ID: TokenId = 1 << 24;

/// Why a tokenizer.json cannot be used, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("it is not a tokenizer.json that Hugging Face tokenizers can read: {0}")]
    Broken(String),
    #[error("its vocabulary is empty")]
    Empty,
    #[error("it has a token id of {id}, more than any vocabulary")]
    IdTooLarge { id: TokenId },
    #[error("the text cannot be turned into tokens: {0}")]
    Encode(String),
}

/// A tokenizer and the bytes of each of its tokens.
pub struct Tokenizer {
    inner: Inner,
    /// Indexed by token id; an id that the vocabulary skips stands for no bytes.
    pieces: Vec<Piece>,
    /// The decoder removes the space that the first word of a text was given.
    strips_first_space: bool,
}

/// What turns text into ids.
enum Inner {
    /// A tokenizer.json, or what says the same.
    HuggingFace(Box<HfTokenizer>),
    /// RWKV's vocabulary.
    World(World),
}

#[derive(Clone, Default)]
struct Piece {
    bytes: Box<[u8]>,
    special: Option<Box<str>>,
}

/// How the vocabulary spells bytes.
enum Spelling {
    /// One printable character a byte (GPT-2).
    ByteLevel(HashMap<char, u8>),
    /// `▁` for a space, `<0xNN>` for a byte that is no character of the vocabulary.
    SentencePiece,
    /// The text itself, an end of a word marked by a suffix such as `</w>`.
    Plain { word_end: Option<String> },
}

impl Tokenizer {
    /// From the bytes of a tokenizer.json. Truncation and padding that it may ask for are switched off.
    ///
    /// # Errors
    /// [`TokenizerError`], all but `Encode`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(TokenizerError::Broken("it is a Git LFS pointer, run `git lfs pull`".to_owned()));
        }
        let mut inner = HfTokenizer::from_bytes(bytes).map_err(|error| TokenizerError::Broken(error.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| TokenizerError::Broken(error.to_string()))?;
        let vocabulary = inner.get_vocab(true);
        let last = *vocabulary.values().max().ok_or(TokenizerError::Empty)?;
        if last > MAX_ID {
            return Err(TokenizerError::IdTooLarge { id: last });
        }

        let decoder = to_value(inner.get_decoder());
        let spelling = spelling(&decoder, &to_value(inner.get_pre_tokenizer()));
        let mut pieces = vec![Piece::default(); last as usize + 1];
        for (token, id) in vocabulary {
            pieces[id as usize].bytes = spelling.bytes(&token).into();
        }
        // Added tokens are matched as they stand, whatever the spelling of the rest.
        for (id, added) in inner.get_added_tokens_decoder() {
            let Some(piece) = pieces.get_mut(id as usize) else { continue };
            *piece = match added.special {
                true => Piece { bytes: Box::default(), special: Some(added.content.into()) },
                false => Piece { bytes: added.content.into_bytes().into(), special: None },
            };
        }
        let strips_first_space = any_part(&decoder, &|part| {
            (part["type"] == "Strip" && part["content"] == " " && part["start"].as_u64() > Some(0))
                || (part["type"] == "Metaspace" && part["prepend_scheme"] != "never")
        });
        Ok(Self { inner: Inner::HuggingFace(Box::new(inner)), pieces, strips_first_space })
    }

    /// RWKV's world vocabulary; id 0 ends a text.
    pub fn from_world(world: World) -> Self {
        let piece = |bytes: &Vec<u8>| Piece { bytes: bytes.as_slice().into(), special: None };
        let mut pieces: Vec<Piece> = world.pieces().iter().map(piece).collect();
        pieces[0].special = Some("<|endoftext|>".into());
        Self { inner: Inner::World(world), pieces, strips_first_space: false }
    }

    /// The token ids of a text, with the special tokens that the tokenizer itself puts around one.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] where the text has characters that the vocabulary cannot spell and the file forbids that.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let inner = match &self.inner {
            Inner::HuggingFace(inner) => inner,
            Inner::World(world) => return Ok(world.encode(text)),
        };
        let encoding = inner.encode_fast(text, true).map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The bytes that a token adds to the text, possibly part of a character; none for special tokens and unknown ids.
    pub fn bytes(&self, id: TokenId) -> Vec<u8> {
        self.pieces.get(id as usize).map_or_else(Vec::new, |piece| piece.bytes.to_vec())
    }

    /// The spelling of a special token such as `<|endoftext|>`; none for tokens that are text.
    pub fn special(&self, id: TokenId) -> Option<String> {
        self.pieces.get(id as usize)?.special.as_deref().map(str::to_owned)
    }

    /// The text of several tokens, special ones left out. Bytes are joined first, so a character that is split over tokens is whole;
    /// only what is no UTF-8 in the end becomes �.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut bytes: Vec<u8> = Vec::new();
        for piece in ids.iter().filter_map(|&id| self.pieces.get(id as usize)) {
            bytes.extend_from_slice(&piece.bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        match text.strip_prefix(' ').filter(|_| self.strips_first_space) {
            Some(text) => text.to_owned(),
            None => text.into_owned(),
        }
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }
}

impl Spelling {
    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            // A token with any character outside the table is no byte-level token: it stands for itself.
            Self::ByteLevel(table) => token
                .chars()
                .map(|c| table.get(&c).copied())
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Self::Plain { word_end: Some(suffix) } => match token.strip_suffix(suffix.as_str()) {
                Some(word) => format!("{word} ").into_bytes(),
                None => token.as_bytes().to_vec(),
            },
            Self::Plain { word_end: None } => token.as_bytes().to_vec(),
        }
    }
}

/// The byte of a token like `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

fn spelling(decoder: &Value, pre_tokenizer: &Value) -> Spelling {
    let is = |part: &Value, kind: &str| part["type"] == kind;
    if any_part(decoder, &|part| is(part, "ByteLevel"))
        || (decoder.is_null() && any_part(pre_tokenizer, &|part| is(part, "ByteLevel")))
    {
        return Spelling::ByteLevel(byte_of_char());
    }
    let sentence_piece = |part: &Value| {
        is(part, "Metaspace") || is(part, "ByteFallback") || (is(part, "Replace") && part["pattern"]["String"] == "▁")
    };
    if any_part(decoder, &sentence_piece) || any_part(pre_tokenizer, &sentence_piece) {
        return Spelling::SentencePiece;
    }
    let word_end = is(decoder, "BPEDecoder").then(|| decoder["suffix"].as_str().unwrap_or("</w>").to_owned());
    Spelling::Plain { word_end }
}

/// Whether the decoder or pre-tokenizer, or a part of it where it is a sequence, is what is looked for.
fn any_part(value: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
    let parts = ["decoders", "pretokenizers"].iter().filter_map(|key| value[*key].as_array()).flatten();
    wanted(value) || parts.into_iter().any(|part| any_part(part, wanted))
}

fn to_value<T: serde::Serialize>(part: Option<&T>) -> Value {
    part.and_then(|part| serde_json::to_value(part).ok()).unwrap_or(Value::Null)
}

/// GPT-2's table backwards: printable Latin-1 characters stand for themselves, the other bytes in turn for U+0100 and on.
fn byte_of_char() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    let mut char_of = |byte: u8| {
        if printable(byte) {
            return char::from(byte);
        }
        let c = char::from_u32(next).expect("below the surrogates");
        next += 1;
        c
    };
    (0..=u8::MAX).map(|byte| (char_of(byte), byte)).collect()
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
