"""Turn the trained weights into a Hugging Face folder.

    python export.py mamba --weights OUT/mamba.safetensors --tokenizer tokenizer.json --to DIR
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from configs import CONFIGS, CONTEXT, hf_model
from tokenizer import EOS


def export(name, weights, tokenizer, folder):
    """Writes the configs, model.safetensors (bf16) and the tokenizer's files."""
    model = hf_model(name).to(torch.bfloat16)
    keys = model.load_state_dict(load_file(weights), strict=False)
    assert keys.missing_keys == ["lm_head.weight"] and not keys.unexpected_keys, keys
    model.tie_weights()
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONFIGS)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    export(args.name, args.weights, args.tokenizer, args.to)


if __name__ == "__main__":
    main()
