"""Validation loss and samples of a model folder through `transformers`, in f32.

    python evaluate.py assets/models/mamba --data IDS_DIR
    python evaluate.py assets/models/mamba --tokenizer tokenizer.json --samples
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from configs import CONTEXT
from data import EOS_ID, load_ids
from golden import load

PROMPTS = ("", "Once upon a time there was")


@torch.no_grad()
def validation_loss(model, ids, batch=4):
    """Mean nats per token; windows and scored positions as in train.evaluate."""
    half, last = CONTEXT // 2, len(ids) - 1 - CONTEXT
    jobs = [(start, half if start else 0) for start in range(0, last + 1, half)]
    covered = jobs[-1][0] + CONTEXT
    if covered < len(ids) - 1:
        jobs.append((last, CONTEXT - (len(ids) - 1 - covered)))
    total = 0.0
    for at in range(0, len(jobs), batch):
        chosen = jobs[at : at + batch]
        rows = torch.stack([ids[start : start + CONTEXT + 1] for start, _ in chosen]).long()
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        for row, logit, (_, skip) in zip(rows, logits, chosen):
            total += float(F.cross_entropy(logit[skip:], row[1 + skip :], reduction="sum"))
    return total / (len(ids) - 1)


@torch.no_grad()
def sample(model, tokenizer, prompt, seed, count=120, temperature=0.8):
    """`count` tokens drawn after EOS and the prompt."""
    torch.manual_seed(seed)
    ids = torch.tensor([[EOS_ID] + tokenizer.encode(prompt).ids])
    for _ in range(count):
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        drawn = torch.multinomial((logits / temperature).softmax(-1), 1)
        ids = torch.cat([ids, drawn[None]], dim=1)
    return tokenizer.decode(ids[0, 1:].tolist(), skip_special_tokens=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--samples", action="store_true")
    parser.add_argument("--tokens", type=int, help="score the first so many tokens only")
    args = parser.parse_args()
    model = load(args.folder)
    if args.samples:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(args.tokenizer))
        for seed, prompt in enumerate(PROMPTS):
            print(f"--- sample {seed}, prompt {prompt!r}\n{sample(model, tokenizer, prompt, seed)}")
    if args.data:
        index = json.loads((args.data / "index.json").read_text())["valid"]
        ids = load_ids(args.data, "valid", "cpu")
        nats = validation_loss(model, ids[: args.tokens and args.tokens + 1])
        bits = nats * index["tokens"] / index["bytes"] / math.log(2)
        print(json.dumps({"valid_nats": nats, "valid_bits_per_byte": None if args.tokens else bits}))


if __name__ == "__main__":
    main()
