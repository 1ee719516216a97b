//! What several tests share: goldens, an observer that keeps everything, the error measure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use statescope_engine::hooks::Observer;
use statescope_engine::model::Model;
use statescope_engine::open::open_model;
use statescope_engine::protocol::{Dtype as Weights, ModelInfo, ModelSource, Point, TokenId};

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn goldens() -> PathBuf {
    root().join("tests/goldens")
}

/// A model ready to run.
pub struct Opened {
    pub model: Arc<Model>,
    pub info: ModelInfo,
}

pub fn open(source: &ModelSource) -> Opened {
    open_as(source, None)
}

fn open_as(source: &ModelSource, dtype: Option<Weights>) -> Opened {
    let (model, _, info) = open_model(source, dtype, |_| true).unwrap_or_else(|e| panic!("{source}: {e}"));
    Opened { model: Arc::new(model), info }
}

/// With weights of eight bits.
pub fn open_q8(case: &str) -> Opened {
    open_as(&ModelSource::Path(goldens().join(case)), Some(Weights::Q8))
}

pub fn open_case(case: &str) -> Opened {
    open(&ModelSource::Path(goldens().join(case)))
}

/// The small checkpoints that the laws are tested on: every mixer in every variation, groups, biases, ties, windows, experts.
pub const CASES: [&str; 62] = [
    "mamba_a",
    "mamba_b",
    "mamba_bf16",
    "falcon_mamba_a",
    "mamba2_a",
    "mamba2_b",
    "mamba2_clamp",
    "bamba_a",
    "bamba_b",
    "jamba_a",
    "hymba_a",
    "hymba_b",
    "zamba_a",
    "zamba2_a",
    "granite_moe",
    "granite_dense",
    "granite_rope",
    "falcon_h1_a",
    "falcon_h1_no_norm",
    "falcon_h1_norm_first",
    "nemotron_h_a",
    "nemotron_h_groups",
    "qwen3_next_a",
    "lfm2_a",
    "lfm2_bias",
    "samba_a",
    "llama_a",
    "mistral_window",
    "qwen2_window",
    "qwen3_a",
    "qwen3_window",
    "gpt_neox_a",
    "gpt_neox_sequential",
    "gpt2_a",
    "retnet_a",
    "retnet_groups",
    "gla_a",
    "gla_conv",
    "linear_attn_a",
    "linear_attn_sums",
    "hgrn2_a",
    "delta_net_a",
    "delta_net_gated",
    "gated_deltanet_a",
    "rwkv_a",
    "rwkv5_a",
    "rwkv6_a",
    "rwkv7_a",
    "recurrent_gemma_a",
    "xlstm_a",
    "xlstm_fused",
    "s4_a",
    "s4d_a",
    "h3_a",
    "h3_heads",
    "hyena_a",
    "hyena_order",
    "slstm_a",
    "mamba3_a",
    "mamba3_norm",
    "mamba3_mimo",
    "mamba3_mimo_norm",
];

/// The longest text that a model can read, `length` at most.
pub fn longest(model: &Model, length: usize) -> usize {
    model.spec().learned_positions.map_or(length, |positions| length.min(positions))
}

/// A safetensors file in memory.
pub struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub fn read(path: &Path) -> Self {
        Self { bytes: std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensors().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).shape().to_vec()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn tokens(&self, name: &str) -> Vec<TokenId> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
        tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as TokenId).collect()
    }
}

/// max|a − b| / max|b|; any NaN is an infinite error.
pub fn deviation(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    if a.iter().chain(b).any(|x| x.is_nan()) {
        return f32::INFINITY;
    }
    let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let error = a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
    if scale > 0.0 { error / scale } else { error }
}

/// Keeps every quantity of every layer, rows appended.
#[derive(Default)]
pub struct Capture {
    /// By layer, part and point.
    pub rows: HashMap<(usize, usize, Point), Vec<f32>>,
}

impl Observer for Capture {
    fn wants(&self, _layer: usize) -> bool {
        true
    }

    fn observe(&mut self, layer: usize, part: usize, point: Point, _first: usize, _rows: usize, values: &[f32]) {
        self.rows.entry((layer, part, point)).or_default().extend_from_slice(values);
    }
}

/// Token ids that look random but are the same every time.
pub fn ids(count: usize, vocab: usize) -> Vec<TokenId> {
    (0..count).map(|i| ((i * 7919 + i * i * 31 + 13) % vocab) as TokenId).collect()
}
