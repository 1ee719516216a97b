"""Hostile files, made by hand, and vocabularies for the fuzzer to start from. See README.md."""

import struct
from pathlib import Path

OUT = Path(__file__).parent / "hostile"


def text(s: bytes) -> bytes:
    return struct.pack("<Q", len(s)) + s


def value(key: bytes, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def gguf(values: list[bytes], tensors: bytes = b"", tensor_count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, len(values)) + b"".join(values) + tensors


architecture = value(b"general.architecture", 8, text(b"mamba"))
blocks = value(b"mamba.block_count", 4, struct.pack("<I", 0xFFFFFFFF))
# A list of 2^60 strings; lists within lists within lists; a string of 2^63 bytes; 2^63 tensors.
(OUT / "gguf-endless-list.gguf").write_bytes(gguf([value(b"a", 9, struct.pack("<IQ", 8, 1 << 60))]))
(OUT / "gguf-nested-lists.gguf").write_bytes(gguf([value(b"a", 9, struct.pack("<IQ", 9, 1) * 5000)]))
(OUT / "gguf-endless-text.gguf").write_bytes(gguf([text(b"a") + struct.pack("<IQ", 8, 1 << 63)]))
(OUT / "gguf-endless-tensors.gguf").write_bytes(gguf([architecture], tensor_count=1 << 63))
(OUT / "gguf-endless-layers.gguf").write_bytes(gguf([architecture, blocks]))
# A tensor of 2^63 · 2 numbers, whose size wraps to nothing.
info = text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 1 << 63, 2, 0, 0)
(OUT / "gguf-wrapping-shape.gguf").write_bytes(gguf([architecture], info, 1) + bytes(64))

# A program that calls os.system; one that doubles a list 200 times; one that nests 20,000 tuples; a list that holds itself; a text of 4 GiB.
(OUT / "pickle-executable.pkl").write_bytes(b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
(OUT / "pickle-doubling.pkl").write_bytes(b"]q\x00" + b"(h\x00h\x00lq\x00" * 200 + b".")
(OUT / "pickle-nested.pkl").write_bytes(b"N" + b"\x85" * 20_000 + b".")
(OUT / "pickle-cyclic.pkl").write_bytes(b"]q\x00h\x00a.")
(OUT / "pickle-endless-text.pkl").write_bytes(b"X\xff\xff\xff\xff.")

(OUT / "config-deep.json").write_bytes(b'{"model_type": ' + b"[" * 5_000)
(OUT / "config-wide.json").write_bytes(b'{"model_type": "mamba", "hidden_size": 16777216, "state_size": 16777216, "expand": 1e300}')
(OUT / "safetensors-endless-header.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}'
(OUT / "safetensors-overlap.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
header = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
(OUT / "safetensors-wrapping-shape.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


# Files of vocabularies alone, from which the fuzzer starts.
def number(key: bytes, n: int) -> bytes:
    return value(key, 4, struct.pack("<I", n))


def listed(key: bytes, kind: int, items: list[bytes]) -> bytes:
    return value(key, 9, struct.pack("<IQ", kind, len(items)) + b"".join(items))


sizes = {"block_count": 1, "embedding_length": 16, "context_length": 64, "ssm.conv_kernel": 4, "ssm.inner_size": 32}
sizes |= {"ssm.state_size": 4, "ssm.time_step_rank": 2}
model = [architecture] + [number(b"mamba." + key.encode(), n) for key, n in sizes.items()]
pieces = [b"<unk>", b"<s>"] + [bytes([b]) for b in range(0x21, 0x7F)] + [b"th", b"the", b"in", "\u0120the".encode(), "\u0120t".encode(), "\u0120".encode()]
sentence = [b"<unk>", b"<s>", b"</s>", "\u2581".encode(), "\u2581the".encode(), "\u2581t".encode(), b"he", b"t", b"h", b"e"]
sentence += [f"<0x{b:02X}>".encode() for b in range(256)]
world = [b"<s>"] + [repr(bytes([b]))[2:-1].encode() for b in range(256)] + [b"the", rb"\xe4\xb8\xad"]
seeds = {
    "gpt2": (pieces, [2, 3] + [1] * (len(pieces) - 2), [value(b"tokenizer.ggml.pre", 8, text(b"llama-bpe"))]),
    "llama": (sentence, [2, 3, 3] + [1] * 7 + [6] * 256, []),
    "rwkv": (world, [3] + [1] * (len(world) - 1), []),
}
for name, (tokens, kinds, more) in seeds.items():
    values = model + more + [value(b"tokenizer.ggml.model", 8, text(name.encode()))]
    values.append(listed(b"tokenizer.ggml.tokens", 8, [text(token) for token in tokens]))
    values.append(listed(b"tokenizer.ggml.token_type", 5, [struct.pack("<i", kind) for kind in kinds]))
    values.append(listed(b"tokenizer.ggml.scores", 6, [struct.pack("<f", -n) for n in range(len(tokens))]))
    values.append(listed(b"tokenizer.ggml.merges", 8, [text(b"t h"), text(b"th e"), text(b"i n")]))
    values.append(number(b"tokenizer.ggml.bos_token_id", 1))
    values.append(value(b"tokenizer.ggml.add_bos_token", 7, b"\x01"))
    (OUT.parent / "vocabulary" / f"{name}.gguf").write_bytes(gguf(values))


# Two parts of a model, from which the fuzzer starts too: each has one of its tensors.
def part(index: int, count: int, values: list[bytes], name: bytes, shape: list[int], kind: int = 4, width: str = "<I") -> bytes:
    values = values + [value(b"split.no", kind, struct.pack(width, index)), value(b"split.count", kind, struct.pack(width, count))]
    info = text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, 0)
    head = gguf(values, info, 1)
    return head + bytes(-len(head) % 32) + bytes(4 * shape[0])


(OUT.parent / "parts").mkdir(exist_ok=True)
(OUT.parent / "parts" / "model-00001-of-00002.gguf").write_bytes(part(0, 2, model, b"token_embd.weight", [16, 1]))
(OUT.parent / "parts" / "model-00002-of-00002.gguf").write_bytes(part(1, 2, [], b"output_norm.weight", [16]))
# In place of the second: the first once more; one of 2^64 - 1 parts; one that says no number; one with the tensor of the first.
(OUT / "part-first-again.gguf").write_bytes(part(0, 2, [], b"output_norm.weight", [16]))
(OUT / "part-of-endless.gguf").write_bytes(part(1, (1 << 64) - 1, [], b"output_norm.weight", [16], 10, "<Q"))
(OUT / "part-unnumbered.gguf").write_bytes(gguf([number(b"split.count", 2)]))
(OUT / "part-twice.gguf").write_bytes(part(1, 2, [], b"token_embd.weight", [16, 1]))
