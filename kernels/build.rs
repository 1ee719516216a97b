//! With feature `cuda`, compiles src/cuda/*.cu into one archive of machine code: sm_80 and sm_90, and compute_80 PTX for chips to come;
//! `*_hopper.cu`, whose instructions are of that chip alone, into sm_90a.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_80,code=compute_80"];

/// Of files whose names end so.
const HOPPER: (&str, &str) = ("_hopper", "arch=compute_90a,code=sm_90a");

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/cuda");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let of_kind = |wanted: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir("src/cuda").expect("src/cuda");
        let paths = entries.map(|entry| entry.expect("an entry of src/cuda").path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == wanted)).collect()
    };
    let (mut sources, headers, nvcc) = (of_kind("cu"), of_kind("cuh"), nvcc());
    sources.sort();
    let mut modules = String::from("&[\n");
    for source in &sources {
        let stem = source.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8");
        let fatbin = out.join(format!("{stem}.fatbin"));
        compile(&nvcc, source, &headers, &fatbin);
        modules += &format!("({stem:?}, include_bytes!({:?}).as_slice()),\n", fatbin.display().to_string());
    }
    fs::write(out.join("modules.rs"), modules + "]").expect("OUT_DIR can be written");
}

/// $NVCC, or the compiler of $CUDA_HOME, or that on the path.
fn nvcc() -> PathBuf {
    let of_home = || env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    env::var_os("NVCC").map(PathBuf::from).or_else(of_home).unwrap_or_else(|| "nvcc".into())
}

/// Compiles a file, unless that was done before with the same arguments: a file takes up to a minute.
fn compile(nvcc: &Path, source: &Path, headers: &[PathBuf], fatbin: &Path) {
    let mut arguments = vec!["-std=c++17", "-O3", "-fatbin", "-lineinfo"];
    let of_hopper = source.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with(HOPPER.0));
    let targets: &[&str] = if of_hopper { &[HOPPER.1] } else { &TARGETS };
    targets.iter().for_each(|target| arguments.extend(["-gencode", target]));
    let (record, asked) = (fatbin.with_extension("arguments"), arguments.join(" "));
    let changed = |path: &Path| fs::metadata(path).and_then(|about| about.modified()).ok();
    let newest_source = headers.iter().map(|header| changed(header)).max().flatten().max(changed(source));
    if changed(fatbin) > newest_source && fs::read_to_string(&record).is_ok_and(|used| used == asked) {
        return;
    }
    let output = Command::new(nvcc).args(&arguments).arg("-o").arg(fatbin).arg(source).output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "feature `cuda` needs NVIDIA's compiler: {} does not start ({error}); install CUDA 13, or set NVCC",
            nvcc.display()
        )
    });
    assert!(output.status.success(), "{} failed:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
    fs::write(record, asked).expect("OUT_DIR can be written");
}
