"""Writes a model of real size with random bfloat16 weights, to try real sizes without a download.

    python3 tests/make_large.py mamba-2.8b /tmp/m28          # 5.5 GB: the shape of state-spaces/mamba-2.8b
    python3 tests/make_large.py codestral-7b /tmp/c7         # 14.6 GB: the shape of Mamba-Codestral-7B
    python3 tests/make_large.py mamba-130m /tmp/m130         # 0.3 GB each: what speed on a CPU is measured with; also mamba2-130m
    python3 tests/make_large.py mamba2-2.7b /tmp/m27         # and on a GPU; also llama-2.7b
    python3 tests/make_large.py llama-125m /tmp/l125         # and a transformer of that size

Needs numpy alone. The folder is as Hugging Face has it: config.json, shards of at most 5 GB, an index. Numbers come from one random
block, repeated and scaled by the tensor's fan-in; its length is prime, so that no two rows are the same. Norms, D, A and the bias of Δ
are as training starts with them, so that activations stay finite. Nothing is held in memory but the block.
"""

import json
import math
import pathlib
import sys

import numpy as np

BLOCK = 4_194_301
SHARD_BYTES = 5 * 10**9


def bf16(values):
    """float32 → the upper halves of its words, rounded to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def inverse_softplus(x):
    return x + np.log(-np.expm1(-x))


def steps(count):
    """Biases of Δ: 0.001 to 0.1 after softplus, evenly on a log scale."""
    return inverse_softplus(np.exp(np.linspace(math.log(1e-3), math.log(0.1), count)))


class Noise:
    """Endless normal numbers of a given standard deviation."""

    def __init__(self):
        self.block = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
        self.scaled = {}
        self.at = 0

    def write(self, file, count, deviation):
        key = f"{deviation:.3e}"
        if key not in self.scaled:
            self.scaled[key] = bf16(self.block * np.float32(deviation))
        block = self.scaled[key]
        while count > 0:
            piece = block[self.at : self.at + count]
            file.write(piece)
            count -= len(piece)
            self.at = (self.at + len(piece)) % BLOCK


def mamba(d, layers):
    """Mamba-1 as state-spaces has it. Returns its config and its tensors: name, shape, standard deviation or values."""
    n, rank, vocab, taps = 16, d // 16, 50280, 4
    e = 2 * d
    config = dict(
        architectures=["MambaForCausalLM"], model_type="mamba", hidden_size=d, intermediate_size=e, num_hidden_layers=layers,
        state_size=n, time_step_rank=rank, conv_kernel=taps, expand=2, vocab_size=vocab, hidden_act="silu", use_bias=False,
        use_conv_bias=True, layer_norm_epsilon=1e-5, residual_in_fp32=True, tie_word_embeddings=True, eos_token_id=0,
    )
    tensors = [("backbone.embeddings.weight", (vocab, d), 0.02)]
    for i in range(layers):
        mixer = f"backbone.layers.{i}.mixer"
        tensors += [
            (f"backbone.layers.{i}.norm.weight", (d,), np.ones(d)),
            (f"{mixer}.A_log", (e, n), np.tile(np.log(np.arange(1, n + 1)), e)),
            (f"{mixer}.D", (e,), np.ones(e)),
            (f"{mixer}.conv1d.weight", (e, 1, taps), taps**-0.5),
            (f"{mixer}.conv1d.bias", (e,), 0.1),
            (f"{mixer}.in_proj.weight", (2 * e, d), d**-0.5),
            (f"{mixer}.x_proj.weight", (rank + 2 * n, e), e**-0.5),
            (f"{mixer}.dt_proj.weight", (e, rank), (3 * rank) ** -0.5),
            (f"{mixer}.dt_proj.bias", (e,), steps(e)),
            (f"{mixer}.out_proj.weight", (d, e), (e * layers) ** -0.5),
        ]
    return config, tensors + [("backbone.norm_f.weight", (d,), np.ones(d))]


def mamba2(d, layers, groups, vocab, tied):
    """Mamba-2 of heads of 64. As `mamba`."""
    heads, p, n, taps = d // 32, 64, 128, 4
    e = heads * p
    conv = e + 2 * groups * n
    config = dict(
        architectures=["Mamba2ForCausalLM"], model_type="mamba2", hidden_size=d, num_hidden_layers=layers, num_heads=heads,
        head_dim=p, state_size=n, n_groups=groups, conv_kernel=taps, expand=2, vocab_size=vocab, hidden_act="silu", use_bias=False,
        use_conv_bias=True, rms_norm=True, layer_norm_epsilon=1e-5, residual_in_fp32=True, chunk_size=256,
        time_step_limit=[0.0, math.inf], tie_word_embeddings=tied, eos_token_id=0,
    )
    tensors = [("backbone.embeddings.weight", (vocab, d), 0.02)]
    for i in range(layers):
        mixer = f"backbone.layers.{i}.mixer"
        tensors += [
            (f"backbone.layers.{i}.norm.weight", (d,), np.ones(d)),
            (f"{mixer}.A_log", (heads,), np.log(np.linspace(1, 16, heads))),
            (f"{mixer}.D", (heads,), np.ones(heads)),
            (f"{mixer}.dt_bias", (heads,), steps(heads)),
            (f"{mixer}.conv1d.weight", (conv, 1, taps), taps**-0.5),
            (f"{mixer}.conv1d.bias", (conv,), 0.1),
            (f"{mixer}.in_proj.weight", (e + conv + heads, d), d**-0.5),
            (f"{mixer}.norm.weight", (e,), np.ones(e)),
            (f"{mixer}.out_proj.weight", (d, e), (e * layers) ** -0.5),
        ]
    tensors += [("backbone.norm_f.weight", (d,), np.ones(d))]
    return config, tensors if tied else tensors + [("lm_head.weight", (vocab, d), d**-0.5)]


def llama(d, layers, inner):
    """A transformer of heads of 64. As `mamba`."""
    heads, vocab = d // 64, 50304
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=d, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocab, hidden_act="silu", rms_norm_eps=1e-5,
        rope_theta=10000.0, max_position_embeddings=8192, tie_word_embeddings=True, eos_token_id=0, bos_token_id=0,
    )
    tensors = [("model.embed_tokens.weight", (vocab, d), 0.02)]
    for i in range(layers):
        layer = f"model.layers.{i}"
        tensors += [
            (f"{layer}.input_layernorm.weight", (d,), np.ones(d)),
            (f"{layer}.self_attn.q_proj.weight", (d, d), d**-0.5),
            (f"{layer}.self_attn.k_proj.weight", (d, d), d**-0.5),
            (f"{layer}.self_attn.v_proj.weight", (d, d), d**-0.5),
            (f"{layer}.self_attn.o_proj.weight", (d, d), (d * layers) ** -0.5),
            (f"{layer}.post_attention_layernorm.weight", (d,), np.ones(d)),
            (f"{layer}.mlp.gate_proj.weight", (inner, d), d**-0.5),
            (f"{layer}.mlp.up_proj.weight", (inner, d), d**-0.5),
            (f"{layer}.mlp.down_proj.weight", (d, inner), (inner * layers) ** -0.5),
        ]
    return config, tensors + [("model.norm.weight", (d,), np.ones(d))]


SHAPES = {
    "mamba-2.8b": lambda: mamba(2560, 64),
    "codestral-7b": lambda: mamba2(4096, 64, groups=8, vocab=32768, tied=False),
    "mamba-130m": lambda: mamba(768, 24),
    "mamba2-130m": lambda: mamba2(768, 24, groups=1, vocab=50288, tied=True),
    "llama-125m": lambda: llama(768, 12, 2048),
    "mamba2-2.7b": lambda: mamba2(2560, 64, groups=1, vocab=50288, tied=True),
    "llama-2.7b": lambda: llama(2560, 32, 6912),
}


def shards(tensors):
    """Runs of tensors that fit a file each."""
    runs, size = [[]], 0
    for tensor in tensors:
        size += 2 * math.prod(tensor[1])
        if size > SHARD_BYTES and runs[-1]:
            runs.append([])
            size = 2 * math.prod(tensor[1])
        runs[-1].append(tensor)
    return runs


def write_shard(path, tensors, noise):
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors:
        end = start + 2 * math.prod(shape)
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[start, end])
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape, values in tensors:
            if isinstance(values, float):
                noise.write(file, math.prod(shape), values)
            else:
                assert values.size == math.prod(shape)
                file.write(bf16(values))
    return start


def main(name, folder):
    config, tensors = SHAPES[name]()
    config |= dict(dtype="bfloat16", torch_dtype="bfloat16")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    noise, runs, total, weight_map = Noise(), shards(tensors), 0, {}
    for index, run in enumerate(runs):
        file = f"model-{index + 1:05}-of-{len(runs):05}.safetensors"
        total += write_shard(folder / file, run, noise)
        weight_map |= {tensor: file for tensor, _, _ in run}
    index = dict(metadata=dict(total_size=total), weight_map=weight_map)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    # Last: a folder with it is complete.
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    print(f"{folder}: {total / 2e9:.2f} B parameters, {total / 1e9:.1f} GB in {len(runs)} files")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(f"usage: make_large.py {'|'.join(SHAPES)} FOLDER")
    main(*sys.argv[1:])
