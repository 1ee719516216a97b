"""S4, S4D, H3, Hyena and sLSTM in the layout of assets/layouts.md: checkpoints and goldens in plain float64 numpy, from the equations.

    /tmp/goldens/bin/python tests/goldens/ancestors.py [case …]

Where a mixer has several forms all are computed and must agree: the recurrence with dense matrices, the convolution with a kernel of its
own (a Vandermonde product, or the generating function of a diagonal plus low-rank system, both from the papers).
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
COMMON = dict(vocab_size=32, hidden_size=12, num_hidden_layers=2, intermediate_size=10, layer_norm_epsilon=1e-5, tie_word_embeddings=False)
SMALL = COMMON | dict(hidden_size=8, num_hidden_layers=1, intermediate_size=6)
CASES = {
    "s4_a": COMMON | dict(model_type="s4", state_size=10, discretization="bilinear"),
    "s4d_a": COMMON | dict(model_type="s4d", state_size=12, discretization="zoh"),
    "h3_a": COMMON | dict(model_type="h3", state_size=8, shift_size=5, discretization="bilinear"),
    "hyena_a": COMMON | dict(
        model_type="hyena", filter_length=40, filter_features=5, filter_width=6, filter_inner_layers=2, filter_shift=0.1,
        short_filter_length=3),
    "slstm_a": COMMON | dict(model_type="slstm", num_heads=4, conv_kernel=4),
    "h3_heads": SMALL | dict(model_type="h3", head_dim=4, state_size=6, shift_size=3, discretization="zoh"),
    "hyena_order": SMALL | dict(
        model_type="hyena", order=4, filter_length=16, filter_shift=0.0, filter_features=3, filter_width=4, filter_inner_layers=1, short_filter_length=2),
}  # fmt: skip
TOKENS, PROMPT, CONTINUATION = 20, 6, 10


def main():
    for seed, (name, config) in enumerate(CASES.items()):
        if not sys.argv[1:] or name in sys.argv[1:]:
            make(name, config, np.random.default_rng(100 + seed))


def make(name, config, rng):
    weights = build(config, rng)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: value.astype(np.float32) for key, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    weights = {key: value.astype(np.float32).astype(np.float64) for key, value in weights.items()}
    vocab = config["vocab_size"]
    ids = rng.integers(0, vocab, TOKENS)
    logits, resid = forward(config, weights, ids)
    golden = {"input_ids": ids.astype(np.int64), "logits": logits.astype(np.float32)}
    golden |= {f"resid.{i}": x.astype(np.float32) for i, x in enumerate(resid)}
    golden |= greedy(config, weights, rng)
    save_file(golden, folder / "golden.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name:14} {size / 1024:5.1f} KiB")


# ---------------------------------------------------------------- the model around the mixers


def forward(config, w, ids):
    x, resid = w["backbone.embeddings.weight"][ids], []
    for i in range(config["num_hidden_layers"]):
        layer = Scope(w, f"backbone.layers.{i}.")
        x = x + MIXERS[config["model_type"]](config, layer.inside("mixer."), layer_norm(config, layer, "norm", x))
        normed = layer_norm(config, layer, "norm2", x)
        if config["model_type"] == "slstm":
            hidden = gelu(linear(layer, "mlp.gate_proj", normed)) * linear(layer, "mlp.up_proj", normed)
            x = x + linear(layer, "mlp.down_proj", hidden)
        else:
            x = x + linear(layer, "mlp.fc2", gelu(linear(layer, "mlp.fc1", normed)))
        resid.append(x)
    head = w.get("lm_head.weight", w["backbone.embeddings.weight"])
    return layer_norm(config, Scope(w, "backbone."), "norm_f", x) @ head.T, resid


class Scope(dict):
    def __init__(self, w, prefix):
        super().__init__({name[len(prefix) :]: value for name, value in w.items() if name.startswith(prefix)})

    def inside(self, prefix):
        return Scope(self, prefix)


def linear(w, name, x):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(config, w, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def greedy(config, w, rng, forward=forward):
    """A prompt whose continuation is clear at every step."""
    for _ in range(500):
        ids = list(rng.integers(0, config["vocab_size"], PROMPT))
        for _ in range(CONTINUATION):
            logits = forward(config, w, ids)[0][-1]
            second, best = np.sort(logits)[-2:]
            if best - second < 0.01:
                break
            if int(logits.argmax()) == config.get("eos_token_id"):
                break
            ids.append(int(logits.argmax()))
        else:
            if len(set(ids[PROMPT:])) >= 4:
                return {"greedy_prompt": np.array(ids[:PROMPT], dtype=np.int64), "greedy": np.array(ids[PROMPT:], dtype=np.int64)}
    raise AssertionError("no lively prompt found")


def same(a, b, what):
    error = np.abs(a - b).max() / np.abs(b).max()
    assert error < 1e-9, f"{what}: the forms differ by {error}"


# ---------------------------------------------------------------- state spaces


def system(w):
    """λ, B, C, P [C, N/2] and Δ [C]."""
    lam = -np.exp(w["kernel.log_A_real"]) + 1j * w["kernel.A_imag"]
    pair = lambda name: w[name][..., 0] + 1j * w[name][..., 1] if name in w else None
    b = pair("kernel.B")
    return lam, np.ones_like(lam) if b is None else b, pair("kernel.C"), pair("kernel.P"), np.exp(w["kernel.log_dt"])


def state_space(config, w, u):
    """u [T, C] -> y: the recurrence with dense matrices over all N states, held against the convolution with the kernel."""
    y = np.empty_like(u)
    for c, (lam, b, out, p, dt) in enumerate(zip(*(x if x is not None else [None] * u.shape[1] for x in system(w)))):
        both = lambda x: np.concatenate([x, x.conj()])
        a = np.diag(both(lam))
        if p is not None:
            a = a - np.outer(both(p), both(p).conj())
        one = np.eye(len(a))
        if config["discretization"] == "zoh":
            a_bar = np.diag(np.exp(dt * both(lam)))
            b_bar = np.linalg.solve(a, (a_bar - one) @ both(b))
        else:
            a_bar = np.linalg.solve(one - dt / 2 * a, one + dt / 2 * a)
            b_bar = np.linalg.solve(one - dt / 2 * a, dt * both(b))
        x = np.zeros(len(a), dtype=complex)
        for t in range(len(u)):
            x = a_bar @ x + b_bar * u[t, c]
            read = both(out) @ x
            assert abs(read.imag) < 1e-9
            y[t, c] = read.real
        kernel = vandermonde(a_bar, b_bar, out, len(u)) if p is None else generating(lam, b, out, p, dt, a_bar, len(u))
        same(np.convolve(kernel, u[:, c])[: len(u)], y[:, c], "state space")
    return y + w["D"] * u


def vandermonde(a_bar, b_bar, out, length):
    half = len(out)
    powers = np.diag(a_bar)[:half, None] ** np.arange(length)
    return 2 * ((out * b_bar[:half])[:, None] * powers).sum(0).real


def generating(lam, b, out, p, dt, a_bar, length):
    """The kernel of a DPLR system from its truncated generating function at the roots of unity (Gu, Goel & Ré 2022, 2.3)."""
    both = lambda x: np.concatenate([x, x.conj()])
    length += length % 2 == 0  # z has a pole at ω = −1, which an odd length has not
    c = both(out) @ (np.eye(len(a_bar)) - np.linalg.matrix_power(a_bar, length))
    omega = np.exp(-2j * np.pi * np.arange(length) / length)
    z = 2 / dt * (1 - omega) / (1 + omega)
    cauchy = lambda x, y: ((x * y)[:, None] / (z - both(lam)[:, None])).sum(0)
    q = both(p).conj()
    hat = cauchy(c, both(b)) - cauchy(c, both(p)) * cauchy(q, both(b)) / (1 + cauchy(q, both(p)))
    return np.fft.ifft(2 / (1 + omega) * hat).real


def s4(config, w, u):
    pairs = linear(w, "output_linear", gelu(state_space(config, w, u)))
    a, z = np.split(pairs, 2, axis=1)
    return a * sigmoid(z)


def h3(config, w, u):
    q, k, v = (linear(w, f"{name}_proj", u) for name in "qkv")
    shifted = np.zeros_like(k)
    register = np.zeros((k.shape[1], config["shift_size"]))
    for t in range(len(k)):
        register = np.roll(register, 1, axis=1)
        register[:, 0] = 0
        register += w["shift.B"] * k[t][:, None]
        shifted[t] = (w["shift.C"] * register).sum(1) + w["shift.D"] * k[t]
    p = config.get("head_dim", 1)
    q, k, v = (x.reshape(len(x), -1, p) for x in (q, shifted, v))
    # One system for all products of a head: [T, H, value, key].
    products = v[..., None] * k[:, :, None]
    held = np.empty_like(products)
    for i in range(p):
        for j in range(p):
            held[:, :, i, j] = state_space(config, w, products[:, :, i, j])
    y = np.einsum("thvk,thk->thv", held, q)
    for head in range(y.shape[1]):
        one = {name: value[head : head + 1] for name, value in w.items() if name == "D" or name.startswith("kernel.")}
        impulse = np.zeros((len(u), 1))
        impulse[0] = 1
        kernel = state_space(config, one, impulse)[:, 0]
        age = np.arange(len(u))[:, None] - np.arange(len(u))
        m = np.where(age >= 0, (q[:, head] @ k[:, head].T) * kernel[np.maximum(age, 0)], 0)
        same(m @ v[:, head], y[:, head], "H3")
    # As published, the channels of the heads stand before the heads.
    return linear(w, "output_linear", y.transpose(0, 2, 1).reshape(len(u), -1))


# ---------------------------------------------------------------- Hyena


def hyena(config, w, u):
    p, taps = linear(w, "in_proj", u), w["short_filter.weight"][:, 0]
    padded = np.concatenate([np.zeros((taps.shape[1] - 1, p.shape[1])), p])
    p = sum(taps[:, j] * padded[j : j + len(p)] for j in range(taps.shape[1])) + w["short_filter.bias"]
    *gates, v = np.split(p, config.get("order", 2) + 1, axis=1)
    length, bands = config["filter_length"], (config["filter_features"] - 1) // 2
    time = np.linspace(0, 1, length)[:, None]
    phase = 2 * np.pi * np.arange(length)[:, None] / length * np.linspace(1e-4, bands - 1, bands)
    h = np.concatenate([time, np.cos(phase), -np.sin(phase)], axis=1)
    function, last = w.inside("filter_fn."), 2 * config["filter_inner_layers"] + 2
    for i in range(0, last, 2):
        h = np.sin(function["implicit_filter.1.freq"] * linear(function, f"implicit_filter.{i}", h))
    h = linear(function, f"implicit_filter.{last}", h)
    h = h * (np.exp(-time * np.abs(function["modulation.deltas"][0, 0])) + config["filter_shift"])
    # A channel's filters stand one beside the other.
    filters, skips = h.reshape(length, v.shape[1], -1), function["bias"].reshape(v.shape[1], -1)
    T, matrix, values = len(v), np.eye(len(v))[None], v
    age = np.arange(T)[:, None] - np.arange(T)
    for o, gate in enumerate(reversed(gates[1:])):
        z, k = gate * v, filters[: min(T, length), :, o]
        v = skips[:, o] * z
        for t in range(T):
            for s in range(max(0, t + 1 - length), t + 1):
                v[t] += k[t - s] * z[s]
        size = 2 * max(T, length)
        spectrum = np.fft.irfft(np.fft.rfft(k, size, axis=0) * np.fft.rfft(z, size, axis=0), axis=0)
        same(spectrum[:T] + skips[:, o] * z, v, "hyena")
        band = np.where((age >= 0) & (age < length), k[np.clip(age, 0, len(k) - 1)].transpose(2, 0, 1), 0) + skips[:, o, None, None] * np.eye(T)
        matrix = band * gate.T[:, None] @ matrix
    y = gates[0] * v
    same(np.einsum("cts,sc->tc", gates[0].T[:, :, None] * matrix, values), y, "the matrix of Hyena")
    return linear(w, "out_proj", y)


# ---------------------------------------------------------------- sLSTM


def slstm(config, w, u):
    """One token after the other, without a stabiliser: in float64 the exponentials fit. What the gates of the run make of the values, by
    the matrix that they span, must be the same."""
    d, heads = u.shape[1], config["num_heads"]
    taps = w["conv1d.weight"][:, 0]
    padded = np.concatenate([np.zeros((taps.shape[1] - 1, d)), u])
    v = sum(taps[:, j] * padded[j : j + len(u)] for j in range(taps.shape[1])) + w["conv1d.bias"]
    v = v * sigmoid(v)

    def blocks(weight, x):
        """weight [H, in, out], x [d]"""
        return np.einsum("hi,hio->ho", x.reshape(heads, -1), weight).ravel()

    names = ("input_gate", "forget_gate", "cell_input", "output_gate")
    recurrent = w["recurrent_weight"].reshape(4, heads, d // heads, d // heads)
    c, n, h, y = np.zeros(d), np.zeros(d), np.zeros(d), np.empty_like(u)
    gates = []
    for t in range(len(u)):
        i, f, z, o = (
            blocks(w[f"{name}_weight"], x[t]) + blocks(r, h) + w[f"{name}_bias"].ravel() for name, x, r in zip(names, (v, v, u, u), recurrent)
        )
        i, f, z, o = np.exp(i), sigmoid(f), np.tanh(z), sigmoid(o)
        c, n = f * c + i * z, f * n + i
        h = y[t] = o * c / n
        gates.append((i, f, z, o))
    i, f, z, o = (np.stack(part) for part in zip(*gates))
    kept = np.cumsum(np.log(f), 0)
    for t in range(len(u)):
        row = np.exp(kept[t] - kept[: t + 1]) * i[: t + 1]
        same(o[t] * (row / row.sum(0) * z[: t + 1]).sum(0), y[t], "sLSTM")
    parts = y.reshape(len(y), heads, -1)
    parts = parts - parts.mean(-1, keepdims=True)
    parts = parts / np.sqrt((parts * parts).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
    return parts.reshape(u.shape) * w["group_norm.weight"]


MIXERS = {"slstm": slstm, "s4": s4, "s4d": s4, "h3": h3, "hyena": hyena}


# ---------------------------------------------------------------- weights


def build(config, rng):
    d, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    normal = lambda *shape: rng.normal(size=shape)
    w = {"backbone.embeddings.weight": normal(vocab, d) * (0.4 if config["tie_word_embeddings"] else 1.0)}
    if not config["tie_word_embeddings"]:
        w["lm_head.weight"] = normal(vocab, d) / math.sqrt(d)

    def norm(name):
        w[f"{name}.weight"], w[f"{name}.bias"] = 1 + 0.2 * normal(d), 0.1 * normal(d)

    def affine(name, rows, cols):
        w[f"{name}.weight"], w[f"{name}.bias"] = normal(rows, cols) / math.sqrt(cols), 0.1 * normal(rows)

    norm("backbone.norm_f")
    for i in range(config["num_hidden_layers"]):
        layer = f"backbone.layers.{i}."
        norm(f"{layer}norm")
        norm(f"{layer}norm2")
        mixer = f"{layer}mixer."
        if config["model_type"] == "slstm":
            w[f"{layer}mlp.gate_proj.weight"], w[f"{layer}mlp.up_proj.weight"] = normal(2, inner, d) / math.sqrt(d)
            w[f"{layer}mlp.down_proj.weight"] = normal(d, inner) / math.sqrt(inner)
            build_slstm(config, w, mixer, normal)
            continue
        affine(f"{layer}mlp.fc1", inner, d)
        affine(f"{layer}mlp.fc2", d, inner)
        if config["model_type"] == "hyena":
            build_hyena(config, w, mixer, affine, normal)
        else:
            build_system(config, w, mixer, rng, normal)
        if config["model_type"] == "h3":
            for name in ("q_proj", "k_proj", "v_proj", "output_linear"):
                affine(mixer + name, d, d)
            w |= {mixer + "shift.B": normal(d, config["shift_size"]) * 0.5, mixer + "shift.C": normal(d, config["shift_size"]) * 0.5}
            w[mixer + "shift.D"] = normal(d)
        elif config["model_type"] in ("s4", "s4d"):
            affine(mixer + "output_linear", 2 * d, d)
    return w


def build_system(config, w, mixer, rng, normal):
    """Near the initialisations of the papers: S4D-Lin, and HiPPO-LegS for a DPLR system."""
    d, half = config["hidden_size"] // config.get("head_dim", 1), config["state_size"] // 2
    w[mixer + "kernel.log_dt"] = rng.uniform(math.log(0.02), math.log(0.7), d)
    w[mixer + "D"] = normal(d)
    w[mixer + "kernel.C"] = normal(d, half, 2) * 0.7
    if config["model_type"] != "s4":
        w[mixer + "kernel.log_A_real"] = math.log(0.5) + 0.3 * normal(d, half)
        w[mixer + "kernel.A_imag"] = math.pi * np.arange(half) + 0.2 * normal(d, half)
        return
    lam, b, p = legs(2 * half)
    spread = lambda x: np.stack([x.real, x.imag], -1)[None] * (1 + 0.1 * normal(d, half, 1))
    w[mixer + "kernel.log_A_real"] = np.log(-lam.real) + 0.1 * normal(d, half)
    w[mixer + "kernel.A_imag"] = lam.imag + 0.1 * normal(d, half)
    w[mixer + "kernel.B"], w[mixer + "kernel.P"] = spread(b), spread(p)


def legs(n):
    """HiPPO-LegS, A + P Pᵀ normal: eigenvalues with positive imaginary part, B and P in their basis."""
    k = np.arange(n)
    a = -np.sqrt(np.outer(2 * k + 1, 2 * k + 1)) * (k[:, None] > k) - np.diag(k + 1.0)
    p, b = np.sqrt(k + 0.5), np.sqrt(2 * k + 1.0)
    skew = a + np.outer(p, p) + 0.5 * np.eye(n)
    same(skew, -skew.T, "LegS")
    values, basis = np.linalg.eigh(-1j * skew)
    chosen = values > 0
    return -0.5 + 1j * values[chosen], (basis.conj().T @ b)[chosen], (basis.conj().T @ p)[chosen]


def build_hyena(config, w, mixer, affine, normal):
    d, width, features, order = config["hidden_size"], config["filter_width"], config["filter_features"], config.get("order", 2)
    affine(mixer + "in_proj", (order + 1) * d, d)
    affine(mixer + "out_proj", d, d)
    w[mixer + "short_filter.weight"], w[mixer + "short_filter.bias"] = 0.5 * normal((order + 1) * d, 1, config["short_filter_length"]), 0.1 * normal((order + 1) * d)
    function, last = mixer + "filter_fn.", 2 * config["filter_inner_layers"] + 2
    for i in range(0, last, 2):
        affine(f"{function}implicit_filter.{i}", width, features if i == 0 else width)
    d *= order - 1
    w[f"{function}implicit_filter.{last}.weight"] = normal(d, width) / math.sqrt(width)
    w[f"{function}implicit_filter.1.freq"] = 2 + 0.5 * normal(1, width)
    w[f"{function}modulation.deltas"] = -np.linspace(math.log(100) / 1.5, math.log(100) / 0.3, d)[None, None]
    w[f"{function}bias"] = normal(d)


def build_slstm(config, w, mixer, normal):
    d, heads = config["hidden_size"], config["num_heads"]
    width = d // heads
    w[mixer + "conv1d.weight"], w[mixer + "conv1d.bias"] = 0.5 * normal(d, 1, config["conv_kernel"]), 0.1 * normal(d)
    for name in ("input_gate", "forget_gate", "cell_input", "output_gate"):
        w[f"{mixer}{name}_weight"] = normal(heads, width, width) / math.sqrt(width)
        w[f"{mixer}{name}_bias"] = normal(heads, width) + 2 * (name == "forget_gate")
    w[mixer + "recurrent_weight"] = normal(4 * heads, width, width) / math.sqrt(width)
    w[mixer + "group_norm.weight"] = 1 + 0.2 * normal(d)


if __name__ == "__main__":
    main()
