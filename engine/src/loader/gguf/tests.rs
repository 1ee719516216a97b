use std::fs;
use std::path::PathBuf;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};

use super::*;
use crate::hooks::Hooks;
use crate::loader::tokenizer::Tokenizer;
use crate::model::{Logits, Model};
use crate::protocol::ModelSource;

pub fn goldens() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens"))
}

/// Logits of 24 tokens.
pub fn logits(path: PathBuf, dtype: Option<Dtype>) -> Vec<f32> {
    let loaded = super::super::open(&ModelSource::Path(path.clone()), dtype)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let model =
        Model::load(loaded.spec, &loaded.weights, |_| true).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let vocab = model.spec().vocab_size as u32;
    let tokens: Vec<u32> = (0..24u32).map(|i| (i * 7 + 3) % vocab.min(32)).collect();
    let (mut slots, mut out) = (model.slots(), Vec::new());
    model.forward(&tokens, 0, &mut slots, &mut Hooks::none(), Logits::All(&mut out));
    out
}

/// max |a − b| / max |b|.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

/// Files that llama.cpp's converter has written from the folders of the same name.
#[test]
fn every_file_means_what_its_folder_means() {
    let mut seen = 0;
    for entry in fs::read_dir(goldens().join("gguf")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (case, kind) = stem.rsplit_once('-').unwrap();
        // In bf16 and f32 nothing is lost; in f16 and q8_0 the folder's numbers are rounded, which says itself in the distance.
        let bound = match kind {
            "f32" | "bf16" => 1e-5,
            "f16" => 2e-3,
            _ => 3e-2,
        };
        let distance = distance(&logits(path, None), &logits(goldens().join(case), None));
        println!("{stem:<28} {distance:.1e}");
        assert!(distance <= bound, "{stem}: {distance}");
        seen += 1;
    }
    assert!(seen >= 15, "{seen} files");
}

/// Asked for as q8, blocks of 8 bits stay those of the file, bit for bit: what differs from their plain numbers is the order of sums.
#[test]
fn blocks_of_eight_bits_stay_as_they_are() {
    let path = goldens().join("gguf/llama_rope3-q8_0.gguf");
    let loaded = super::super::open(&ModelSource::Path(path.clone()), Some(Dtype::Q8)).unwrap();
    let stored = loaded.weights.matrix("blk.0.ffn_up.weight", 48, 32).unwrap();
    assert_eq!(stored.dtype(), Dtype::Q8);
    let plain = super::super::open(&ModelSource::Path(path.clone()), None).unwrap();
    let plain = plain.weights.matrix("blk.0.ffn_up.weight", 48, 32).unwrap();
    assert_eq!((plain.dtype(), stored.to_vec_f32()), (Dtype::F32, plain.to_vec_f32()));
    let x: Vec<f32> = (0..32).map(|i| (i as f32).sin()).collect();
    let products = [&stored, &plain].map(|matrix| {
        let mut y = vec![0.0; 48];
        statescope_kernels::linear(matrix, None, &x, &mut y);
        y
    });
    let distance = distance(&products[0], &products[1]);
    println!("q8 against f32 of the same blocks: {distance:.1e}");
    assert!(distance <= 1e-6, "{distance}");
}

/// By name.
type Tensors = Vec<(String, QTensor)>;

/// A tiny Llama with 256 inputs, as llama.cpp names its tensors, all matrices of one kind; and the numbers that candle makes of them.
fn llama(kind: GgmlDType) -> (Tensors, Tensors) {
    let (d, width, vocab) = (256, 256, 32);
    let mut seed = 1u32;
    let mut random = |shape: &[usize]| {
        let next = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(seed >> 8) / f64::from(1 << 24) - 0.5) as f32 * 0.2
        };
        let numbers: Vec<f32> = (0..shape.iter().product()).map(next).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    };
    let mut tensors =
        vec![("token_embd.weight".to_owned(), random(&[vocab, d])), ("output_norm.weight".to_owned(), random(&[d]))];
    for (name, rows) in [
        ("attn_q", d),
        ("attn_k", d),
        ("attn_v", d),
        ("attn_output", d),
        ("ffn_gate", width),
        ("ffn_up", width),
        ("ffn_down", d),
    ] {
        tensors.push((format!("blk.0.{name}.weight"), random(&[rows, 256])));
    }
    for name in ["attn_norm", "ffn_norm"] {
        tensors.push((format!("blk.0.{name}.weight"), random(&[d])));
    }
    let (mut stored, mut turned) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let kind = if tensor.dims().len() == 2 { kind } else { GgmlDType::F32 };
        let blocks = QTensor::quantize(&tensor, kind).unwrap();
        turned.push((
            name.clone(),
            QTensor::quantize(&blocks.dequantize(&Device::Cpu).unwrap(), GgmlDType::F32).unwrap(),
        ));
        stored.push((name, blocks));
    }
    (stored, turned)
}

/// Writes a file with the given tensors and metadata.
fn write(path: &Path, extra: &[(&str, gguf_file::Value)], tensors: &[(String, QTensor)]) {
    use gguf_file::Value::{F32, String as Text, U32};
    let mut metadata = vec![
        ("general.architecture", Text("llama".into())),
        ("llama.block_count", U32(1)),
        ("llama.embedding_length", U32(256)),
        ("llama.feed_forward_length", U32(256)),
        ("llama.attention.head_count", U32(4)),
        ("llama.attention.head_count_kv", U32(4)),
        ("llama.attention.layer_norm_rms_epsilon", F32(1e-5)),
    ];
    metadata.extend(extra.iter().cloned());
    let metadata: Vec<(&str, &gguf_file::Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// Blocks are what candle makes of them: the same file with candle's f32 in their place gives the same logits, bit for bit.
#[test]
fn blocks_are_read_as_candle_reads_them() {
    use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let folder = tempfile::tempdir().unwrap();
    for kind in [Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Q4_0, Q4_1, Q5_0, Q5_1] {
        let (stored, turned) = llama(kind);
        let (blocks, floats) = (folder.path().join("blocks.gguf"), folder.path().join("floats.gguf"));
        write(&blocks, &[], &stored);
        write(&floats, &[], &turned);
        assert_eq!(logits(blocks.clone(), None), logits(floats.clone(), None), "{kind:?}");
        let rounded = distance(&logits(blocks, Some(Dtype::Bf16)), &logits(floats, Some(Dtype::Bf16)));
        assert_eq!(rounded, 0.0, "{kind:?}");
    }
}

#[test]
fn the_format_is_named() {
    let format = |file: &str| super::super::open(&ModelSource::Path(goldens().join(file)), None).unwrap().format;
    assert_eq!(format("gguf/mamba2_b-f32.gguf"), "GGUF, F32");
    assert!(format("gguf/llama_rope3-q8_0.gguf").starts_with("GGUF, Q8_0"));
    assert_eq!(format("mamba_pickle"), "PyTorch pickle");
    assert_eq!(format("mamba_a"), "safetensors");
}

/// The vocabulary inside the file does what the tokenizer.json beside the same vocabulary does.
#[test]
fn byte_level_vocabulary() {
    use gguf_file::Value::{Array, Bool, I32, String as Text, U32};
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(goldens().join("tokenizer/tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(usize, String, i32)> = Vec::new();
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens.push((id.as_u64().unwrap() as usize, token.clone(), 1));
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let (id, text) = (added["id"].as_u64().unwrap() as usize, added["content"].as_str().unwrap().to_owned());
        tokens.retain(|(other, ..)| *other != id);
        tokens.push((id, text, if added["special"] == true { 3 } else { 4 }));
    }
    tokens.sort();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge.as_array() {
        Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        None => merge.as_str().unwrap().to_owned(),
    });
    let metadata = |pre: &str, begins: bool| {
        vec![
            ("tokenizer.ggml.model", Text("gpt2".into())),
            ("tokenizer.ggml.pre", Text(pre.into())),
            ("tokenizer.ggml.tokens", Array(tokens.iter().map(|(_, token, _)| Text(token.clone())).collect())),
            ("tokenizer.ggml.token_type", Array(tokens.iter().map(|(.., kind)| I32(*kind)).collect())),
            ("tokenizer.ggml.merges", Array(merges.clone().map(Text).collect())),
            ("tokenizer.ggml.bos_token_id", U32(5)),
            ("tokenizer.ggml.eos_token_id", U32(0)),
            ("tokenizer.ggml.add_bos_token", Bool(begins)),
        ]
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let (stored, _) = llama(GgmlDType::Q8_0);
    let open = |metadata: &[(&str, gguf_file::Value)]| {
        write(&path, metadata, &stored);
        super::super::open(&ModelSource::Path(path.clone()), None)
    };
    let loaded = open(&metadata("gpt-2", false)).unwrap();
    assert_eq!(loaded.spec.end_tokens, [0]);
    let (ours, theirs) = (loaded.tokenizer.unwrap(), Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap());
    for text in
        ["Once upon a time, there was; it's 12 o'clock.\n\n  Two  spaces", "naïve 中文 👩‍🚀\t!", "", " ", "a\u{0}b"]
    {
        assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{text:?}");
        assert_eq!(ours.decode(&ours.encode(text).unwrap()), text);
    }
    let begun = open(&metadata("gpt-2", true)).unwrap().tokenizer.unwrap();
    assert_eq!(begun.encode("a").unwrap()[0], 5);
    let refused = open(&metadata("no-such-thing", false)).err().unwrap().to_string();
    assert!(refused.contains("no-such-thing"), "{refused}");
    let refused = open(&[("tokenizer.ggml.model", Text("t5".into()))]).err().unwrap().to_string();
    assert!(refused.contains("\"t5\""), "{refused}");
}

/// SentencePiece: the union with the best score is joined first, and bytes stand for what the vocabulary lacks.
#[test]
fn sentence_piece_vocabulary() {
    use gguf_file::Value::{Array, F32, I32, String as Text, U32};
    let mut tokens = vec![("<unk>".to_owned(), 0.0, 2), ("<s>".to_owned(), 0.0, 3), ("</s>".to_owned(), 0.0, 3)];
    tokens.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    let words = ["▁t", "he", "▁the", "▁a", "in", "▁c", "at", "▁cat"];
    tokens.extend(words.iter().enumerate().map(|(rank, word)| ((*word).to_owned(), -(rank as f32), 1)));
    tokens.extend("▁thecainr".chars().map(|c| (c.to_string(), -100.0, 1)));
    let metadata = [
        ("tokenizer.ggml.model", Text("llama".into())),
        ("tokenizer.ggml.tokens", Array(tokens.iter().map(|(token, ..)| Text(token.clone())).collect())),
        ("tokenizer.ggml.scores", Array(tokens.iter().map(|(_, score, _)| F32(*score)).collect())),
        ("tokenizer.ggml.token_type", Array(tokens.iter().map(|(.., kind)| I32(*kind)).collect())),
        ("tokenizer.ggml.bos_token_id", U32(1)),
        ("tokenizer.ggml.eos_token_id", U32(2)),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, &metadata, &llama(GgmlDType::Q8_0).0);
    let tokenizer = super::super::open(&ModelSource::Path(path), None).unwrap().tokenizer.unwrap();
    let id = |token: &str| tokens.iter().position(|(other, ..)| other == token).unwrap() as u32;
    let ids = |parts: &[&str]| parts.iter().map(|part| id(part)).collect::<Vec<_>>();
    assert_eq!(tokenizer.encode("the cat").unwrap(), ids(&["<s>", "▁the", "▁cat"]));
    assert_eq!(tokenizer.encode("a thé").unwrap(), ids(&["<s>", "▁a", "▁t", "h", "<0xC3>", "<0xA9>"]));
    assert_eq!(tokenizer.decode(&tokenizer.encode("a thé cat").unwrap()), "a thé cat");
}

fn refusal(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let opened = super::super::open(&ModelSource::Path(path), None);
    let built = opened.and_then(|loaded| Model::load(loaded.spec, &loaded.weights, |_| true));
    built.err().expect("a damaged file was accepted").to_string()
}

#[test]
fn damaged_files_are_refused() {
    let good = fs::read(goldens().join("gguf/mamba2_b-f32.gguf")).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&bad)
    };
    for len in [0, 3, 4, 8, 23, 24, 100, 1000, good.len() / 2, good.len() - 256] {
        refusal(&good[..len]);
    }
    assert!(with(4, &[9]).contains("version 9"));
    assert!(with(8, &[0xFF; 8]).contains("tensors"));
    assert!(with(16, &[0xFF; 8]).contains("metadata"));
    assert!(with(24, &[0xFF; 8]).contains("bytes of text"));
    let find = |text: &str| good.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    // After a tensor's name: dimensions, sizes, kind, place.
    let tensor = find("token_embd.weight") + "token_embd.weight".len();
    assert!(with(tensor, &[200]).contains("200 dimensions"));
    assert!(with(tensor + 4, &[0xFF; 8]).contains("token_embd.weight"));
    assert!(with(tensor + 20, &[20]).contains("IQ4_NL"));
    assert!(with(tensor + 24, &[1]).contains("multiple of 32"));
    assert!(with(tensor + 24, &[0xE0; 8]).contains("beyond the end"));
    let second = find("blk.0.ssm_in.weight") + "blk.0.ssm_in.weight".len();
    assert!(with(second + 24, &[0; 8]).contains("same place"));
    assert!(with(find("blk.0.ssm_in.weight"), b"blk.1").contains("blk."), "one name twice");
    assert!(with(find("mamba2.block_count") + "mamba2.block_count".len() + 4, &[0xFF; 4]).contains("layers"));
    let architecture = find("general.architecture") + "general.architecture".len() + 12;
    assert!(with(architecture, b"rwkv99").contains("rwkv99"));
}

/// Vocabularies of all kinds are read whatever the weights are: only then it is said that there are none.
#[test]
fn vocabularies_alone() {
    for name in ["gpt2", "llama", "rwkv"] {
        let path = goldens().join(format!("vocabulary/{name}.gguf"));
        let tokenizer = super::super::open(&ModelSource::Path(path), None).unwrap().tokenizer.unwrap();
        let ids = tokenizer.encode("the").unwrap();
        assert_eq!(tokenizer.decode(&ids), "the", "{name}");
        assert!(ids.len() <= 2, "{name}: {ids:?}");
    }
}
