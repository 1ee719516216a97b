"""RWKV-5.2 as its Hugging Face files name it (`rwkv5_a`) and as its authors do (`rwkv5_authors`): checkpoints and goldens in plain float64 numpy, from the
equations of BlinkDL's RWKV_v5_demo.py in ChatRWKV, one token at a time; the matrix of each head must give the same.

    /tmp/goldens/bin/python tests/goldens/rwkv5.py
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ancestors import Scope, greedy, same, sigmoid

HERE = Path(__file__).parent
CONFIG = dict(
    model_type="rwkv5", vocab_size=32, hidden_size=16, head_size=8, num_hidden_layers=1, intermediate_size=None, layer_norm_epsilon=1e-5, head_size_divisor=8,
    attention_hidden_size=16, rescale_every=6, model_version="5_2", tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)  # fmt: skip


def main():
    make("rwkv5_a", CONFIG, stored_by_hugging_face, np.random.default_rng(500))
    # The older files have neither version nor divisor.
    older = {key: value for key, value in CONFIG.items() if key not in ("head_size_divisor", "model_version", "attention_hidden_size")}
    older |= dict(hidden_size=8, head_size=4, intermediate_size=8)
    make("rwkv5_authors", older, lambda name: name, np.random.default_rng(501), whole=False)


def make(name, config, stored, rng, whole=True):
    w = build(config, rng)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({stored(key): value.astype(np.float32) for key, value in w.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    w = {key: value.astype(np.float32).astype(np.float64) for key, value in w.items()}
    ids = rng.integers(0, config["vocab_size"], 20)
    logits, resid = forward(config, w, ids)
    golden = {"input_ids": ids.astype(np.int64), "logits": logits.astype(np.float32)}
    if whole:
        golden |= {f"resid.{i}": x.astype(np.float32) for i, x in enumerate(resid)}
        golden |= greedy(config, w, rng, forward)
    save_file(golden, folder / "golden.safetensors")
    print(name, sum(path.stat().st_size for path in folder.iterdir()))


def stored_by_hugging_face(name):
    if name == "head.weight":
        return name
    parts = [("emb.", "embeddings."), (".ln0.", ".pre_ln."), (".att.", ".attention."), (".ffn.", ".feed_forward.")]
    parts += [(f"time_mix_{short}", f"time_mix_{long}") for short, long in zip("kvrg", ("key", "value", "receptance", "gate"))]
    for ours, theirs in parts:
        name = name.replace(ours, theirs)
    return f"rwkv.{name}"


def layer_norm(x, w, name, eps=1e-5):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def forward(config, w, ids):
    x, resid = layer_norm(w["emb.weight"][ids], w, "blocks.0.ln0"), []
    for i in range(config["num_hidden_layers"]):
        layer = Scope(w, f"blocks.{i}.")
        x = x + time_mixing(config, layer.inside("att."), layer_norm(x, layer, "ln1"))
        x = x + channel_mixing(layer.inside("ffn."), layer_norm(x, layer, "ln2"))
        resid.append(x)
    return layer_norm(x, w, "ln_out") @ w["head.weight"].T, resid


def mixed(w, x, name):
    before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    share = w[f"time_mix_{name}"][0, 0]
    return x * share + before * (1 - share)


def time_mixing(config, w, u):
    size, T = config["head_size"], len(u)
    maps = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
    r, k, v, g = (mixed(w, u, short) @ w[f"{long}.weight"].T for short, long in maps.items())
    r, k, v = (part.reshape(T, -1, size) for part in (r, k, v))
    decay, first = np.exp(-np.exp(w["time_decay"])), w["time_faaaa"]
    state, y = np.zeros((r.shape[1], size, size)), np.empty_like(v)
    for t in range(T):
        a = k[t][:, :, None] * v[t][:, None]
        y[t] = np.einsum("hk,hkv->hv", r[t], first[:, :, None] * a + state)
        state = a + decay[:, :, None] * state
    for h in range(r.shape[1]):
        age = np.arange(T)[:, None] - np.arange(T)[None] - 1
        faded = np.where(age[..., None] >= 0, decay[h] ** np.maximum(age, 0)[..., None], 0)
        m = np.einsum("tn,sn,tsn->ts", r[:, h], k[:, h], faded) + np.diag((r[:, h] * first[h] * k[:, h]).sum(-1))
        same(m @ v[:, h], y[:, h], "RWKV-5")
    # The training code norms y / 8 with 1e-5, the demo y with 64e-5.
    heads = lambda y, eps: (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + eps)
    normed = heads(y, 64e-5)
    same(heads(y / 8, 1e-5), normed, "norm")
    normed = normed.reshape(T, -1) * w["ln_x.weight"] + w["ln_x.bias"]
    return (normed * g * sigmoid(g)) @ w["output.weight"].T


def channel_mixing(w, u):
    k = np.maximum(mixed(w, u, "k") @ w["key.weight"].T, 0) ** 2
    return sigmoid(mixed(w, u, "r") @ w["receptance.weight"].T) * (k @ w["value.weight"].T)


def build(config, rng):
    d, vocab, size = config["hidden_size"], config["vocab_size"], config["head_size"]
    inner = config["intermediate_size"] or int(d * 3.5) // 32 * 32
    normal = lambda *shape: rng.normal(size=shape)
    matrix = lambda rows, cols: normal(rows, cols) / math.sqrt(cols)
    w = {"emb.weight": normal(vocab, d), "head.weight": matrix(vocab, d)}
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(config["num_hidden_layers"]):
        layer = f"blocks.{i}."
        norms += [layer + "ln1", layer + "ln2", layer + "att.ln_x"]
        for name in "kvrg":
            w[f"{layer}att.time_mix_{name}"] = rng.uniform(size=(1, 1, d))
        for name in "kr":
            w[f"{layer}ffn.time_mix_{name}"] = rng.uniform(size=(1, 1, d))
        w[layer + "att.time_decay"] = rng.uniform(-5, 1, size=(d // size, size))
        w[layer + "att.time_faaaa"] = normal(d // size, size)
        for name in "receptance", "key", "value", "gate", "output":
            w[f"{layer}att.{name}.weight"] = matrix(d, d)
        w[layer + "ffn.key.weight"], w[layer + "ffn.value.weight"] = matrix(inner, d), matrix(d, inner)
        w[layer + "ffn.receptance.weight"] = matrix(d, d)
    for name in norms:
        w[f"{name}.weight"], w[f"{name}.bias"] = 1 + 0.2 * normal(d), 0.2 * normal(d)
    return w


if __name__ == "__main__":
    main()
