"""The mixers once more: numpy, float64, one token at a time, straight from the equations.

Every function takes the mixer's input `u` [T, d] and its weights (name relative to the mixer ->
float64 array) and returns what goes into the golden file plus `out` [T, d], which make.py compares
with the output of the official layer. Nothing here is shared with transformers.
"""

import numpy as np


def silu(x):
    return x / (1.0 + np.exp(-x))


def softplus(x):
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def linear(x, w, name):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def causal_conv(v, w):
    """Depthwise causal convolution over time; the LAST tap meets the current token."""
    taps = w["conv1d.weight"][:, 0, :]
    bias = w.get("conv1d.bias", np.zeros(taps.shape[0]))
    kernel = taps.shape[1]
    out = np.empty_like(v)
    for t in range(v.shape[0]):
        out[t] = bias
        for j in range(kernel):
            source = t - kernel + 1 + j
            if source >= 0:
                out[t] += taps[:, j] * v[source]
    return out


def mamba1(u, w, rank, mixing):
    """Selective scan. A state per channel and index n: h[c, n]."""
    a = -np.exp(w["A_log"])
    inner, n = a.shape
    xz = linear(u, w, "in_proj")
    x, z = silu(causal_conv(xz[:, :inner], w)), xz[:, inner:]
    dbc = linear(x, w, "x_proj")
    delta = softplus(linear(dbc[:, :rank], w, "dt_proj"))
    b, c = dbc[:, rank : rank + n], dbc[:, rank + n :]
    h = np.zeros((inner, n))
    y = np.empty_like(x)
    for t in range(len(u)):
        h = np.exp(delta[t][:, None] * a) * h + (delta[t] * x[t])[:, None] * b[t]
        y[t] = h @ c[t] + w["D"] * x[t]
    result = {"delta": delta, "B": b, "C": c, "x": x, "y": y, "state": h}
    if mixing:
        channels = np.array([0, inner // 2, inner - 1])
        m = np.stack([mamba1_matrix(delta[:, k], a[k], b, c, w["D"][k]) for k in channels])
        check_mixing(np.einsum("kts,sk->tk", m, x[:, channels]), y[:, channels])
        result |= {"mixing": m, "mixing_channels": channels}
    return result | {"out": linear(y * silu(z), w, "out_proj")}


def mamba1_matrix(delta, a, b, c, d):
    total = np.cumsum(delta)
    m = np.zeros((len(delta), len(delta)))
    for t in range(len(delta)):
        for s in range(t + 1):
            m[t, s] = delta[s] * np.sum(c[t] * b[s] * np.exp(a * (total[t] - total[s])))
        m[t, t] += d
    return m


def mamba2(u, w, groups, head_dim, eps, limit, mixing, norm_groups=None):
    """SSD recurrence. A state per head: S[p, n]; consecutive heads share a B/C group."""
    heads = len(w["A_log"])
    inner = heads * head_dim
    n = (w["conv1d.weight"].shape[0] - inner) // (2 * groups)
    a = -np.exp(w["A_log"])
    projected = linear(u, w, "in_proj")
    z, xbc, dt = np.split(projected, [inner, 2 * inner + 2 * groups * n], axis=1)
    xbc = silu(causal_conv(xbc, w))
    T = len(u)
    x = xbc[:, :inner].reshape(T, heads, head_dim)
    b = xbc[:, inner : inner + groups * n].reshape(T, groups, n)
    c = xbc[:, inner + groups * n :].reshape(T, groups, n)
    delta = np.clip(softplus(dt + w["dt_bias"]), *limit)
    state = np.zeros((heads, head_dim, n))
    y = np.empty_like(x)
    for t in range(T):
        for h in range(heads):
            g = h * groups // heads
            write = delta[t, h] * np.outer(x[t, h], b[t, g])
            state[h] = np.exp(delta[t, h] * a[h]) * state[h] + write
            y[t, h] = state[h] @ c[t, g] + w["D"][h] * x[t, h]
    result = {"delta": delta, "decay_exponent": delta * a, "B": b, "C": c, "x": x, "y": y}
    result["state"] = state
    if mixing:
        m = np.stack(
            [
                mamba2_matrix(delta[:, h], a[h], b[:, h * groups // heads], c[:, h * groups // heads], w["D"][h])
                for h in range(heads)
            ]
        )
        check_mixing(np.einsum("hts,shp->thp", m, x), y)
        result["mixing"] = m
    normed = gated_norm(y.reshape(T, inner), z, w["norm.weight"], norm_groups or groups, eps)
    return result | {"out": linear(normed, w, "out_proj")}


def mamba2_matrix(delta, a, b, c, d):
    total = np.cumsum(delta * a)
    m = np.zeros((len(delta), len(delta)))
    for t in range(len(delta)):
        for s in range(t + 1):
            m[t, s] = (c[t] @ b[s]) * np.exp(total[t] - total[s]) * delta[s]
        m[t, t] += d
    return m


def gated_norm(y, z, weight, groups, eps):
    """Gate first, then a root mean square per group of channels."""
    v = (y * silu(z)).reshape(len(y), groups, -1)
    v = v / np.sqrt(np.mean(v * v, axis=-1, keepdims=True) + eps)
    return v.reshape(y.shape) * weight


def check_mixing(product, y):
    error = np.abs(product - y).max() / np.abs(y).max()
    assert error < 1e-10, f"M x is not y: {error}"


def inverse_frequencies(rotary_dims, rope):
    freq = rope["rope_theta"] ** (-2.0 * np.arange(rotary_dims // 2) / rotary_dims)
    if rope.get("rope_type", "default") == "default":
        return freq
    assert rope["rope_type"] == "llama3"
    original = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    for j, f in enumerate(freq):
        wavelength = 2 * np.pi / f
        if wavelength > original / low:
            freq[j] = f / factor
        elif wavelength >= original / high:
            share = (original / wavelength - low) / (high - low)
            freq[j] = (1 - share) * f / factor + share * f
    return freq


def rotate(x, freq):
    """Half-split rotary embedding of the first 2·len(freq) dimensions; x is [T, heads, head_dim]."""
    half = len(freq)
    angle = (np.arange(len(x))[:, None] * freq)[:, None, :]
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = [first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]]
    return np.concatenate(turned, axis=-1)


def attention(u, w, heads, kv_heads, head_dim, rotary_dims, rope):
    T = len(u)
    freq = inverse_frequencies(rotary_dims, rope)
    q = rotate(linear(u, w, "q_proj").reshape(T, heads, head_dim), freq)
    k = rotate(linear(u, w, "k_proj").reshape(T, kv_heads, head_dim), freq)
    v = linear(u, w, "v_proj").reshape(T, kv_heads, head_dim)
    mixing = np.zeros((heads, T, T))
    y = np.zeros((T, heads, head_dim))
    for h in range(heads):
        g = h * kv_heads // heads
        for t in range(T):
            score = k[: t + 1, g] @ q[t, h] / np.sqrt(head_dim)
            weight = np.exp(score - score.max())
            mixing[h, t, : t + 1] = weight / weight.sum()
            y[t, h] = mixing[h, t, : t + 1] @ v[: t + 1, g]
    return {"mixing": mixing, "out": linear(y.reshape(T, heads * head_dim), w, "o_proj")}
