"""Hymba, whose code comes with the model and needs a GPU: checkpoints and goldens in plain float64 numpy, from the equations.

    /tmp/goldens/bin/python tests/goldens/hymba.py

The meta tokens are the first of `input_ids`, under the ids after the vocabulary. Each mixer is computed twice, token by token and as a matrix.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np

from ancestors import Scope, linear, same, sigmoid

HERE = Path(__file__).parent
COMMON = dict(
    architectures=["HymbaForCausalLM"], model_type="hymba", vocab_size=32, hidden_size=16, intermediate_size=12, num_attention_heads=4, num_key_value_heads=2,
    mamba_d_state=4, mamba_dt_rank=3, mamba_expand=2, rms_norm_eps=1e-6, hidden_act="silu", mlp_hidden_act="silu", kq_norm="none", kq_head_dim=-1,
    attn_hidden_size=-1, num_experts=1, num_experts_per_tok=1, num_mamba=1, memory_tokens_interspersed_every=0, kv_weight_reuse=False, rope=True,
    mamba_inner_layernorms=True, mamba_proj_bias=False, bos_token_id=1, eos_token_id=2)  # fmt: skip
CASES = {
    "hymba_a": COMMON | dict(
        num_hidden_layers=4, mamba_d_conv=3, v_head_dim=8, sliding_window=5, global_attn_idx=[0], kv_reuse_group=[[1, 3]], num_memory_tokens=3,
        rope_type="ntk", rope_theta=100.0, max_position_embeddings=64, orig_max_position_embeddings=16, tie_word_embeddings=True),
    "hymba_b": COMMON | dict(
        num_hidden_layers=2, mamba_d_conv=4, mamba_conv_bias=False, sliding_window=None, global_attn_idx=None, kv_reuse_every_i_layer=2, num_memory_tokens=0,
        rope_type=None, rope_theta=50.0, max_position_embeddings=64, tie_word_embeddings=False),
}  # fmt: skip
TOKENS, PROMPT, CONTINUATION = 24, 6, 10


def main():
    from safetensors.numpy import save_file as save_numpy

    for seed, (name, config) in enumerate(CASES.items()):
        rng = np.random.default_rng(400 + seed)
        stored = {key: bfloat16(value) for key, value in build(config, rng).items()}
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_bfloat16(stored, folder / "model.safetensors")
        w = {key: value.astype(np.float64) for key, value in stored.items()}
        vocab, meta = config["vocab_size"], config["num_memory_tokens"]
        ids = np.concatenate([np.arange(vocab, vocab + meta), rng.integers(0, vocab, TOKENS)])
        found = {}
        logits, resid = forward(config, w, ids, found)
        golden = {"input_ids": ids.astype(np.int64), "logits": logits.astype(np.float32)}
        golden |= {f"resid.{i}": x.astype(np.float32) for i, x in enumerate(resid)}
        if meta:
            golden |= {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in found.items()}
        golden |= greedy(config, w, rng)
        save_numpy(golden, folder / "golden.safetensors")
        print(name, sum(path.stat().st_size for path in folder.iterdir()))


def bfloat16(x):
    """Rounded to nearest, as float32."""
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def save_bfloat16(tensors, path):
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, value in sorted(tensors.items()):
        raw = (value.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def rms(config, x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight


def silu(x):
    return x * sigmoid(x)


def producers(config):
    """By layer the layer whose keys and values it reads."""
    layers = range(config["num_hidden_layers"])
    if "kv_reuse_group" in config:
        return [next((g[0] for g in config["kv_reuse_group"] if i in g), i) for i in layers]
    every = config.get("kv_reuse_every_i_layer", -1)
    return [i - i % every if every > 0 else i for i in layers]


def forward(config, w, ids, found=None):
    found = {} if found is None else found
    table = w["model.embed_tokens.weight"]
    if config["num_memory_tokens"]:
        table = np.concatenate([table, w["model.memory_tokens"]])
    x, resid, lent = table[ids], [], {}
    for i in range(config["num_hidden_layers"]):
        layer = Scope(w, f"model.layers.{i}.")
        own = producers(config)[i] == i
        x = x + block(config, i, own, producers(config)[i], layer.inside("mamba."), rms(config, x, layer["input_layernorm.weight"]), lent, found)
        normed, expert = rms(config, x, layer["pre_moe_layernorm.weight"]), layer.inside("moe.experts.0.")
        x = x + linear(expert, "down_proj", silu(linear(expert, "gate_proj", normed)) * linear(expert, "up_proj", normed))
        resid.append(x)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return rms(config, x, w["model.final_layernorm.weight"]) @ head.T, resid


def block(config, i, own, producer, w, u, lent, found):
    d, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    inner, size = config["mamba_expand"] * d, d // heads
    wide = inner // heads
    widths = [d, kv_heads * size, kv_heads * wide, inner] if own else [d, inner]
    *qkv, x, z = np.split(linear(w, "in_proj", u), np.cumsum(widths), axis=1)
    q = rotate(config, qkv[0].reshape(len(u), heads, size))
    if own:
        lent[i] = rotate(config, qkv[1].reshape(len(u), kv_heads, size)), qkv[2].reshape(len(u), kv_heads, wide)
    keys, values = lent[producer]
    t, s = np.arange(len(u))[:, None], np.arange(len(u))[None]
    hidden = s > t
    if config["sliding_window"] is not None and i not in config["global_attn_idx"]:
        hidden |= (t - s > config["sliding_window"]) & (s >= config["num_memory_tokens"])
    share = heads // kv_heads
    scores = np.einsum("thk,shk->hts", q, np.repeat(keys, share, axis=1)) / math.sqrt(size)
    weights = np.exp(np.where(hidden, -np.inf, scores - scores.max(-1, keepdims=True)))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("hts,shv->thv", weights, np.repeat(values, share, axis=1)).reshape(len(u), inner)
    scan, facts = mamba(config, w, x)
    if i == 3:
        found |= {f"mixer.{i}.{key}": value for key, value in facts.items()}
        found |= {f"mixer.{i}.1.mixing": weights, f"mixer.{i}.1.y": y, f"mixer.{i}.1.x": values}
    gated = scan * silu(z)
    both = rms(config, y, w["pre_avg_layernorm1.weight"]) + rms(config, gated, w["pre_avg_layernorm2.weight"])
    return linear(w, "out_proj", both / 2)


def mamba(config, w, x):
    taps, rank, n = config["mamba_d_conv"], config["mamba_dt_rank"], config["mamba_d_state"]
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    x = sum(padded[k : k + len(x)] * w["conv1d.weight"][:, 0, k] for k in range(taps)) + w.get("conv1d.bias", 0.0)
    x = silu(x)
    dt, b, c = np.split(linear(w, "x_proj.0", x), [rank, rank + n], axis=1)
    dt, b, c = (rms(config, part, w[f"{name}_layernorm.weight"]) for part, name in ((dt, "dt"), (b, "B"), (c, "C")))
    delta, a, skip = np.logaddexp(0, linear(w, "dt_proj.0", dt)), -np.exp(w["A_log.0"]), w["D.0"]
    state, y = np.zeros_like(a), np.empty_like(x)
    for t in range(len(x)):
        state = np.exp(delta[t][:, None] * a) * state + (delta[t] * x[t])[:, None] * b[t]
        y[t] = state @ c[t] + skip * x[t]
    total = np.cumsum(delta, 0)
    for e in range(0, x.shape[1], 7):
        spans = np.minimum((total[:, None, e] - total[None, :, e])[:, :, None] * a[e], 0)
        m = np.tril(np.einsum("tn,sn,tsn->ts", c, b, np.exp(spans)) * delta[:, e])
        same(m @ x[:, e] + skip[e] * x[:, e], y[:, e], "Mamba-1")
    return y, {"delta": delta, "B": b, "C": c, "x": x, "y": y, "state": state}


def rotate(config, x):
    size = x.shape[-1]
    theta = config["rope_theta"]
    if config["rope_type"] == "ntk":
        stretch = 2 * config["max_position_embeddings"] / config["orig_max_position_embeddings"] - 1
        theta *= stretch ** (size / (size - 2))
    angles = np.arange(len(x))[:, None, None] * theta ** (-np.arange(0, size, 2) / size)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1)


def greedy(config, w, rng):
    """A prompt whose continuation is clear at every step and has different tokens. The meta tokens stand before it."""
    vocab = config["vocab_size"]
    meta = np.arange(vocab, vocab + config["num_memory_tokens"])
    for _ in range(500):
        prompt = rng.integers(0, vocab, PROMPT)
        ids = np.concatenate([meta, prompt])
        for _ in range(CONTINUATION):
            logits = forward(config, w, ids)[0][-1]
            second, best = np.sort(logits)[-2:]
            if best - second < 0.01:
                break
            ids = np.append(ids, logits.argmax())
        else:
            made = ids[len(meta) + PROMPT :]
            if len(np.unique(made)) >= 4:
                return {"greedy_prompt": prompt.astype(np.int64), "greedy": made.astype(np.int64)}
    sys.exit("no lively prompt found")


def build(config, rng):
    d, vocab, wide = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    inner, n, rank = config["mamba_expand"] * d, config["mamba_d_state"], config["mamba_dt_rank"]
    kv = config["num_key_value_heads"] * (d + inner) // config["num_attention_heads"]
    normal = lambda *shape: rng.normal(size=shape)
    gains = lambda size: 1 + 0.2 * normal(size)
    matrix = lambda rows, cols: normal(rows, cols) / math.sqrt(cols)
    w = {"model.embed_tokens.weight": normal(vocab, d), "model.final_layernorm.weight": gains(d)}
    if not config["tie_word_embeddings"]:
        w["lm_head.weight"] = matrix(vocab, d)
    if config["num_memory_tokens"]:
        w["model.memory_tokens"] = normal(config["num_memory_tokens"], d)
    for i in range(config["num_hidden_layers"]):
        layer, mixer = f"model.layers.{i}.", f"model.layers.{i}.mamba."
        w[layer + "input_layernorm.weight"], w[layer + "pre_moe_layernorm.weight"] = gains(d), gains(d)
        for name, rows, cols in (("gate_proj", wide, d), ("up_proj", wide, d), ("down_proj", d, wide)):
            w[f"{layer}moe.experts.0.{name}.weight"] = matrix(rows, cols)
        q_rows = d + (kv if producers(config)[i] == i else 0)
        w[mixer + "in_proj.weight"] = matrix(q_rows + 2 * inner, d) * 1.5
        w[mixer + "out_proj.weight"] = matrix(d, inner)
        w[mixer + "conv1d.weight"] = normal(inner, 1, config["mamba_d_conv"]) * 0.6
        if config.get("mamba_conv_bias", True):
            w[mixer + "conv1d.bias"] = normal(inner) * 0.3
        w[mixer + "x_proj.0.weight"] = matrix(rank + 2 * n, inner)
        w[mixer + "dt_proj.0.weight"], w[mixer + "dt_proj.0.bias"] = matrix(inner, rank), rng.uniform(-4, 0, inner)
        w[mixer + "A_log.0"], w[mixer + "D.0"] = np.log(np.tile(np.arange(1.0, n + 1), (inner, 1))) + 0.1 * normal(inner, n), gains(inner)
        for name, size in (("dt", rank), ("B", n), ("C", n)):
            w[f"{mixer}{name}_layernorm.weight"] = gains(size)
        w[mixer + "pre_avg_layernorm1.weight"], w[mixer + "pre_avg_layernorm2.weight"] = gains(inner), gains(inner)
    return w


if __name__ == "__main__":
    main()
