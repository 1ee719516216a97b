"""RWKV-6 as its authors store it, whose code is fetched with the model: checkpoint and golden in plain float64 numpy, from the equations.

    /tmp/goldens/bin/python tests/goldens/rwkv6_official.py
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

import ancestors

FOLDER = Path(__file__).parent / "rwkv6_official"
# Every layer is halved at inference; the ranks follow from the hidden size, whatever it is.
CONFIG = dict(
    architectures=["Rwkv6ForCausalLM"], model_type="rwkv6", vocab_size=32, hidden_size=4, attention_hidden_size=4, head_size=2, head_size_divisor=8,
    intermediate_size=6, num_hidden_layers=2, layer_norm_epsilon=1e-5, rescale_every=1, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)  # fmt: skip
MIX_RANK, DECAY_RANK = 32, 64


def main():
    rng = np.random.default_rng(200)
    stored = {name: torch.tensor(value).bfloat16() for name, value in build(rng).items()}
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    save_file(stored, FOLDER / "model.safetensors", metadata={"format": "pt"})
    w = {name: value.double().numpy() for name, value in stored.items()}
    ids = rng.integers(0, CONFIG["vocab_size"], 24)
    logits, resid = forward(w, ids)
    golden = {"input_ids": ids.astype(np.int64), "logits": logits.astype(np.float32)}
    golden |= {f"resid.{i}": x.astype(np.float32) for i, x in enumerate(resid)}
    save_numpy(golden, FOLDER / "golden.safetensors")
    print(sum(path.stat().st_size for path in FOLDER.iterdir()))


def norm(w, name, x):
    return ancestors.layer_norm(CONFIG, w, name, x)


def forward(w, ids):
    x, resid = norm(w, "rwkv.blocks.0.pre_ln", w["rwkv.embeddings.weight"][ids]), []
    for i in range(CONFIG["num_hidden_layers"]):
        block = ancestors.Scope(w, f"rwkv.blocks.{i}.")
        x = x + time_mixing(block.inside("attention."), norm(block, "ln1", x))
        x = x + channel_mixing(block.inside("feed_forward."), norm(block, "ln2", x))
        resid.append(x)
    return norm(w, "rwkv.ln_out", x) @ w["head.weight"].T, resid


def before(x):
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def time_mixing(w, x):
    heads, size = w["time_faaaa"].shape
    delta = before(x) - x
    low = np.tanh((x + delta * w["time_maa_x"][0, 0]) @ w["time_maa_w1"]).reshape(len(x), 5, MIX_RANK)
    mixed = {}
    for j, name in enumerate("wkvrg"):
        mixed[name] = x + delta * (w[f"time_maa_{name}"][0, 0] + low[:, j] @ w["time_maa_w2"][j])
    shape = (len(x), heads, size)
    r, k, v = (ancestors.linear(w, name, mixed[name[0]]).reshape(shape) for name in ("receptance", "key", "value"))
    gate = ancestors.linear(w, "gate", mixed["g"])
    decay = np.exp(-np.exp(w["time_decay"][0, 0] + np.tanh(mixed["w"] @ w["time_decay_w1"]) @ w["time_decay_w2"])).reshape(shape)
    state, out = np.zeros((heads, size, size)), np.empty(shape)
    for t in range(len(x)):
        write = k[t][:, :, None] * v[t][:, None]
        out[t] = np.einsum("hk,hkv->hv", r[t], state + w["time_faaaa"][:, :, None] * write)
        state = decay[t][:, :, None] * state + write
    out = out / CONFIG["head_size_divisor"]
    out = out - out.mean(-1, keepdims=True)
    out = (out / np.sqrt((out * out).mean(-1, keepdims=True) + 1e-5)).reshape(x.shape) * w["ln_x.weight"] + w["ln_x.bias"]
    return ancestors.linear(w, "output", out * gate * ancestors.sigmoid(gate))


def channel_mixing(w, x):
    k, r = (x + (before(x) - x) * w[f"time_maa_{name}"][0, 0] for name in "kr")
    hidden = np.maximum(ancestors.linear(w, "key", k), 0) ** 2
    return ancestors.sigmoid(ancestors.linear(w, "receptance", r)) * ancestors.linear(w, "value", hidden)


def build(rng):
    d, inner, vocab, size = (CONFIG[key] for key in ("hidden_size", "intermediate_size", "vocab_size", "head_size"))
    normal = lambda *shape: rng.normal(size=shape)
    w = {"rwkv.embeddings.weight": normal(vocab, d), "head.weight": normal(vocab, d) / math.sqrt(d)}

    def layer_norm(name):
        w[f"{name}.weight"], w[f"{name}.bias"] = 1 + 0.2 * normal(d), 0.1 * normal(d)

    def linear(name, rows, cols):
        w[f"{name}.weight"] = normal(rows, cols) / math.sqrt(cols)

    layer_norm("rwkv.ln_out")
    layer_norm("rwkv.blocks.0.pre_ln")
    for i in range(CONFIG["num_hidden_layers"]):
        block = f"rwkv.blocks.{i}."
        layer_norm(block + "ln1")
        layer_norm(block + "ln2")
        attention, mix = block + "attention.", block + "feed_forward."
        for name in "xwkvrg":
            w[f"{attention}time_maa_{name}"] = rng.uniform(0, 1, (1, 1, d))
        w[attention + "time_maa_w1"] = normal(d, 5 * MIX_RANK) * 0.3
        w[attention + "time_maa_w2"] = normal(5, MIX_RANK, d) * 0.1
        w[attention + "time_decay"] = rng.uniform(-3, 1, (1, 1, d))
        w[attention + "time_decay_w1"], w[attention + "time_decay_w2"] = normal(d, DECAY_RANK) * 0.3, normal(DECAY_RANK, d) * 0.1
        w[attention + "time_faaaa"] = normal(d // size, size)
        for name in ("receptance", "key", "value", "gate", "output"):
            linear(attention + name, d, d)
        layer_norm(attention + "ln_x")
        w[mix + "time_maa_k"], w[mix + "time_maa_r"] = rng.uniform(0, 1, (2, 1, 1, d))
        linear(mix + "key", inner, d)
        linear(mix + "receptance", d, d)
        linear(mix + "value", d, inner)
    return w


if __name__ == "__main__":
    main()
