//! Lists the models of `assets/models` that are complete, for `src/builtin.rs` to embed. Missing ones are left out with a warning, so
//! that the engine builds before they are trained and from a checkout without them.

use std::path::Path;
use std::{env, fs};

const NAMES: [&str; 4] = ["mamba", "mamba2", "transformer", "hybrid"];
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let mut entries = String::new();
    if env::var_os("CARGO_FEATURE_BUILTIN_MODELS").is_some() {
        let assets = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../assets");
        let models = assets.join("models");
        // A path that does not exist would make every build run this again.
        let watched = [&models, &assets].into_iter().find(|path| path.exists());
        if let Some(watched) = watched {
            println!("cargo::rerun-if-changed={}", watched.display());
        }
        for name in NAMES {
            let paths = FILES.map(|file| models.join(name).join(file));
            if let Some(missing) = paths.iter().find(|path| !path.is_file()) {
                println!("cargo::warning=built-in model {name} is left out: there is no {}", missing.display());
                continue;
            }
            let bytes = paths.map(|path| format!("include_bytes!({path:?})")).join(", ");
            entries.push_str(&format!("    ({name:?}, [{bytes}]),\n"));
        }
    }
    let out = Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("builtin_files.rs");
    fs::write(out, format!("const FILES: &[Files] = &[\n{entries}];\n")).expect("OUT_DIR is writable");
}
