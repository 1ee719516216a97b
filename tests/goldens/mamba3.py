"""Mamba-3 with one input and one output, in the layout of flash-linear-attention, whose code needs a GPU: checkpoint and golden in plain float64
numpy, from the equations.

    /tmp/goldens/bin/python tests/goldens/mamba3.py
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ancestors import Scope, greedy, same, sigmoid

FOLDER = Path(__file__).parent / "mamba3_a"
CONFIG = dict(
    model_type="mamba3", vocab_size=32, hidden_size=12, head_dim=4, state_size=6, n_groups=2, expand=2, num_hidden_layers=2, rope_fraction=0.7,
    A_floor=0.3, norm_eps=1e-5, is_outproj_norm=False, is_mimo=False, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)  # fmt: skip
HEADS, P, N, G = 6, 4, 6, 2
ANGLES = 2  # 0.7 · 6 = 4.2, of which 4 entries turn


def main():
    rng = np.random.default_rng(300)
    w = build(rng)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    save_file({name: value.astype(np.float32) for name, value in w.items()}, FOLDER / "model.safetensors", metadata={"format": "pt"})
    w = {name: value.astype(np.float32).astype(np.float64) for name, value in w.items()}
    ids = rng.integers(0, CONFIG["vocab_size"], 24)
    logits, resid = forward(CONFIG, w, ids)
    golden = {"input_ids": ids.astype(np.int64), "logits": logits.astype(np.float32)}
    golden |= {f"resid.{i}": x.astype(np.float32) for i, x in enumerate(resid)}
    golden |= greedy(CONFIG, w, rng, forward)
    save_file(golden, FOLDER / "golden.safetensors")
    print(sum(path.stat().st_size for path in FOLDER.iterdir()))


def rms(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def softplus(x):
    return np.logaddexp(0, x)


def forward(config, w, ids):
    x, resid = w["backbone.embeddings.weight"][ids], []
    for i in range(config["num_hidden_layers"]):
        layer = Scope(w, f"backbone.layers.{i}.")
        x = x + mixer(layer.inside("mixer."), rms(x, layer["norm.weight"]))
        resid.append(x)
    return rms(x, w["backbone.norm_f.weight"]) @ w["lm_head.weight"].T, resid


def turned(x, phase):
    """Pairs (2i, 2i + 1) of x [H, N] by phase [H, n_a]; the rest stays."""
    out = x.copy()
    a, b = x[:, 0 : 2 * ANGLES : 2], x[:, 1 : 2 * ANGLES : 2]
    out[:, 0 : 2 * ANGLES : 2], out[:, 1 : 2 * ANGLES : 2] = a * np.cos(phase) - b * np.sin(phase), a * np.sin(phase) + b * np.cos(phase)
    return out


def mixer(w, u):
    inner = HEADS * P
    sizes = np.cumsum([inner, inner, G * N, G * N, HEADS, HEADS, HEADS])
    z, x, b, c, dt, a, trap, angles = np.split(u @ w["in_proj.weight"].T, sizes, axis=1)
    x = x.reshape(len(u), HEADS, P)
    of_heads = lambda part, name: np.repeat(rms(part.reshape(len(u), G, N), w[f"{name}_norm.weight"]), HEADS // G, axis=1) + w[f"{name}_bias"][:, 0]
    b, c = of_heads(b, "B"), of_heads(c, "C")
    delta, rate, share = softplus(dt + w["dt_bias"]), -np.maximum(softplus(a), CONFIG["A_floor"]), sigmoid(trap)
    assert 0.05 < (rate == -CONFIG["A_floor"]).mean() < 0.95, "the floor does not matter"
    phase = np.cumsum(delta[:, :, None] * (np.pi * np.tanh(angles))[:, None], 0)
    b, c = (np.stack([turned(row, angle) for row, angle in zip(part, phase)]) for part in (b, c))
    alpha, gamma = np.exp(delta * rate), share * delta
    beta = (1 - share) * delta * alpha
    state, y = np.zeros((HEADS, P, N)), np.empty_like(x)
    for t in range(len(u)):
        state = alpha[t][:, None, None] * state + gamma[t][:, None, None] * x[t][:, :, None] * b[t][:, None]
        if t > 0:
            state = state + beta[t][:, None, None] * x[t - 1][:, :, None] * b[t - 1][:, None]
        y[t] = np.einsum("hpn,hn->hp", state, c[t])
    total = np.cumsum(delta * rate, 0)
    for h in range(HEADS):
        m = np.tril((c[:, h] @ b[:, h].T) * np.exp(np.minimum(total[:, None, h] - total[None, :, h], 0)))
        later = np.append((1 - share[1:, h]) * delta[1:, h], 0)
        m = m * (gamma[:, h] + later) - np.diag(np.diag(m) * later)
        same(m @ x[:, h], y[:, h], "Mamba-3")
    y = (y + w["D"][:, None] * x).reshape(len(u), inner)
    return (y * z * sigmoid(z)) @ w["out_proj.weight"].T


def build(rng):
    d, vocab, inner = CONFIG["hidden_size"], CONFIG["vocab_size"], HEADS * P
    normal = lambda *shape: rng.normal(size=shape)
    w = {"backbone.embeddings.weight": normal(vocab, d), "lm_head.weight": normal(vocab, d) / math.sqrt(d)}
    w["backbone.norm_f.weight"] = 1 + 0.2 * normal(d)
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"backbone.layers.{i}."
        w[layer + "norm.weight"] = 1 + 0.2 * normal(d)
        mixer = layer + "mixer."
        w[mixer + "in_proj.weight"] = normal(2 * inner + 2 * G * N + 3 * HEADS + ANGLES, d) / math.sqrt(d)
        w[mixer + "out_proj.weight"] = normal(d, inner) / math.sqrt(inner)
        for name in "BC":
            w[f"{mixer}{name}_norm.weight"], w[f"{mixer}{name}_bias"] = 1 + 0.2 * normal(N), 1 + 0.3 * normal(HEADS, 1, N)
        w[mixer + "dt_bias"], w[mixer + "D"] = 0.5 * normal(HEADS) - 3, normal(HEADS)
    return w


if __name__ == "__main__":
    main()
