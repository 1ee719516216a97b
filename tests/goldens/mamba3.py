"""Mamba-3 with one input and one output and with several, in the layout of flash-linear-attention, whose code needs a GPU: checkpoints and goldens in
plain float64 numpy, from the equations (of several, those of `mamba3_MIMO_step_ref` in state-spaces/mamba, with halves turned as the kernels do).

    /tmp/goldens/bin/python tests/goldens/mamba3.py [case …]
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ancestors import Scope, greedy, same, sigmoid

HERE = Path(__file__).parent
COMMON = dict(
    model_type="mamba3", vocab_size=32, hidden_size=12, head_dim=4, state_size=6, n_groups=2, expand=2, num_hidden_layers=2, rope_fraction=0.7,
    A_floor=0.3, norm_eps=1e-5, is_outproj_norm=False, is_mimo=False, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)  # fmt: skip
SMALL = COMMON | dict(hidden_size=8, rope_fraction=0.5, is_mimo=True, norm_eps=1e-3)
# Seed and config. The state of one case is turned whole, of the others in part.
CASES = {
    "mamba3_a": (300, COMMON),
    "mamba3_norm": (301, SMALL | dict(is_mimo=False, is_outproj_norm=True, num_hidden_layers=1)),
    "mamba3_mimo": (301, SMALL | dict(mimo_rank=3, num_hidden_layers=1)),
    "mamba3_mimo_norm": (302, SMALL | dict(mimo_rank=2, is_outproj_norm=True, rope_fraction=1.0, n_groups=1, num_hidden_layers=1)),
}


def main():
    for name, (seed, config) in CASES.items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            make(HERE / name, config, np.random.default_rng(seed))


def make(folder, config, rng):
    w = build(config, rng)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: value.astype(np.float32) for name, value in w.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    w = {name: value.astype(np.float32).astype(np.float64) for name, value in w.items()}
    ids = rng.integers(0, config["vocab_size"], 24)
    logits, resid = forward(config, w, ids)
    golden = {"input_ids": ids.astype(np.int64), "logits": logits.astype(np.float32)}
    golden |= {f"resid.{i}": x.astype(np.float32) for i, x in enumerate(resid)}
    golden |= greedy(config, w, rng, forward)
    save_file(golden, folder / "golden.safetensors")
    print(folder.name, sum(path.stat().st_size for path in folder.iterdir()))


def sizes(config):
    """H, P, N, G, r and n_a."""
    heads = config["expand"] * config["hidden_size"] // config["head_dim"]
    angles = int(config["state_size"] * config["rope_fraction"]) // 2
    return heads, config["head_dim"], config["state_size"], config["n_groups"], config["mimo_rank"] if config["is_mimo"] else 1, angles


def rms(config, x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["norm_eps"]) * weight


def softplus(x):
    return np.logaddexp(0, x)


def silu(x):
    return x * sigmoid(x)


def forward(config, w, ids):
    x, resid = w["backbone.embeddings.weight"][ids], []
    for i in range(config["num_hidden_layers"]):
        layer = Scope(w, f"backbone.layers.{i}.")
        x = x + mixer(config, layer.inside("mixer."), rms(config, x, layer["norm.weight"]))
        resid.append(x)
    return rms(config, x, w["backbone.norm_f.weight"]) @ w["lm_head.weight"].T, resid


def turned(config, x, phase):
    """Pairs of x [H, r, N] by phase [H, n_a]: (2i, 2i + 1), or with several inputs (i, i + N/2); the rest stays."""
    *_, n, _, _, angles = sizes(config)
    first = np.arange(angles) if config["is_mimo"] else 2 * np.arange(angles)
    second = first + (n // 2 if config["is_mimo"] else 1)
    out, a, b = x.copy(), x[..., first], x[..., second]
    phase = phase[:, None]
    out[..., first], out[..., second] = a * np.cos(phase) - b * np.sin(phase), a * np.sin(phase) + b * np.cos(phase)
    return out


def mixer(config, w, u):
    heads, p, n, groups, rank, angles = sizes(config)
    inner, T = heads * p, len(u)
    cuts = np.cumsum([inner, inner, rank * groups * n, rank * groups * n, heads, heads, heads])
    z, x, b, c, dt, a, trap, turns = np.split(u @ w["in_proj.weight"].T, cuts, axis=1)
    z, x = z.reshape(T, heads, p), x.reshape(T, heads, p)

    def of_heads(part, name):  # [T, H, r, N]
        normed = rms(config, part.reshape(T, rank, groups, n), w[f"{name}_norm.weight"])
        return np.repeat(normed, heads // groups, axis=2).transpose(0, 2, 1, 3) + w[f"{name}_bias"]

    b, c = of_heads(b, "B"), of_heads(c, "C")
    delta, rate, share = softplus(dt + w["dt_bias"]), -np.maximum(softplus(a), config["A_floor"]), sigmoid(trap)
    assert T < 24 or 0.05 < (rate == -config["A_floor"]).mean() < 0.95, "the floor does not matter"
    phase = np.cumsum(delta[:, :, None] * (np.pi * np.tanh(turns))[:, None], 0)
    b, c = (np.stack([turned(config, row, angle) for row, angle in zip(part, phase)]) for part in (b, c))
    alpha, gamma = np.exp(delta * rate), share * delta
    beta = (1 - share) * delta * alpha
    ones = np.ones((heads, rank, p))
    inputs, gates, outputs = (w.get(f"mimo_{name}", ones) for name in "xzo")
    ranked = x[:, :, None] * inputs  # [T, H, r, P]
    state, y = np.zeros((heads, p, n)), np.empty_like(ranked)
    for t in range(T):
        state = alpha[t][:, None, None] * state + gamma[t][:, None, None] * np.einsum("hrp,hrn->hpn", ranked[t], b[t])
        if t > 0:
            state = state + beta[t][:, None, None] * np.einsum("hrp,hrn->hpn", ranked[t - 1], b[t - 1])
        y[t] = np.einsum("hpn,hrn->hrp", state, c[t]) + w["D"][:, None, None] * ranked[t]
    gate = outputs * silu(z[:, :, None] * gates)
    if config["is_outproj_norm"]:
        weight = w["norm.weight"].reshape(heads, 1, p)
        normed = rms(config, y, weight)
        gate = gate * weight / np.sqrt((y * y).mean(-1, keepdims=True) + config["norm_eps"])
        same(gate * y, outputs * normed * silu(z[:, :, None] * gates), "Mamba-3, norm")
    out = (gate * y).sum(2)  # [T, H, P]
    check_matrices(config, w, ranked, x, b, c, gate, delta, rate, share, out)
    return out.reshape(T, inner) @ w["out_proj.weight"].T


def check_matrices(config, w, ranked, x, b, c, gate, delta, rate, share, out):
    """Gates included, every channel has a matrix of its own."""
    heads, p, *_ = sizes(config)
    inputs = w.get("mimo_x", np.ones((heads, 1, p)))
    total = np.cumsum(delta * rate, 0)
    for h in range(heads):
        fade = np.exp(np.minimum(total[:, None, h] - total[None, :, h], 0))
        own, later = share[:, h] * delta[:, h], np.append((1 - share[1:, h]) * delta[1:, h], 0)
        for channel in range(p):
            key = np.einsum("r,trn->tn", inputs[h, :, channel], b[:, h])
            query = np.einsum("tr,trn->tn", gate[:, h, :, channel], c[:, h])
            m = np.tril((query @ key.T) * fade)
            m = m * (own + later) - np.diag(np.diag(m) * later)
            m = m + np.diag(w["D"][h] * (gate[:, h, :, channel] @ inputs[h, :, channel]))
            same(m @ x[:, h, channel], out[:, h, channel], "Mamba-3")


def build(config, rng):
    d, vocab = config["hidden_size"], config["vocab_size"]
    heads, p, n, groups, rank, angles = sizes(config)
    inner = heads * p
    normal = lambda *shape: rng.normal(size=shape)
    w = {"backbone.embeddings.weight": normal(vocab, d), "lm_head.weight": normal(vocab, d) / math.sqrt(d)}
    w["backbone.norm_f.weight"] = 1 + 0.2 * normal(d)
    for i in range(config["num_hidden_layers"]):
        layer = f"backbone.layers.{i}."
        w[layer + "norm.weight"] = 1 + 0.2 * normal(d)
        mixer = layer + "mixer."
        w[mixer + "in_proj.weight"] = normal(2 * inner + 2 * rank * groups * n + 3 * heads + angles, d) / math.sqrt(d)
        w[mixer + "out_proj.weight"] = normal(d, inner) / math.sqrt(inner)
        for name in "BC":
            w[f"{mixer}{name}_norm.weight"], w[f"{mixer}{name}_bias"] = 1 + 0.2 * normal(n), 1 + 0.3 * normal(heads, rank, n)
        w[mixer + "dt_bias"], w[mixer + "D"] = 0.5 * normal(heads) - 3, normal(heads)
        if config["is_mimo"]:
            for name, middle in ("x", 1 / rank), ("z", 1), ("o", 1 / rank):
                w[f"{mixer}mimo_{name}"] = middle + 0.5 * normal(heads, rank, p)
        if config["is_outproj_norm"]:
            w[mixer + "norm.weight"] = 1 + 0.2 * normal(inner)
    return w


if __name__ == "__main__":
    main()
