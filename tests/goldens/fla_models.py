"""Models in the layout of flash-linear-attention, whose own code needs a GPU: one token at a time, float64, straight from the equations.

Parameters have the names and shapes of fla 0.6.0 (check_fla.py compares them, and the recurrences with fla's naive ones).
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

FAMILIES = ("retnet", "gla", "linear_attn", "hgrn2", "delta_net", "gated_deltanet")


class FlaForCausalLM(PreTrainedModel):
    body = staticmethod(lambda config: Body(config))
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = self.body(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, ids, **_):
        return CausalLMOutput(logits=self.lm_head(self.model(ids[0]))[None].float())


class Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.norm_eps)
        if config.model_type == "hgrn2":
            self.lower_bounds = nn.Parameter(torch.zeros(config.num_hidden_layers, config.hidden_size))

    def forward(self, ids):
        x = self.embeddings(ids).double()
        for i, layer in enumerate(self.layers):
            if hasattr(self, "lower_bounds"):
                shares = self.lower_bounds.double().softmax(0)
                layer.attn.lower_bound = (shares.cumsum(0) - shares[0])[i]
            x = layer(x)[0]
        return self.norm(x)


class Block(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        attends = i in (getattr(config, "attn", None) or {"layers": []})["layers"]
        self.attn_norm = Norm(config.hidden_size, config.norm_eps)
        self.attn = Softmax(config) if attends else MIXERS[config.model_type](config)
        self.mlp_norm = Norm(config.hidden_size, config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        return (x + self.mlp(self.mlp_norm(x)))[None]


class Linear(nn.Linear):
    def __init__(self, inputs, outputs, bias=False):
        super().__init__(inputs, outputs, bias=bias)

    def forward(self, x):
        return F.linear(x, self.weight.double(), None if self.bias is None else self.bias.double())


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x, gate=None):
        x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight.double()
        return x if gate is None else x * F.silu(gate)


class Conv(nn.Module):
    def __init__(self, channels, taps):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, taps))

    def forward(self, x):
        taps = self.weight.double()[:, 0]
        padded = F.pad(x, (0, 0, taps.shape[1] - 1, 0))
        return F.silu(sum(taps[:, j] * padded[j : j + len(x)] for j in range(taps.shape[1])))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, width = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj, self.down_proj = Linear(d, width), Linear(d, width), Linear(width, d)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x, theta=10000.0):
    """x [T, H, D]: the first half of a head with the second."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None, None].double() * theta ** (-torch.arange(half).double() / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def linear_recurrence(q, k, v, log):
    """q, k, log [T, H, Dk], v [T, H, Dv]; q is scaled already."""
    state, out = torch.zeros(k.shape[1], k.shape[2], v.shape[2]).double(), []
    for t in range(len(q)):
        state = state * log[t].exp()[..., None] + k[t][..., None] * v[t][:, None]
        out.append(torch.einsum("hk,hkv->hv", q[t], state))
    return torch.stack(out)


def delta_recurrence(q, k, v, beta, log):
    """beta, log [T, H]."""
    state, out = torch.zeros(k.shape[1], k.shape[2], v.shape[2]).double(), []
    for t in range(len(q)):
        state = state * log[t].exp()[:, None, None]
        error = beta[t][:, None] * (v[t] - torch.einsum("hk,hkv->hv", k[t], state))
        state = state + k[t][..., None] * error[:, None]
        out.append(torch.einsum("hk,hkv->hv", q[t], state))
    return torch.stack(out)


class Linears(nn.Module):
    """What RetNet, GLA and linear attention share: heads of q, and fewer of k and v."""

    def __init__(self, config, expand_k, expand_v):
        super().__init__()
        d, self.heads = config.hidden_size, config.num_heads
        kv_heads = getattr(config, "num_kv_heads", None) or self.heads
        self.share = self.heads // kv_heads
        self.key_dim = int(d * getattr(config, "expand_k", expand_k)) // self.heads
        self.head_dim = int(d * getattr(config, "expand_v", expand_v)) // self.heads
        self.q_proj = Linear(d, self.heads * self.key_dim)
        self.k_proj, self.v_proj = Linear(d, kv_heads * self.key_dim), Linear(d, kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, d)
        if getattr(config, "use_short_conv", False):
            taps = config.conv_size
            self.q_conv1d, self.k_conv1d = Conv(self.heads * self.key_dim, taps), Conv(kv_heads * self.key_dim, taps)
            self.v_conv1d = Conv(kv_heads * self.head_dim, taps)

    def gate(self, config):
        if getattr(config, "use_output_gate", True):
            self.g_proj = Linear(config.hidden_size, self.heads * self.head_dim)
            self.g_norm_swish_gate = Norm(self.head_dim, config.norm_eps)
        else:
            self.g_norm = Norm(self.head_dim, config.norm_eps)

    def spread(self, x, width):
        return x.view(len(x), -1, width).repeat_interleave(self.share, 1)

    def qkv(self, x):
        parts = []
        for name in "qkv":
            part = getattr(self, f"{name}_proj")(x)
            conv = getattr(self, f"{name}_conv1d", None)
            parts.append(part if conv is None else conv(part))
        q, k, v = parts
        return q.view(len(x), self.heads, -1), self.spread(k, self.key_dim), self.spread(v, self.head_dim)

    def finish(self, y, x):
        if hasattr(self, "g_proj"):
            y = self.g_norm_swish_gate(y, self.g_proj(x).view(y.shape))
        else:
            y = self.g_norm(y)
        return self.o_proj(y.flatten(1))


class RetNet(Linears):
    def __init__(self, config):
        super().__init__(config, 1.0, 2.0)
        self.gate(config)

    def forward(self, x):
        q, k, v = self.qkv(x)
        log = torch.log1p(-(2.0 ** (-5.0 - torch.arange(self.heads).double())))[:, None].expand(k.shape)
        return self.finish(linear_recurrence(rotate(q) * self.key_dim**-0.5, rotate(k), v, log), x)


class Gla(Linears):
    def __init__(self, config):
        super().__init__(config, 0.5, 1.0)
        self.gk_proj = nn.Sequential(Linear(config.hidden_size, 16), Linear(16, self.k_proj.out_features, bias=True))
        self.floor = getattr(config, "clamp_min", None)
        self.gate(config)

    def forward(self, x):
        q, k, v = self.qkv(x)
        log = F.logsigmoid(self.spread(self.gk_proj(x), self.key_dim)) / 16
        log = log if self.floor is None else log.clamp_min(self.floor)
        return self.finish(linear_recurrence(q * self.key_dim**-0.5, k, v, log), x)


class Hadamard(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer1, self.layer2 = Linear(width, width, bias=True), Linear(width, width, bias=True)

    def forward(self, x):
        return self.layer1(x) * self.layer2(x)


class LinearAttention(Linears):
    def __init__(self, config):
        super().__init__(config, 1.0, 1.0)
        self.config = config
        if getattr(config, "feature_map", "elementwise_product") == "elementwise_product":
            self.feature_map_q, self.feature_map_k = Hadamard(self.key_dim), Hadamard(self.key_dim)
        else:
            maps = {"elu": lambda x: F.elu(x) + 1, "relu": F.relu, "identity": lambda x: x}
            self.feature_map_q = self.feature_map_k = maps[config.feature_map]
        self.norm = Norm(self.head_dim, config.norm_eps)

    def forward(self, x):
        q, k, v = self.qkv(x)
        q, k = self.feature_map_q(q), self.feature_map_k(k)
        if getattr(self.config, "norm_q", False):
            q = q / (q.sum(-1, keepdim=True) + 1e-4)
        if getattr(self.config, "norm_k", False):
            k = k / (k.sum(-1, keepdim=True) + 1e-4)
        q = q * self.key_dim**-0.5
        y = linear_recurrence(q, k, v, torch.zeros_like(k))
        if getattr(self.config, "norm_feature_map", False):
            y = y / ((q * k.cumsum(0)).sum(-1, keepdim=True) + 1e-10)
        return self.o_proj(self.norm(y).flatten(1))


class Hgrn2(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, self.key_dim = config.hidden_size, config.expand_ratio
        self.q_proj, self.f_proj, self.i_proj, self.o_proj = Linear(d, d), Linear(d, d), Linear(d, d), Linear(d, d)
        self.g_norm = Norm(d, 1e-5)
        self.lower_bound = None

    def forward(self, x):
        kept = self.lower_bound + (1 - self.lower_bound) * self.f_proj(x).sigmoid()
        heads = (len(x), -1, self.key_dim)
        q, kept, v = F.silu(self.q_proj(x)).view(heads), kept.view(heads), self.i_proj(x)
        v = v.view(len(x), q.shape[1], -1)
        y = linear_recurrence(q * self.key_dim**-0.5, 1 - kept, v, kept.log())
        return self.o_proj(self.g_norm(y.flatten(1)))


class Delta(nn.Module):
    """DeltaNet and Gated DeltaNet."""

    def __init__(self, config):
        super().__init__()
        d, self.key_heads, self.decays = config.hidden_size, config.num_heads, config.model_type == "gated_deltanet"
        if self.decays:
            self.heads, self.key_dim = getattr(config, "num_v_heads", None) or self.key_heads, config.head_dim
            self.head_dim = int(self.key_dim * config.expand_v)
            self.a_proj = Linear(d, self.heads)
            self.A_log, self.dt_bias = nn.Parameter(torch.zeros(self.heads)), nn.Parameter(torch.zeros(self.heads))
        else:
            self.heads, self.key_dim, self.head_dim = self.key_heads, d // self.key_heads, d // self.key_heads
        keys, values = self.key_heads * self.key_dim, self.heads * self.head_dim
        self.q_proj, self.k_proj, self.v_proj = Linear(d, keys), Linear(d, keys), Linear(d, values)
        self.q_conv1d, self.k_conv1d = Conv(keys, config.conv_size), Conv(keys, config.conv_size)
        self.v_conv1d = Conv(values, config.conv_size)
        if getattr(config, "use_beta", True):
            self.b_proj = Linear(d, self.heads)
        if getattr(config, "use_gate", self.decays):
            self.g_proj = Linear(d, values)
        self.beta_scale = 2.0 if getattr(config, "allow_neg_eigval", False) else 1.0
        self.o_norm, self.o_proj = Norm(self.head_dim, config.norm_eps), Linear(values, d)

    def forward(self, x):
        def heads(part):
            part = part.view(len(x), self.key_heads, -1)
            part = part * torch.rsqrt((part * part).sum(-1, keepdim=True) + 1e-6)
            return part.repeat_interleave(self.heads // self.key_heads, 1)

        q, k = heads(self.q_conv1d(self.q_proj(x))), heads(self.k_conv1d(self.k_proj(x)))
        v = self.v_conv1d(self.v_proj(x)).view(len(x), self.heads, -1)
        beta = self.b_proj(x).sigmoid() if hasattr(self, "b_proj") else torch.ones(len(x), self.heads).double()
        log = torch.zeros_like(beta)
        if self.decays:
            log = -self.A_log.double().exp() * F.softplus(self.a_proj(x) + self.dt_bias.double())
        y = delta_recurrence(q * self.key_dim**-0.5, k, v, beta * self.beta_scale, log)
        y = self.o_norm(y, self.g_proj(x).view(y.shape) if hasattr(self, "g_proj") else None)
        return self.o_proj(y.flatten(1))


class Softmax(nn.Module):
    """The attention layers of a hybrid: rotary positions, no window."""

    def __init__(self, config):
        super().__init__()
        d, attn = config.hidden_size, config.attn
        self.heads, kv_heads = attn["num_heads"], attn.get("num_kv_heads") or attn["num_heads"]
        self.head_dim, self.share = d // self.heads, self.heads // kv_heads
        self.q_proj, self.o_proj = Linear(d, d), Linear(d, d)
        self.k_proj, self.v_proj = Linear(d, kv_heads * self.head_dim), Linear(d, kv_heads * self.head_dim)

    def forward(self, x):
        q = rotate(self.q_proj(x).view(len(x), self.heads, -1))
        k = rotate(self.k_proj(x).view(len(x), -1, self.head_dim)).repeat_interleave(self.share, 1)
        v = self.v_proj(x).view(len(x), -1, self.head_dim).repeat_interleave(self.share, 1)
        scores = torch.einsum("thd,shd->hts", q, k) * self.head_dim**-0.5
        future = torch.ones(len(x), len(x)).triu(1).bool()
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return self.o_proj(torch.einsum("hts,shd->thd", weights, v).flatten(1))


MIXERS = {"retnet": RetNet, "gla": Gla, "linear_attn": LinearAttention, "hgrn2": Hgrn2, "delta_net": Delta, "gated_deltanet": Delta}


def classes(family, base=FlaForCausalLM):
    """A config and a model class for each family, known to the Auto classes."""
    config = type(f"{family}_config", (PreTrainedConfig,), {"model_type": family})
    model = type(f"{family}_model", (base,), {"config_class": config})
    AutoConfig.register(family, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    return config, model


CLASSES = {family: classes(family) for family in FAMILIES}
