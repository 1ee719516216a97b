"""RWKV-6 and RWKV-7 in the layout of flash-linear-attention: one token at a time, float64, straight from the equations."""

import math

import torch
import torch.nn.functional as F
from torch import nn

import fla_models
from fla_models import FlaForCausalLM, Linear


class RwkvForCausalLM(FlaForCausalLM):
    body = staticmethod(lambda config: Body(config))


class Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids):
        x, first = self.embeddings(ids).double(), []
        for layer in self.layers:
            x = layer(x, first)[0]
        return self.norm(x)


class LayerNorm(nn.Module):
    """Over the whole width, or over each of `heads` parts of it."""

    def __init__(self, width, eps, heads=1):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps, self.heads = eps, heads

    def forward(self, x):
        parts = x.view(len(x), self.heads, -1)
        parts = parts - parts.mean(-1, keepdim=True)
        parts = parts / (parts.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return parts.flatten(1) * self.weight.double() + self.bias.double()


class Block(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        if i == 0:
            self.pre_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.attn_norm, self.ffn_norm = (LayerNorm(config.hidden_size, config.norm_eps) for _ in range(2))
        if config.model_type == "rwkv6":
            self.attn, self.ffn = TimeMixing6(config), ChannelMixing6(config)
        else:
            self.attn, self.ffn = TimeMixing7(config, i), ChannelMixing7(config)

    def forward(self, x, first):
        x = self.pre_norm(x) if hasattr(self, "pre_norm") else x
        x = x + self.attn(self.attn_norm(x), first)
        return (x + self.ffn(self.ffn_norm(x)))[None]


def before(x):
    return F.pad(x, (0, 0, 1, 0))[:-1]


class LowRank(nn.Module):
    def __init__(self, width, rank, activation, bias=True):
        super().__init__()
        self.lora = nn.Sequential(Linear(width, rank), nn.Identity() if activation is None else activation, Linear(rank, width, bias=bias))

    def forward(self, x):
        return self.lora(x)


class TimeMixing7(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        d, self.head_dim = config.hidden_size, config.head_dim
        heads = d // self.head_dim
        for name in "rwkvag":
            setattr(self, f"x_{name}", nn.Parameter(torch.zeros(1, 1, d)))
        self.k_k, self.k_a = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))
        self.r_k = nn.Parameter(torch.zeros(heads, self.head_dim))
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(d, d) for _ in range(4))
        self.w_lora = LowRank(d, config.decay_low_rank_dim, nn.Tanh())
        if i > 0:
            self.v_lora = LowRank(d, config.v_low_rank_dim, None)
        self.a_lora = LowRank(d, config.a_low_rank_dim, None)
        self.g_lora = LowRank(d, config.gate_low_rank_dim, nn.Sigmoid(), bias=False)
        self.g_norm = LayerNorm(d, self.head_dim * config.norm_eps, heads)

    def forward(self, x, first):
        delta = before(x) - x
        r, w, k, v, a, g = (x + delta * getattr(self, f"x_{name}").double()[0, 0] for name in "rwkvag")
        shape = (len(x), -1, self.head_dim)
        r, k, value = self.r_proj(r), self.k_proj(k), self.v_proj(v)
        if hasattr(self, "v_lora"):
            value = value + (first[0] - value) * self.v_lora(v).sigmoid()
        else:
            first.append(value)
        log = -math.exp(-0.5) * self.w_lora(w).sigmoid()
        a, g = self.a_lora(a).sigmoid(), self.g_lora(g)
        kappa = (k * self.k_k.double()).view(shape)
        kappa = kappa / (kappa.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        k = k * (1 + (a - 1) * self.k_a.double())
        r, k, value, log, a = (part.view(shape) for part in (r, k, value, log, a))
        state, out = torch.zeros(k.shape[1], self.head_dim, self.head_dim).double(), []  # [H, V, K]
        for t in range(len(x)):
            found = torch.einsum("hvk,hk->hv", state, kappa[t])
            state = state * log[t].exp()[:, None] - found[..., None] * (a[t] * kappa[t])[:, None]
            state = state + value[t][..., None] * k[t][:, None]
            out.append(torch.einsum("hvk,hk->hv", state, r[t]))
        y = self.g_norm(torch.stack(out).flatten(1)).view(shape)
        y = y + (r * k * self.r_k.double()).sum(-1, keepdim=True) * value
        return self.o_proj(y.flatten(1) * g)


class ChannelMixing7(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, width = config.hidden_size, config.intermediate_size
        self.x_k, self.key, self.value = nn.Parameter(torch.zeros(d)), Linear(d, width), Linear(width, d)

    def forward(self, x):
        return self.value(F.relu(self.key(x + (before(x) - x) * self.x_k.double())) ** 2)


class Shifted(nn.Module):
    """A linear map of every token mixed with the one before."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.mu, self.linear = nn.Parameter(torch.zeros(inputs)), Linear(inputs, outputs)

    def forward(self, x):
        return self.linear(x + (before(x) - x) * self.mu.double())


class Inner(nn.Module):
    """Only a name more in front of the weight."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x)


class TimeMixing6(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, self.heads, self.rank = config.hidden_size, config.num_heads, config.proj_low_rank_dim
        keys, values = int(d * config.expand_k), int(d * config.expand_v)
        self.x_proj = nn.Sequential(Shifted(d, 5 * self.rank), nn.Tanh(), Linear(5 * self.rank, d))
        self.x_bias = nn.Parameter(torch.zeros(5, d))
        self.r_proj, self.k_proj = Inner(Linear(d, keys)), Inner(Linear(d, keys))
        self.v_proj, self.g_proj = Inner(Linear(d, values)), Inner(Linear(d, values))
        lora = LowRank(d, config.gate_low_rank_dim, nn.Tanh())
        lora.lora[2] = Linear(config.gate_low_rank_dim, keys, bias=True)
        self.w_proj = Inner(lora)
        self.bonus = nn.Parameter(torch.zeros(self.heads, keys // self.heads))
        self.g_norm, self.o_proj = LayerNorm(values, config.norm_eps, self.heads), Linear(values, d)

    def forward(self, x, _):
        low = self.x_proj[1](self.x_proj[0](x)).view(len(x), 5, self.rank)
        up = self.x_proj[2].weight.double().view(-1, 5, self.rank)
        mixes = torch.einsum("tnr,dnr->ntd", low, up) + self.x_bias.double()[:, None]
        r, w, k, v, g = (x + (before(x) - x) * mix for mix in mixes)
        shape = (len(x), self.heads, -1)
        r, k, v, g = self.r_proj(r).view(shape), self.k_proj(k).view(shape), self.v_proj(v).view(shape), self.g_proj(g)
        log = -self.w_proj(w).exp().view(shape)
        state, out = torch.zeros(self.heads, k.shape[2], v.shape[2]).double(), []
        for t in range(len(x)):
            write = k[t][..., None] * v[t][:, None]
            out.append(torch.einsum("hk,hkv->hv", r[t], state + self.bonus.double()[..., None] * write))
            state = state * log[t].exp()[..., None] + write
        return self.o_proj(self.g_norm(torch.stack(out).flatten(1)) * F.silu(g))


class ChannelMixing6(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, width = config.hidden_size, config.intermediate_size
        self.key, self.receptance, self.value = Shifted(d, width), Shifted(d, d), Linear(width, d)

    def forward(self, x):
        return self.receptance(x).sigmoid() * self.value(F.relu(self.key(x)) ** 2)


CLASSES = {family: fla_models.classes(family, RwkvForCausalLM) for family in ("rwkv6", "rwkv7")}
