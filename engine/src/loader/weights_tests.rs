//! Reading tensors, and every way in which weight files can be wrong.

use half::{bf16, f16};
use std::fs;
use std::path::PathBuf;

use safetensors::Dtype as StoredDtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;

/// A safetensors file with tensors of one dtype.
fn file_of(dtype: StoredDtype, tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let encode = |values: &[f32]| -> Vec<u8> {
        match dtype {
            StoredDtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            StoredDtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            StoredDtype::F8_E4M3 => values.iter().map(|&x| x as u8).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    };
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| encode(values)).collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape, _), bytes)| (*name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn f32_file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    file_of(StoredDtype::F32, tensors)
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(files: &[(&str, &[u8])]) -> (TempDir, Result<Weights, LoadError>) {
    let folder = folder(files);
    let weights = Weights::open(folder.path(), None);
    (folder, weights)
}

fn refusal(files: &[(&str, &[u8])]) -> String {
    open(files).1.err().expect("an error").to_string()
}

/// A header with its length in front.
fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn reads_every_dtype_and_converts_on_request() {
    let values = [0.5, -1.0, 2.0, 0.25, 8.0, -0.125];
    for (stored, dtype) in
        [(StoredDtype::F32, Dtype::F32), (StoredDtype::BF16, Dtype::Bf16), (StoredDtype::F16, Dtype::F16)]
    {
        let file = file_of(stored, &[("a.w", &[2, 3], &values), ("a.b", &[3], &values[..3])]);
        let folder = folder(&[("model.safetensors", &file)]);
        let weights = Weights::open(folder.path(), None).unwrap();
        let matrix = weights.matrix("a.w", 2, 3).unwrap();
        assert_eq!((matrix.dtype(), matrix.to_vec_f32()), (dtype, values.to_vec()));
        assert_eq!(weights.unused(), ["a.b"]);
        assert_eq!((weights.parameters_read(), weights.bytes_read()), (6, 2 * dtype.row_bytes(3)));
        let error = weights.require_all_read().unwrap_err().to_string();
        assert!(error.contains("tensor a.b"), "{error}");
        assert_eq!(weights.scope("a").vector("b", 3).unwrap(), values[..3]);
        weights.require_all_read().unwrap();
        assert_eq!(weights.total_bytes(), 9 * dtype.row_bytes(1));
        assert_eq!(weights.bytes_read(), 6 * dtype.row_bytes(1) + 3 * 4, "vectors are held as f32");
        for other in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let weights = Weights::open(folder.path(), Some(other)).unwrap();
            let matrix = weights.matrix("a.w", 2, 3).unwrap();
            assert_eq!((matrix.dtype(), matrix.to_vec_f32()), (other, values.to_vec()));
            assert_eq!(weights.bytes_read(), 6 * other.row_bytes(1));
        }
    }
}

#[test]
fn eight_bits_are_made_of_the_matrix_as_it_is_used() {
    // Stored as [3, 2] and used as [2, 3]: the blocks lie along the rows of three.
    let values = [1.0, 100.0, -0.5, 30.0, 0.25, -2.0];
    let file = f32_file(&[("a.w", &[3, 2], &values), ("a.b", &[3], &values[..3])]);
    let weights = Weights::embedded("x".to_owned(), file.leak(), Some(Dtype::Q8)).unwrap();
    let matrix = weights.transposed_matrix("a.w", 2, 3).unwrap();
    assert_eq!((matrix.dtype(), weights.bytes_read()), (Dtype::Q8, 2 * 34));
    for (value, exact) in matrix.to_vec_f32().into_iter().zip([1.0, -0.5, 0.25, 100.0, 30.0, -2.0f32]) {
        let largest = if exact.abs() > 1.0 { 100.0 } else { 1.0 };
        assert!((value - exact).abs() < 0.502 * largest / 127.0, "{exact} became {value}");
    }
    assert_eq!(weights.vector("a.b", 3).unwrap(), values[..3], "vectors stay as they are");
    let plain = weights.matrix("a.w", 3, 2).unwrap();
    assert_eq!((plain.rows(), plain.bytes()), (3, 3 * 34));
}

#[test]
fn scopes_nest_and_optional_tensors_may_be_missing() {
    let file = f32_file(&[("m.layers.0.w", &[1], &[3.0]), ("m.conv", &[2, 1, 2], &[1.0, 2.0, 3.0, 4.0])]);
    let weights = Weights::embedded("x".to_owned(), file.leak(), None).unwrap();
    let layer = weights.scope("m.layers").scope("0");
    assert_eq!(layer.name("w"), "m.layers.0.w");
    assert_eq!(layer.vector("w", 1).unwrap(), [3.0]);
    assert!(layer.has("w") && !layer.has("b"));
    assert_eq!(layer.optional_vector("b", 1).unwrap(), None);
    assert_eq!(layer.vector_if(false, "w", 1).unwrap(), None);
    assert_eq!(weights.scope("").tensor("m.conv", &[2, 1, 2]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(weights.names(), ["m.conv", "m.layers.0.w"]);
    assert_eq!(weights.shape("m.conv"), Some(&[2, 1, 2][..]));
}

#[test]
fn other_spellings_and_headless_files() {
    let file = f32_file(&[("model.backbone.embedding.weight", &[1], &[1.0]), ("model.lm_head.weight", &[1], &[2.0])]);
    let (_folder, weights) = open(&[("consolidated.safetensors", &file)]);
    let weights = weights.unwrap();
    assert_eq!(weights.vector("backbone.embeddings.weight", 1).unwrap(), [1.0]);
    assert_eq!(weights.vector("lm_head.weight", 1).unwrap(), [2.0]);
    let file = f32_file(&[("layers.0.norm.weight", &[1], &[1.0]), ("rotary_emb.inv_freq", &[1], &[1.0])]);
    let (_folder, weights) = open(&[("model.safetensors", &file)]);
    let weights = weights.unwrap();
    assert_eq!(weights.vector("backbone.layers.0.norm.weight", 1).unwrap(), [1.0]);
    weights.require_all_read().unwrap();
}

#[test]
fn shards_are_found_with_and_without_an_index() {
    let (a, b) = (f32_file(&[("a", &[1], &[1.0])]), f32_file(&[("b", &[1], &[2.0])]));
    let index = br#"{"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    let stray = f32_file(&[("a", &[1], &[9.0])]);
    let (_folder, weights) = open(&[
        ("one.safetensors", &a),
        ("two.safetensors", &b),
        ("model.safetensors.index.json", index),
        ("consolidated.safetensors", &stray),
    ]);
    let weights = weights.unwrap();
    assert_eq!((weights.vector("a", 1).unwrap(), weights.vector("b", 1).unwrap()), (vec![1.0], vec![2.0]));

    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let (_folder, weights) = open(&[(names[0], &a), (names[1], &b), ("consolidated.safetensors", &stray)]);
    assert_eq!(weights.unwrap().names(), ["a", "b"]);
    let error = refusal(&[(names[0], &a)]);
    assert!(error.contains(names[1]), "{error}");
    let error = refusal(&[("one.safetensors", &a), ("model.safetensors.index.json", index)]);
    assert!(error.contains("two.safetensors") && error.contains("index.json"), "{error}");
    let error = refusal(&[("one.safetensors", &a), ("two.safetensors", &stray)]);
    assert!(error.contains("one.safetensors") && error.contains("two.safetensors"), "{error}");
    for (index, word) in [
        ("{", "JSON"),
        ("{}", "weight_map"),
        (r#"{"weight_map": {}}"#, "empty"),
        (r#"{"weight_map": {"a": 3}}"#, "file names"),
        (r#"{"weight_map": {"a": "../one.safetensors"}}"#, "plain file name"),
    ] {
        let error = refusal(&[("one.safetensors", &a), ("model.safetensors.index.json", index.as_bytes())]);
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn folders_without_safetensors() {
    assert!(refusal(&[("config.json", b"{}")]).contains("no *.safetensors"));
    let error = refusal(&[("pytorch_model.bin", b"")]);
    assert!(error.contains("pytorch_model.bin") && error.contains("convert"), "{error}");
    let error = Weights::open(&PathBuf::from("/nowhere/at/all"), None).err().unwrap().to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
}

#[test]
fn damaged_files_are_explained() {
    let good = f32_file(&[("a", &[2], &[1.0, 2.0])]);
    let tensor = |offsets: &str| format!(r#"{{"a": {{"dtype": "F32", "shape": [2], "data_offsets": {offsets}}}}}"#);
    let two = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let absurd = r#"{"a": {"dtype": "F32", "shape": [18446744073709551615, 3], "data_offsets": [0, 8]}}"#;
    let cases: [(Vec<u8>, &str); 12] = [
        (Vec::new(), "0 bytes"),
        (vec![1, 2, 3], "3 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "header"),
        (90_000_000u64.to_le_bytes().to_vec(), "header"),
        (good[..good.len() - 1].to_vec(), "cut off"),
        ([&good[..], &[0]].concat(), "fill"),
        (with_header("not json", &[0; 8]), "JSON"),
        (with_header(&tensor("[0, 4]"), &[0; 4]), "shape"),
        (with_header(&tensor("[8, 16]"), &[0; 16]), "tensor a"),
        (with_header(&tensor("[0, 1000000000000]"), &[0; 8]), "shape"),
        (with_header(two, &[0; 4]), "overlaps"),
        (with_header(absurd, &[0; 8]), "overflow"),
    ];
    for (file, word) in cases {
        let error = refusal(&[("model.safetensors", &file)]);
        assert!(error.contains("model.safetensors") && error.contains(word), "expected {word:?} in: {error}");
    }
    let error = refusal(&[("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")]);
    assert!(error.contains("git lfs pull"), "{error}");
}

#[test]
fn the_first_bad_element_is_found_in_any_block() {
    for index in [0, 1, 1023, 1024, 5000] {
        let mut values = vec![0.5; 5001];
        values[index] = f32::NEG_INFINITY;
        let file = f32_file(&[("a", &[5001], &values)]);
        let error = Weights::embedded("x".to_owned(), file.leak(), None).unwrap().vector("a", 5001).unwrap_err();
        assert!(error.to_string().contains(&format!("is -inf at element {index}:")), "{error}");
    }
}

#[test]
fn wrong_tensors_are_named() {
    let file = f32_file(&[
        ("backbone.layers.0.mixer.in_proj.weight", &[2, 2], &[1.0, 2.0, f32::NAN, 4.0]),
        ("big", &[1, 2], &[1.0, 1e6]),
    ]);
    let folder = folder(&[("model.safetensors", &file)]);
    let weights = Weights::open(folder.path(), Some(Dtype::F16)).unwrap();
    let message = |result: Result<Matrix, LoadError>| result.unwrap_err().to_string();
    let name = "backbone.layers.0.mixer.in_proj.weight";
    let error = message(weights.matrix(name, 2, 2));
    assert!(error.contains(name) && error.contains("NaN") && error.contains("element 2"), "{error}");
    let error = message(weights.matrix(name, 4, 2));
    assert!(error.contains("[4, 2]") && error.contains("[2, 2]") && error.contains(name), "{error}");
    let error = message(weights.matrix("backbone.layers.0.mixer.in_proj.bias", 4, 2));
    assert!(error.contains("closest: backbone.layers.0.mixer.in_proj.weight)"), "{error}");
    let error = message(weights.matrix("big", 1, 2));
    assert!(error.contains("1000000") && error.contains("f16") && error.contains("element 1"), "{error}");

    let file = file_of(StoredDtype::F8_E4M3, &[("a", &[2], &[1.0, 2.0])]);
    let weights = Weights::embedded("x".to_owned(), file.leak(), None).unwrap();
    let error = weights.vector("a", 2).unwrap_err().to_string();
    assert!(error.contains("F8_E4M3") && error.contains("tensor a"), "{error}");
}
