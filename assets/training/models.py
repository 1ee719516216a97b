"""Compact training modules whose parameter names and arithmetic equal the `transformers` classes.

Export is therefore a plain state dict. On a GPU the mixers use the kernels of `mamba_ssm` and
`causal_conv1d`; on a CPU they use short reference loops (for tests only).
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from configs import CONFIGS, CONTEXT, SHARED

try:
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
except ImportError:  # CPU tests
    causal_conv1d_fn = mamba_inner_fn = mamba_chunk_scan_combined = None

DIM = SHARED["hidden_size"]
DT_MIN, DT_MAX = 1e-3, 1e-1


def inverse_softplus_dt(count):
    """Biases b with softplus(b) log-uniform in [DT_MIN, DT_MAX]."""
    dt = torch.exp(torch.empty(count).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
    return dt + torch.log(-torch.expm1(-dt))


def depthwise_conv(channels, width):
    """A causal depthwise convolution's parameters (applied by the mixers themselves)."""
    return nn.Conv1d(channels, channels, width, groups=channels, padding=width - 1)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, statistics in f32; with `gate`, of x * silu(gate)."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x, gate=None):
        y = x.float()
        if gate is not None:
            y = y * F.silu(gate.float())
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        return y.bfloat16() if torch.is_autocast_enabled("cuda") else y


@torch.compiler.disable
def mamba1_kernel(mixer, xz):
    """The fused convolution, projections, selective scan, gate and output projection."""
    return mamba_inner_fn(
        xz,
        mixer.conv1d.weight,
        mixer.conv1d.bias,
        mixer.x_proj.weight,
        mixer.dt_proj.weight,
        mixer.out_proj.weight,
        None,
        -torch.exp(mixer.A_log.float()),
        D=mixer.D.float(),
        delta_bias=mixer.dt_proj.bias.float(),
        delta_softplus=True,
    )


def mamba1_reference(mixer, xz):
    """The same by a plain loop over time."""
    steps = xz.shape[-1]
    x, z = xz.chunk(2, dim=1)
    x = F.silu(mixer.conv1d(x)[..., :steps])
    rank, state = mixer.dt_proj.in_features, mixer.A_log.shape[1]
    dt, b, c = mixer.x_proj(x.transpose(1, 2)).split([rank, state, state], dim=-1)
    dt = F.softplus(mixer.dt_proj(dt)).transpose(1, 2)
    a = -torch.exp(mixer.A_log.float())
    h, ys = torch.zeros(*x.shape[:2], state), []
    for t in range(steps):
        step = dt[:, :, t, None]
        h = torch.exp(step * a) * h + step * b[:, None, t] * x[:, :, t, None]
        ys.append((h * c[:, None, t]).sum(-1))
    y = torch.stack(ys, dim=-1) + mixer.D[:, None] * x
    return mixer.out_proj((y * F.silu(z)).transpose(1, 2))


class Mamba1Mixer(nn.Module):
    """Selective scan with a diagonal state per channel (HF MambaMixer)."""

    def __init__(self, expand, state, rank, conv):
        super().__init__()
        inner = expand * DIM
        self.in_proj = nn.Linear(DIM, 2 * inner, bias=False)
        self.conv1d = depthwise_conv(inner, conv)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, DIM, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus_dt(inner))

    def forward(self, u):
        batch, steps, _ = u.shape
        xz = (self.in_proj.weight @ u.reshape(-1, DIM).t()).view(-1, batch, steps).transpose(0, 1)
        return mamba1_kernel(self, xz) if u.is_cuda else mamba1_reference(self, xz)


@torch.compiler.disable
def mamba2_kernel(mixer, xbc, dt):
    """Causal convolution and chunked scan of one layer; y as [batch, steps, inner]."""
    batch, steps, _ = xbc.shape
    weight, bias = mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias
    xbc = causal_conv1d_fn(
        xbc.transpose(1, 2), weight.to(xbc.dtype), bias.to(xbc.dtype), activation="silu"
    ).transpose(1, 2)
    x, b, c = xbc.split([mixer.inner, mixer.state, mixer.state], dim=-1)
    y = mamba_chunk_scan_combined(
        x.unflatten(-1, (mixer.heads, -1)),
        dt,
        -torch.exp(mixer.A_log.float()),
        b.unsqueeze(2),
        c.unsqueeze(2),
        chunk_size=mixer.chunk,
        D=mixer.D.float(),
        dt_bias=mixer.dt_bias.float(),
        dt_softplus=True,
    )
    return y.reshape(batch, steps, mixer.inner)


def mamba2_reference(mixer, xbc, dt):
    """The same as one masked product over all pairs of positions."""
    steps = xbc.shape[1]
    xbc = F.silu(mixer.conv1d(xbc.transpose(1, 2))[..., :steps]).transpose(1, 2)
    x, b, c = xbc.split([mixer.inner, mixer.state, mixer.state], dim=-1)
    x = x.unflatten(-1, (mixer.heads, -1))
    dt = F.softplus(dt + mixer.dt_bias)
    decay = (dt * -torch.exp(mixer.A_log)).cumsum(1).transpose(1, 2)
    decay = (decay[..., :, None] - decay[..., None, :]).tril().exp().tril()
    matrix = (c @ b.transpose(1, 2))[:, None] * decay
    y = torch.einsum("bhts,bsh,bshp->bthp", matrix, dt, x) + mixer.D[:, None] * x
    return y.flatten(2)


class Mamba2Mixer(nn.Module):
    """State-space duality mixer, one group (HF Mamba2Mixer, BambaMixer)."""

    chunk = 128

    def __init__(self, heads, head_dim, state, conv):
        super().__init__()
        self.heads, self.state, self.inner = heads, state, heads * head_dim
        mixed = self.inner + 2 * state
        self.in_proj = nn.Linear(DIM, self.inner + mixed + heads, bias=False)
        self.conv1d = depthwise_conv(mixed, conv)
        self.dt_bias = nn.Parameter(inverse_softplus_dt(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, DIM, bias=False)

    def forward(self, u):
        mixed = self.inner + 2 * self.state
        z, xbc, dt = self.in_proj(u).split([self.inner, mixed, self.heads], dim=-1)
        y = mamba2_kernel(self, xbc, dt) if u.is_cuda else mamba2_reference(self, xbc, dt)
        return self.out_proj(self.norm(y, gate=z))


class Attention(nn.Module):
    """Causal softmax attention, rotary positions on the first `rotary` dimensions of each head."""

    def __init__(self, heads, rotary, theta=10_000.0):
        super().__init__()
        self.heads, self.rotary = heads, rotary
        for part in "qkvo":
            self.add_module(f"{part}_proj", nn.Linear(DIM, DIM, bias=False))
        frequency = theta ** -(torch.arange(0, rotary, 2, dtype=torch.float32) / rotary)
        angle = torch.outer(torch.arange(CONTEXT, dtype=torch.float32), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def rotate(self, x):
        """Rotary embedding of [batch, heads, steps, head_dim], pairs (j, j + rotary/2)."""
        turned, kept = x[..., : self.rotary], x[..., self.rotary :]
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
        return torch.cat([turned.to(x.dtype), kept], dim=-1)

    def forward(self, u):
        q, k, v = (
            projection(u).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, inner):
        super().__init__()
        self.gate_proj = nn.Linear(DIM, inner, bias=False)
        self.up_proj = nn.Linear(DIM, inner, bias=False)
        self.down_proj = nn.Linear(inner, DIM, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Residual sub-layers x + dropout(sub(norm(x))), given as (norm name, sub name, module)."""

    def __init__(self, *parts, dropout):
        super().__init__()
        self.names = [(norm, sub) for norm, sub, _ in parts]
        self.dropout = dropout
        for norm, sub, module in parts:
            self.add_module(norm, RMSNorm(DIM))
            self.add_module(sub, module)

    def forward(self, x):
        x = self.residual(x, *self.names[0])
        return self.residual(x, *self.names[1]) if len(self.names) > 1 else x

    def residual(self, x, norm, sub):
        y = getattr(self, sub)(getattr(self, norm)(x))
        return x + F.dropout(y, self.dropout, self.training)


def make_blocks(name, dropout):
    """The blocks of one model, named as in its `transformers` class."""
    c = CONFIGS[name][1]
    heads = c.get("num_attention_heads")
    for i in range(c["num_hidden_layers"]):
        if name == "mamba":
            mixer = Mamba1Mixer(c["expand"], c["state_size"], c["time_step_rank"], c["conv_kernel"])
            yield Block(("norm", "mixer", mixer), dropout=dropout)
        elif name == "mamba2":
            mixer = Mamba2Mixer(c["num_heads"], c["head_dim"], c["state_size"], c["conv_kernel"])
            yield Block(("norm", "mixer", mixer), dropout=dropout)
        elif name == "transformer":
            attention = Attention(heads, DIM // heads)
            mlp = ("post_attention_layernorm", "mlp", SwiGLU(c["intermediate_size"]))
            yield Block(("input_layernorm", "self_attn", attention), mlp, dropout=dropout)
        else:
            if i in c["attn_layer_indices"]:
                first = ("input_layernorm", "self_attn", Attention(heads, DIM // heads // 2))
            else:
                sizes = [c[f"mamba_{k}"] for k in ("n_heads", "d_head", "d_state", "d_conv")]
                first = ("input_layernorm", "mamba", Mamba2Mixer(*sizes))
            mlp = ("pre_ff_layernorm", "feed_forward", SwiGLU(c["intermediate_size"]))
            yield Block(first, mlp, dropout=dropout)


# model: (name of the body, of the embedding, of the final norm)
NAMES = {
    "mamba": ("backbone", "embeddings", "norm_f"),
    "mamba2": ("backbone", "embeddings", "norm_f"),
    "transformer": ("model", "embed_tokens", "norm"),
    "hybrid": ("model", "embed_tokens", "final_layernorm"),
}


class LanguageModel(nn.Module):
    """Embedding, blocks, final norm and tied head."""

    def __init__(self, name, dropout=0.0):
        super().__init__()
        body, embedding, norm = NAMES[name]
        blocks = nn.ModuleList(make_blocks(name, dropout))
        root = nn.Module()
        root.add_module(embedding, nn.Embedding(SHARED["vocab_size"], DIM))
        root.add_module("layers", blocks)
        root.add_module(norm, RMSNorm(DIM))
        self.add_module(body, root)
        self.parts = lambda: (getattr(root, embedding), blocks, getattr(root, norm))
        self.dropout = dropout
        self.init_linears(2 * len(blocks))

    def init_linears(self, residual_count):
        """N(0, 0.02) for matrices; the outputs into the residual stream scaled down."""
        for path, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear) and not path.endswith("dt_proj"):
                nn.init.normal_(module.weight, std=DIM**-0.5 * 0.5)
                if path.rsplit(".", 1)[-1] in ("out_proj", "o_proj", "down_proj"):
                    module.weight.data /= math.sqrt(residual_count)

    def compile(self):
        """Compiles each block and the loss with torch.compile."""
        for block in self.parts()[1]:
            block.compile()
        self.head_loss = torch.compile(self.head_loss)

    def hidden(self, ids):
        """The normed states of [batch, steps] ids."""
        embedding, blocks, norm = self.parts()
        x = F.dropout(embedding(ids), self.dropout, self.training)
        for block in blocks:
            x = block(x)
        return norm(x)

    def forward(self, ids):
        """Logits [batch, steps, vocab]."""
        return F.linear(self.hidden(ids), self.parts()[0].weight)

    def head_loss(self, states, weight, targets, reduction):
        """Cross-entropy of the tied head in f32, in nats."""
        logits = F.linear(states, weight).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

    def loss(self, ids, reduction="mean", skip=0):
        """Loss of [batch, steps + 1] ids, leaving out the first `skip` targets of each row."""
        states = self.hidden(ids[:, :-1])[:, skip:]
        weight = self.parts()[0].weight
        return self.head_loss(states, weight, ids[:, 1 + skip :].contiguous(), reduction)


def autocast(device, enabled=True):
    """bf16 autocast on a GPU, nothing elsewhere."""
    on_gpu = enabled and torch.device(device).type == "cuda"
    return torch.autocast("cuda", dtype=torch.bfloat16) if on_gpu else nullcontext()
