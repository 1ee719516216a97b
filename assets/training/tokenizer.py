"""Train the shared byte-level BPE tokenizer (4,096 tokens incl. <|endoftext|>) on train.txt.

    python tokenizer.py --corpus DIR --out tokenizer.json

Needs only the `tokenizers` package. Deterministic: the same corpus gives the same file.
"""

import argparse
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<|endoftext|>"
VOCAB_SIZE = 4096

# Words with their leading space, single digits, runs of punctuation, and line breaks in one piece:
# a blank line between paragraphs becomes one token.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*\n+|\s+(?!\S)|\s+"
)


def read_stories(path):
    """The stories of one corpus file, in order, without the end marks and outer blank lines."""
    parts = Path(path).read_text(encoding="utf-8").split(EOS)
    return [story.strip() for story in parts if story.strip()]


def train_tokenizer(stories):
    """A byte-level BPE tokenizer with EOS as token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE and tokenizer.token_to_id(EOS) == 0
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with train.txt")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = train_tokenizer(read_stories(args.corpus / "train.txt"))
    tokenizer.save(str(args.out))
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
