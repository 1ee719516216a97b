//! Whole folders.

use std::fs;
use std::path::PathBuf;

use super::*;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens")
}

fn refusal(path: &Path) -> String {
    open(&ModelSource::Path(path.to_owned()), None).err().expect("an error").to_string()
}

#[test]
fn every_golden_folder_opens() {
    let folders = fs::read_dir(goldens()).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<PathBuf> = folders.filter(|folder| folder.join("config.json").is_file()).collect();
    assert!(folders.len() >= 10);
    for folder in folders {
        let loaded = open(&ModelSource::Path(folder.clone()), None).unwrap();
        crate::model::Model::load(loaded.spec, &loaded.weights, |_| true)
            .unwrap_or_else(|e| panic!("{}: {e}", loaded.name));
        assert_eq!(Some(loaded.name.as_str()), folder.file_name().and_then(|name| name.to_str()));
        assert_eq!(loaded.tokenizer.is_some(), folder.join("tokenizer.json").is_file());
    }
}

#[test]
fn paths_that_are_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.txt");
    fs::write(&file, "text").unwrap();
    assert!(refusal(&file).contains("is a file"));
    assert!(refusal(&folder.path().join("nothing")).contains("does not exist"));
    assert!(refusal(folder.path()).contains("no config.json"));
    let config = folder.path().join("config.json");
    fs::write(&config, r#"{"model_type": "gpt3"}"#).unwrap();
    let error = refusal(folder.path());
    assert!(error.contains("config.json") && error.contains("gpt3") && error.contains("bamba"), "{error}");
    fs::write(&config, r#"{"model_type": "mamba"}"#).unwrap();
    assert!(refusal(folder.path()).contains("no *.safetensors"));
}

#[test]
fn a_broken_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(goldens().join("mamba_a").join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let error = refusal(folder.path());
    assert!(error.contains("tokenizer.json") && error.contains("--tokens"), "{error}");
}

#[test]
fn names_of_folders() {
    assert_eq!(folder_name(Path::new("/models/tiny/")), "tiny");
    assert_eq!(folder_name(Path::new("/")), "/");
    assert!(!folder_name(Path::new(".")).is_empty());
}
