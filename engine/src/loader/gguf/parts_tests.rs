use std::fs;

use candle_core::Device;
use candle_core::quantized::{QTensor, gguf_file};

use super::super::tests::{goldens, logits};
use super::*;
use crate::loader;
use crate::protocol::ModelSource;

type Metadata = Vec<(String, gguf_file::Value)>;
type Tensors = Vec<(String, QTensor)>;

/// The golden of this name in `count` parts, tensors dealt out in turn; `change` sees the metadata of each part before it is written.
fn split(file: &str, folder: &Path, count: usize, change: impl Fn(usize, &mut Metadata, &mut Tensors)) -> Vec<PathBuf> {
    use gguf_file::Value::{I32, U16};
    let mut reader = fs::File::open(goldens().join("gguf").join(format!("{file}.gguf"))).unwrap();
    let content = gguf_file::Content::read(&mut reader).unwrap();
    let mut names: Vec<&String> = content.tensor_infos.keys().collect();
    names.sort();
    let path_of = |part: usize| folder.join(format!("{file}{}", ending(part as u64, count as u64)));
    for part in 0..count {
        let mut metadata = vec![
            ("split.no".to_owned(), U16(part as u16)),
            ("split.count".to_owned(), U16(count as u16)),
            ("split.tensors.count".to_owned(), I32(names.len() as i32)),
        ];
        if part == 0 {
            metadata.extend(content.metadata.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        let own = names.iter().skip(part).step_by(count);
        let mut tensors: Tensors =
            own.map(|name| ((*name).clone(), content.tensor(&mut reader, name, &Device::Cpu).unwrap())).collect();
        change(part, &mut metadata, &mut tensors);
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut fs::File::create(path_of(part)).unwrap(), &metadata, &tensors).unwrap();
    }
    (0..count).map(path_of).collect()
}

fn refusal(path: &Path) -> String {
    let opened = loader::open(&ModelSource::Path(path.to_owned()), None);
    opened.err().unwrap_or_else(|| panic!("{} was accepted", path.display())).to_string()
}

/// Also where stacked experts, paired heads and a vocabulary of tensors cross parts.
#[test]
fn any_part_and_the_folder_stand_for_the_model() {
    for (file, count) in [("granite_moe-bf16", 3), ("llama_rope3-q8_0", 2), ("mamba2_b-f32", 5)] {
        let folder = tempfile::tempdir().unwrap();
        let parts = split(file, folder.path(), count, |_, _, _| {});
        let whole = logits(goldens().join("gguf").join(format!("{file}.gguf")), None);
        for path in parts.iter().chain([&folder.path().to_owned()]) {
            assert_eq!(logits(path.clone(), None), whole, "{}", path.display());
        }
        let loaded = loader::open(&ModelSource::Path(parts[1].clone()), None).unwrap();
        assert_eq!(loaded.name, file);
        assert!(loaded.format.starts_with(&format!("GGUF in {count} parts, ")), "{}", loaded.format);
    }
}

#[test]
fn a_part_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let parts = split("llama_rope3-f32", folder.path(), 3, |_, _, _| {});
    for missing in 0..3 {
        let bytes = fs::read(&parts[missing]).unwrap();
        fs::remove_file(&parts[missing]).unwrap();
        let name = parts[missing].file_name().unwrap().to_str().unwrap();
        for path in parts.iter().filter(|path| **path != parts[missing]).chain([&folder.path().to_owned()]) {
            let error = refusal(path);
            assert!(
                error.contains(&format!("expects the file {name}")) && error.ends_with("download it too"),
                "{error}"
            );
        }
        fs::write(&parts[missing], bytes).unwrap();
    }
    // Renamed, a part no longer says where the others are.
    let renamed = folder.path().join("model.gguf");
    fs::rename(&parts[1], &renamed).unwrap();
    let error = refusal(&renamed);
    assert!(error.contains("part 2 of 3") && error.contains("-00002-of-00003.gguf"), "{error}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    use gguf_file::Value::{U16, U32};
    let folder = tempfile::tempdir().unwrap();
    let set = |metadata: &mut Metadata, key: &str, value: gguf_file::Value| {
        metadata.iter_mut().find(|(other, _)| other == key).unwrap().1 = value;
    };
    let split = |change: &dyn Fn(usize, &mut Metadata, &mut Tensors)| {
        let parts = split("llama_rope3-f32", folder.path(), 3, change);
        (refusal(&parts[0]), refusal(&parts[2]))
    };
    let second = "llama_rope3-f32-00002-of-00003.gguf";

    let (first, last) = split(&|part, metadata, _| {
        if part == 1 {
            set(metadata, "split.count", U16(4));
        }
    });
    assert_eq!(first, last);
    assert!(first.contains(second) && first.contains("not part 2 of 3"), "{first}");

    let (first, _) = split(&|part, metadata, _| {
        if part == 1 {
            set(metadata, "split.no", U16(2));
        }
    });
    assert!(first.contains(second) && first.contains("not part 2 of 3"), "{first}");

    // The same tensor in two parts.
    let (first, _) = split(&|part, metadata, tensors| {
        if part == 1 {
            let twice = QTensor::quantize(
                &tensors[0].1.dequantize(&Device::Cpu).unwrap(),
                candle_core::quantized::GgmlDType::F32,
            );
            tensors.push(("token_embd.weight".to_owned(), twice.unwrap()));
        }
        metadata.retain(|(key, _)| key != "split.tensors.count");
    });
    assert!(first.contains("token_embd.weight is in both") && first.contains(second), "{first}");

    // A part of another download, with fewer tensors.
    let (first, _) = split(&|part, _, tensors| {
        if part == 2 {
            tensors.pop();
        }
    });
    assert!(first.contains("tensors together, but it says"), "{first}");

    let (first, _) = split(&|_, metadata, _| set(metadata, "split.no", U32(7)));
    assert!(first.contains("part number 7, counted from 0, of 3"), "{first}");
}

#[test]
fn a_folder_of_several_models_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama_rope3-f32", "mamba2_b-f32"] {
        split(name, folder.path(), 2, |_, _, _| {});
    }
    let error = refusal(folder.path());
    assert!(error.contains("several GGUF models, such as llama_rope3-f32-00001-of-00002.gguf and mamba2_b"), "{error}");
}
