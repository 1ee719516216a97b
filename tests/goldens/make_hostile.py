"""Hostile files, made by hand; the rest of the corpus is what the fuzzer found. See README.md."""

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
