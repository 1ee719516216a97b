//! The vocabulary inside a GGUF file, as the tokenizer.json that would say the same: byte-level BPE with one of its pre-tokenizers (`gpt2`),
//! SentencePiece BPE (`llama`), RWKV's world vocabulary (`rwkv`). Any other is refused by name.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::header::{Array, Header, Value};
use crate::loader::tokenizer::Tokenizer;
use crate::loader::world::World;

/// More entries than any vocabulary has.
const MAX_TOKENS: usize = 1 << 22;
/// Longer pieces are whole texts of no use to merges.
const MAX_PIECE: usize = 256;

/// How ggml numbers kinds of tokens.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const FALCON: [&str; 3] = [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"];

/// A pre-tokenizer: what it splits by, one after another; whether a word that is in the vocabulary needs no merges; whether a text begins
/// with the begin token unless the file says otherwise.
type Split = (&'static [&'static str], bool, bool);

/// By the names that llama.cpp gives them.
fn pre_tokenizer(name: &str) -> Option<Split> {
    Some(match name {
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "mellum"
        | "gigachat" => (&[GPT2], false, false),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2" => (&[LLAMA3], true, true),
        "dbrx" | "smaug-bpe" => (&[LLAMA3], false, false),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "solar-open" => (&[QWEN2], false, false),
        "tekken" => (&[TEKKEN], true, true),
        "falcon" => (&FALCON, false, false),
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" => {
            (&[r"\p{N}", GPT2], false, false)
        }
        _ => return None,
    })
}

/// The vocabulary of a file.
struct Vocabulary<'a> {
    header: &'a Header<'a>,
    tokens: Vec<String>,
    kinds: Vec<u64>,
}

/// The tokenizer of a file; none for one that says it has none, or nothing.
///
/// # Errors
/// A kind of vocabulary or pre-tokenizer that is not read, by name; lists that do not belong together.
pub fn tokenizer(header: &Header<'_>) -> Result<Option<Tokenizer>, String> {
    let model = match header.get("tokenizer.ggml.model") {
        None => return Ok(None),
        Some(model) => model.text().ok_or("`tokenizer.ggml.model` is no text")?.to_owned(),
    };
    let list = || array(header, "tokenizer.ggml.tokens");
    let json = match model.as_str() {
        "none" | "no_vocab" => return Ok(None),
        "rwkv" => {
            let pieces = list()?.iter().map(bytes).collect::<Option<Vec<_>>>().ok_or("a token is no text")?;
            return World::from_escaped(&pieces).map(|world| Some(Tokenizer::from_world(world)));
        }
        "gpt2" => Vocabulary::read(header, list()?)?.byte_level()?,
        "llama" => Vocabulary::read(header, list()?)?.sentence_piece()?,
        other => {
            return Err(format!(
                "its vocabulary is of the kind {other:?}, which is not supported: expected \"gpt2\", \"llama\", \"rwkv\" or \"none\""
            ));
        }
    };
    let json = serde_json::to_vec(&json).map_err(|error| error.to_string())?;
    Tokenizer::from_bytes(&json).map(Some).map_err(|error| format!("its vocabulary cannot be used ({error})"))
}

fn bytes(value: Value<'_>) -> Option<&[u8]> {
    if let Value::Text(text) = value { Some(text) } else { None }
}

fn array<'a>(header: &Header<'a>, key: &str) -> Result<Array<'a>, String> {
    match header.get(key) {
        Some(Value::Array(array)) if array.len() <= MAX_TOKENS => Ok(array),
        Some(_) => Err(format!("`{key}` is no list of at most {MAX_TOKENS} entries")),
        None => Err(format!("its metadata lacks `{key}`")),
    }
}

impl<'a> Vocabulary<'a> {
    fn read(header: &'a Header<'a>, list: Array<'a>) -> Result<Self, String> {
        let text = |value: Value| bytes(value).map(|text| String::from_utf8_lossy(text).into_owned());
        let tokens: Vec<String> = list.iter().map(text).collect::<Option<_>>().ok_or("a token is no text")?;
        if tokens.is_empty() {
            return Err("its vocabulary is empty".to_owned());
        }
        let kinds = match header.get("tokenizer.ggml.token_type") {
            None => vec![1; tokens.len()],
            Some(_) => {
                array(header, "tokenizer.ggml.token_type")?.iter().map(|kind| kind.size().unwrap_or(1)).collect()
            }
        };
        if kinds.len() != tokens.len() {
            return Err(format!("it has {} tokens, but kinds of {}", tokens.len(), kinds.len()));
        }
        Ok(Self { header, tokens, kinds })
    }

    fn id(&self, which: &str) -> Option<(usize, &str)> {
        let id = self.header.get(&format!("tokenizer.ggml.{which}_token_id"))?.size()? as usize;
        Some((id, self.tokens.get(id)?))
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        if let Some(Value::Flag(flag)) = self.header.get(&format!("tokenizer.ggml.{key}")) { flag } else { default }
    }

    /// Of two equal tokens the first is what a text becomes.
    fn ids(&self) -> HashMap<&str, usize> {
        self.tokens.iter().enumerate().rev().map(|(id, token)| (token.as_str(), id)).collect()
    }

    /// Tokens that are matched before anything else.
    fn added(&self) -> Json {
        let is_added = |kind: u64| [UNKNOWN, CONTROL, USER_DEFINED].contains(&kind);
        let added = self
            .tokens
            .iter()
            .zip(&self.kinds)
            .enumerate()
            .filter(|(_, (token, kind))| is_added(**kind) && !token.is_empty());
        let token = |(id, (token, kind)): (usize, (&String, &u64))| {
            json!({
                "id": id, "content": token, "special": *kind != USER_DEFINED, "normalized": false, "single_word": false,
                "lstrip": false, "rstrip": false,
            })
        };
        added.map(token).collect()
    }

    /// What stands around a text.
    fn around(&self, begins: bool) -> Json {
        let begin = self.id("bos").filter(|_| self.flag("add_bos_token", begins));
        let end = self.id("eos").filter(|_| self.flag("add_eos_token", false));
        if begin.is_none() && end.is_none() {
            return Json::Null;
        }
        let special =
            |(_, token): (usize, &str), side: usize| json!({ "SpecialToken": { "id": token, "type_id": side } });
        let text = |name: &str, side: usize| json!({ "Sequence": { "id": name, "type_id": side } });
        let one = |name: &str, side: usize| -> Vec<Json> {
            let parts =
                [begin.map(|begin| special(begin, side)), Some(text(name, side)), end.map(|end| special(end, side))];
            parts.into_iter().flatten().collect()
        };
        let tokens: serde_json::Map<String, Json> = [begin, end]
            .into_iter()
            .flatten()
            .map(|(id, token)| (token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] })))
            .collect();
        let pair: Vec<Json> = one("A", 0).into_iter().chain(one("B", 1)).collect();
        json!({ "type": "TemplateProcessing", "single": one("A", 0), "pair": pair, "special_tokens": tokens })
    }

    fn byte_level(&self) -> Result<Json, String> {
        let name = self.header.get("tokenizer.ggml.pre").and_then(|pre| pre.text()).unwrap_or("default");
        let Some((splits, ignore_merges, begins)) = pre_tokenizer(name) else {
            return Err(format!(
                "its pre-tokenizer {name:?} is not supported, so texts would be cut in the wrong places"
            ));
        };
        let merges = array(self.header, "tokenizer.ggml.merges")?;
        let pair = |value: Value| -> Option<[String; 2]> {
            let text = String::from_utf8_lossy(bytes(value)?).into_owned();
            // The space of the pair is the first one that is not the first character.
            let at = text.char_indices().skip(1).find(|&(_, c)| c == ' ')?.0;
            Some([text[..at].to_owned(), text[at + 1..].to_owned()])
        };
        let merges: Vec<[String; 2]> =
            merges.iter().map(pair).collect::<Option<_>>().ok_or("a merge is no pair of tokens")?;
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
        let split = |regex: &&str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        let steps: Vec<Json> = splits.iter().map(split).chain([byte_level.clone()]).collect();
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": self.added(),
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
            "post_processor": self.around(begins),
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges, "vocab": self.ids(), "merges": merges,
            },
        }))
    }

    /// SentencePiece's BPE joins the pair whose union has the best score; written as merges, as transformers does.
    fn sentence_piece(&self) -> Result<Json, String> {
        let scores: Vec<f64> = array(self.header, "tokenizer.ggml.scores")?
            .iter()
            .map(|score| score.number().filter(|score| !score.is_nan()))
            .collect::<Option<_>>()
            .ok_or("a score of its vocabulary is no number")?;
        if scores.len() != self.tokens.len() {
            return Err(format!("it has {} tokens, but scores of {}", self.tokens.len(), scores.len()));
        }
        let ids = self.ids();
        let mut merges: Vec<(f64, usize, usize, [&str; 2])> = Vec::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(_, token)| token.len() <= MAX_PIECE) {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&first), Some(&second)) = (ids.get(left), ids.get(right)) {
                    merges.push((scores[id], first, second, [left, right]));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let merges: Vec<[&str; 2]> = merges.into_iter().map(|(.., pair)| pair).collect();
        let prefix = self.flag("add_space_prefix", true);
        let space = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        let mut before = vec![space(" ", "▁")];
        let mut after = vec![space("▁", " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
        if prefix {
            before.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            after.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let unknown = self.id("unknown").map(|(_, token)| token);
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null,
            "normalizer": { "type": "Sequence", "normalizers": before },
            "added_tokens": self.added(),
            "post_processor": self.around(true),
            "decoder": { "type": "Sequence", "decoders": after },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": ids, "merges": merges,
            },
        }))
    }
}
