//! Bytes of tokens in each of the spellings.

use serde_json::json;

use super::*;

const TEXTS: [&str; 7] = [
    "The gate forgets the state.",
    " leading space, and  two spaces\n\ttab",
    "Η κατάσταση ξεχνά",
    "状態を忘れる。",
    "waves 🌊🙂 and a family 👩‍👩‍👧",
    "नमस्ते e\u{301}\u{ad}\u{feff}",
    "",
];

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": !special, "special": special})
}

/// 256 byte tokens, one merge, one special and one plain added token.
fn byte_level() -> Tokenizer {
    let mut chars: Vec<(char, u8)> = byte_of_char().into_iter().collect();
    chars.sort_by_key(|&(_, byte)| byte);
    let mut vocab: serde_json::Map<String, Value> =
        chars.iter().map(|&(c, byte)| (c.to_string(), json!(byte))).collect();
    vocab.insert("Ġt".to_owned(), json!(256));
    let file = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [
            added(257, "<|end|>", true),
            added(258, "    ", false),
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [["Ġ", "t"]]}
    });
    Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
}

fn sentence_piece() -> Tokenizer {
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255u32).map(|byte| (format!("<0x{byte:02X}>"), json!(byte + 3))).collect();
    for (id, token) in ["<unk>", "<s>", "</s>"].into_iter().enumerate() {
        vocab.insert(token.to_owned(), json!(id));
    }
    for (i, token) in ["▁", "t", "h", "e", "▁t", "th", "▁th", "▁the"].into_iter().enumerate() {
        vocab.insert(token.to_owned(), json!(259 + i));
    }
    let special = |id: u32, content: &str| added(id, content, true);
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["▁", "t"], ["t", "h"], ["▁t", "h"], ["▁th", "e"]]}
    });
    Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
}

fn joined(tokenizer: &Tokenizer, ids: &[TokenId]) -> Vec<u8> {
    ids.iter().flat_map(|&id| tokenizer.bytes(id)).collect()
}

#[test]
fn bytes_of_byte_level_tokens_join_to_the_text() {
    let tokenizer = byte_level();
    for text in TEXTS {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(joined(&tokenizer, &ids), text.as_bytes());
        assert_eq!(tokenizer.decode(&ids), text);
    }
    assert_eq!(tokenizer.bytes(256), b" t");
    assert!(tokenizer.encode("The gate forgets").unwrap().len() > 4, "the file's truncation is off");
}

#[test]
fn a_character_split_over_tokens_is_whole_in_the_end() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("🌊").unwrap();
    assert_eq!(ids.len(), 4);
    assert_eq!(tokenizer.decode(&ids), "🌊");
    assert_eq!(tokenizer.decode(&ids[..3]), "\u{fffd}");
    assert_eq!(tokenizer.bytes(ids[0]), [0xF0]);
}

#[test]
fn special_and_added_tokens() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("a<|end|>    b").unwrap();
    assert!(ids.contains(&257) && ids.contains(&258), "{ids:?}");
    assert_eq!(tokenizer.special(257).as_deref(), Some("<|end|>"));
    assert_eq!((tokenizer.bytes(257), tokenizer.special(65)), (Vec::new(), None));
    assert_eq!(tokenizer.bytes(258), b"    ");
    assert_eq!(tokenizer.decode(&ids), "a    b");
    assert_eq!(tokenizer.vocab_size(), 259);
    for unknown in [259, TokenId::MAX] {
        assert_eq!((tokenizer.bytes(unknown), tokenizer.special(unknown)), (Vec::new(), None));
    }
}

#[test]
fn sentence_piece_spaces_and_byte_fallback() {
    let tokenizer = sentence_piece();
    let ids = tokenizer.encode("the the 🌊").unwrap();
    assert_eq!(ids[0], 1, "the tokenizer's own beginning of text");
    assert_eq!(ids[1], 266);
    assert_eq!(tokenizer.bytes(266), b" the");
    assert_eq!(joined(&tokenizer, &ids), " the the 🌊".as_bytes());
    assert_eq!(tokenizer.decode(&ids), "the the 🌊");
}

#[test]
fn the_shared_golden_tokenizer() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tokenizer");
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    let samples: Value = serde_json::from_slice(&std::fs::read(folder.join("samples.json")).unwrap()).unwrap();
    for sample in samples.as_array().unwrap() {
        let text = sample["text"].as_str().unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(json!(ids), sample["ids"], "{text}");
        if !text.contains("<|endoftext|>") {
            assert_eq!(joined(&tokenizer, &ids), text.as_bytes());
        }
    }
}

#[test]
fn broken_files_are_explained() {
    for (file, word) in [
        (&b""[..], "not a tokenizer.json"),
        (b"{", "not a tokenizer.json"),
        (b"{\"model\": {\"type\": \"BPE\"}}", "not a tokenizer.json"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (br#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#, "empty"),
        (br#"{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}"#, "4000000000"),
    ] {
        let error = Tokenizer::from_bytes(file).err().expect("an error").to_string();
        assert!(error.contains(word), "{error}");
    }
}
