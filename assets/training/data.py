"""Corpus to token ids, and the batches every model sees in the same order.

    python data.py --corpus DIR --tokenizer tokenizer.json --out DIR   # writes {train,valid}.u16
"""

import argparse
import json
from pathlib import Path

import numpy as np

EOS_ID = 0


def encode_corpus(corpus, tokenizer_file, out):
    """Writes the stories of each split as uint16 ids, EOS before the first and after each story.

    `bytes` in the index counts the UTF-8 bytes of the stories alone (no end marks, no blank lines
    around them): the divisor of bits per byte.
    """
    from tokenizers import Tokenizer

    from tokenizer import read_stories

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    index = {}
    for split in ("train", "valid"):
        stories = read_stories(corpus / f"{split}.txt")
        ids = [EOS_ID]
        for encoding in tokenizer.encode_batch(stories):
            ids += encoding.ids
            ids.append(EOS_ID)
        np.asarray(ids, dtype="<u2").tofile(out / f"{split}.u16")
        size = sum(len(story.encode()) for story in stories)
        index[split] = {"tokens": len(ids), "stories": len(stories), "bytes": size}
    (out / "index.json").write_text(json.dumps(index, indent=2) + "\n")
    return index


def load_ids(folder, split, device):
    """The ids of one split as an int32 tensor on `device`."""
    import torch

    ids = np.fromfile(Path(folder) / f"{split}.u16", dtype="<u2").astype(np.int32)
    return torch.from_numpy(ids).to(device)


def epoch_batches(ids, epoch, seed, batch, context):
    """Batches [batch, context + 1] of one epoch: windows from a random offset, in random order.

    Depends on the seed and the epoch alone, so every model gets the same tokens in the same order.
    """
    import torch

    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    offset = int(torch.randint(context, (1,), generator=generator))
    count = (len(ids) - 1 - offset) // context
    starts = offset + context * torch.randperm(count, generator=generator)
    starts = starts[: count // batch * batch].view(-1, batch).to(ids.device)
    steps = torch.arange(context + 1, device=ids.device)
    for row in starts:
        yield ids[row[:, None] + steps].long()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(encode_corpus(args.corpus, args.tokenizer, args.out)))


if __name__ == "__main__":
    main()
