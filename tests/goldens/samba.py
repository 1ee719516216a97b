"""Samba in the layout of fla, whose own code needs a GPU: Mamba from transformers, the attention written out."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.mamba.modeling_mamba import MambaMixer, MambaRMSNorm


class SambaConfig(MambaConfig):
    """Further keys: norm_eps, hidden_ratio, and attn with layers, num_heads, num_kv_heads, window_size, rope_theta."""

    model_type = "samba"


class SambaForCausalLM(PreTrainedModel):
    config_class = SambaConfig
    base_model_prefix = "backbone"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, ids, **_):
        return CausalLMOutput(logits=self.lm_head(self.backbone(ids)))


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm_f = MambaRMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, ids):
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class Block(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        self.mixer_norm = MambaRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mixer = Attention(config) if i in config.attn["layers"] else MambaMixer(config, i)
        self.mlp_norm = MambaRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x):
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        d = config.hidden_size
        width = -(-int(d * config.hidden_ratio * 2 / 3) // 256) * 256
        self.gate_proj, self.up_proj = nn.Linear(d, width, bias=False), nn.Linear(d, width, bias=False)
        self.down_proj = nn.Linear(width, d, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config.attn["num_heads"], config.attn["num_kv_heads"]
        self.window, self.theta = config.attn["window_size"], config.attn["rope_theta"]
        d = config.hidden_size
        self.head_dim = d // self.heads
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(d, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x):
        batch, count, d = x.shape
        share = self.heads // self.kv_heads

        def split(projected):
            return projected.view(batch, count, -1, self.head_dim).transpose(1, 2)

        q = self.rotate(split(self.q_proj(x)))
        k = self.rotate(split(self.k_proj(x))).repeat_interleave(share, dim=1)
        v = split(self.v_proj(x)).repeat_interleave(share, dim=1)
        age = torch.arange(count)[:, None] - torch.arange(count)
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5
        weights = scores.masked_fill((age < 0) | (age >= self.window), -torch.inf).softmax(dim=-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(batch, count, d))

    def rotate(self, x):
        half = self.head_dim // 2
        frequencies = self.theta ** (-torch.arange(half) / half)
        angles = torch.arange(x.shape[2])[:, None] * frequencies
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


AutoConfig.register("samba", SambaConfig)
AutoModelForCausalLM.register(SambaConfig, SambaForCausalLM)
