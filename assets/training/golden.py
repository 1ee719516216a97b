"""Reference numbers of a model folder from `transformers`, in f32 without a cache.

    python golden.py assets/models/mamba --data IDS_DIR --out goldens/mamba.safetensors

Tensors: input_ids [96], logits of the last 8 positions, resid.{i} (the residual stream after layer
i, before any further norm) at resid_positions, greedy (32 ids continuing the first 32 inputs).
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from data import load_ids

LENGTH, PROMPT, NEW, CHUNK = 96, 32, 32, 32
POSITIONS = (0, 1, 2, 31, 63, 64, 95)


def load(folder):
    """The folder's model in f32 with eager attention.

    Mamba-2 layers get chunks of 32 steps: the same sums, an eighth of the work on a CPU.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    for module in model.modules():
        if hasattr(module, "chunk_size"):
            module.chunk_size = CHUNK
    return model.eval()


@torch.no_grad()
def golden(model, ids):
    """The tensors of one golden file."""
    layers = model.base_model.layers
    residuals = {}

    def keep(index):
        def hook(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            residuals[f"resid.{index}"] = hidden[0, list(POSITIONS)].float().clone()

        return hook

    handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(layers)]
    logits = model(input_ids=ids[None], use_cache=False).logits[0, -8:].float().clone()
    for handle in handles:
        handle.remove()
    text = ids[:PROMPT]
    for _ in range(NEW):
        last = model(input_ids=text[None], use_cache=False).logits[0, -1]
        text = torch.cat([text, last.argmax().view(1)])
    return {
        "input_ids": ids,
        "logits": logits,
        "resid_positions": torch.tensor(POSITIONS),
        "greedy": text[PROMPT:].clone(),
        **residuals,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    ids = load_ids(args.data, "valid", "cpu")[1 : 1 + LENGTH].long()
    tensors = golden(load(args.folder), ids)
    save_file(tensors, args.out, metadata={"transformers_dtype": "float32", "attention": "eager"})
    print(args.out, sorted(tensors))


if __name__ == "__main__":
    main()
