"""GGUF files of the tiny checkpoints, written by llama.cpp's own converter, so that names, shapes and permutations are as published files have
them. See README.md. Usage: make_gguf.py LLAMA_CPP_FOLDER [case:type …]
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

GOLDENS = Path(__file__).parent
LLAMA_CPP = Path(sys.argv[1])
sys.path[:0] = [str(LLAMA_CPP / "gguf-py"), str(LLAMA_CPP)]

import gguf  # noqa: E402
from conversion import get_model_class  # noqa: E402
from conversion.base import ModelBase  # noqa: E402

TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
# Falcon-H1's multipliers are folded into its matrices, which bfloat16 would round.
CASES = [
    "mamba2_b:f32", "llama_rope3:f32", "falcon_h1_a:f32", "falcon_h1_no_norm:f32",
    "falcon_mamba_a:bf16", "jamba_a:bf16", "granite_moe:bf16", "granite_dense:bf16", "nemotron_h_groups:bf16",
    "nemotron_h_legacy:bf16", "mistral_full:bf16", "qwen2_a:bf16", "qwen3_a:bf16", "mamba_bf16:bf16",
    "mamba_bf16:f16", "llama_b:f32", "llama_rope3:q8_0", "mamba2_b:f16", "rwkv6_official:bf16", "rwkv7_a:bf16",
]  # fmt: skip
KINDS = {"linear_attention": "mamba", "full_attention": "attention"}


def for_the_converter(folder: Path, copy: Path) -> None:
    """Spells out in config.json what the converter does not find by itself: the older names of layers, widths of heads."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    for key in ("layer_types", "layers_block_type"):
        if key in config:
            config[key] = [KINDS.get(kind, kind) for kind in config[key]]
    if config["model_type"] == "falcon_h1":
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if config["model_type"] == "rwkv7":
        config["architectures"] = ["RWKV7ForCausalLM"]
    if config["model_type"] == "nemotron_h":
        config["mamba_d_head"] = config["mamba_head_dim"]
    (copy / "config.json").write_text(json.dumps(config))


def convert(case: str, kind: str) -> None:
    with tempfile.TemporaryDirectory() as copy:
        for_the_converter(GOLDENS / case, Path(copy))
        architecture = ModelBase.load_hparams(Path(copy), False)["architectures"][0]
        model = get_model_class(architecture)
        model.set_vocab = lambda self: None
        out = GOLDENS / "gguf" / f"{case}-{kind}.gguf"
        model(Path(copy), TYPES[kind], out, model_name=case).write()
        print(out.name, architecture, out.stat().st_size)


if __name__ == "__main__":
    for named in sys.argv[2:] or CASES:
        convert(*named.split(":"))
