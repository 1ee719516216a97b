"""Write the tiny checkpoints and their goldens with the official implementation (see README.md).

    python make.py            everything
    python make.py mamba_a …  only these cases
"""

import copy
import importlib.metadata
import json
import math
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM
from transformers import BambaConfig, BambaForCausalLM, FalconH1Config, FalconH1ForCausalLM
from transformers import FalconMambaConfig, FalconMambaForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM
from transformers import JambaConfig, JambaForCausalLM, Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM
from transformers import MistralConfig, MistralForCausalLM, NemotronHConfig, NemotronHForCausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM, RwkvConfig, RwkvForCausalLM
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM, Zamba2Config, Zamba2ForCausalLM
from transformers import ZambaConfig, ZambaForCausalLM, xLSTMConfig, xLSTMForCausalLM
from transformers.utils import logging

import fla_models
import reference
import rwkv_models
from cases import CASES
from samba import SambaConfig, SambaForCausalLM

HERE = Path(__file__).parent
PROMPT = 8
CONTINUATION = 24
CLASSES = {
    "mamba": (MambaConfig, MambaForCausalLM),
    "mamba2": (Mamba2Config, Mamba2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "bamba": (BambaConfig, BambaForCausalLM),
    "falcon_mamba": (FalconMambaConfig, FalconMambaForCausalLM),
    "jamba": (JambaConfig, JambaForCausalLM),
    "zamba": (ZambaConfig, ZambaForCausalLM),
    "zamba2": (Zamba2Config, Zamba2ForCausalLM),
    "granitemoehybrid": (GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM),
    "falcon_h1": (FalconH1Config, FalconH1ForCausalLM),
    "nemotron_h": (NemotronHConfig, NemotronHForCausalLM),
    "samba": (SambaConfig, SambaForCausalLM),
    "qwen3_next": (Qwen3NextConfig, Qwen3NextForCausalLM),
    "lfm2": (Lfm2Config, Lfm2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "rwkv": (RwkvConfig, RwkvForCausalLM),
    "recurrent_gemma": (RecurrentGemmaConfig, RecurrentGemmaForCausalLM),
    "xlstm": (xLSTMConfig, xLSTMForCausalLM),
    **fla_models.CLASSES,
    **rwkv_models.CLASSES,
}
xLSTMForCausalLM.__bases__[0]._init_weights = lambda self, module: None  # fails on fused gates, and every weight is set below
DESCRIBED = ("mamba", "mamba2", "llama", "bamba")  # families whose mixers are in reference.py


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    wanted = sys.argv[1:] or [case.name for case in CASES]
    for package in ["torch", "transformers", "safetensors", "tokenizers", "numpy"]:
        print(package, importlib.metadata.version(package))
    if not sys.argv[1:]:
        make_tokenizer(HERE / "tokenizer")
    for case in CASES:
        if case.name in wanted:
            make_case(case, HERE / case.name)


def make_case(case, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sizes = dict(case.sizes)
    if case.tokenizer:
        shutil.copy(HERE / "tokenizer" / "tokenizer.json", folder)
        sizes["vocab_size"] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    generator = torch.Generator().manual_seed(case.seed)
    model = build(case, sizes, generator)
    store(case, model, folder)
    note = "stored only"
    if not case.tokenizer:
        golden, note = record(case, model, generator, folder)
        save_numpy({name: np.ascontiguousarray(tensor) for name, tensor in golden.items()}, folder / "golden.safetensors")
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # they come out private to their owner
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{case.name:16} {size / 1024:6.0f} KiB  {note}")


# ---------------------------------------------------------------- building and storing


def build(case, sizes, generator):
    config_class, model_class = CLASSES[case.family]
    config = config_class(**sizes)
    config._attn_implementation = "eager"
    model = model_class(config).eval().float()
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *choosers(model)]:
            value = randomise(name, parameter.shape, config, generator)
            parameter.copy_(value.bfloat16().float() if case.bf16 else value)
    model.tie_weights()
    return model


def choosers(model):
    """Trained buffers: what is added to an expert's score when experts are chosen."""
    return [item for item in model.named_buffers() if item[0].endswith("e_score_correction_bias")]


def randomise(name, shape, config, generator):
    """Values that let every term of every equation show; the default inits hide mistakes."""

    def normal(scale):
        return torch.randn(shape, generator=generator) * scale

    def uniform(low, high):
        return torch.rand(shape, generator=generator) * (high - low) + low

    leaf = name.split(".")[-2:]
    norm = "norm" in leaf[0] or leaf[0].startswith("ln_") or leaf[0] in ("ln1", "ln2", "pre_ln")
    if ".lora." in name and leaf[-1] == "bias":
        return normal(1.0)
    if leaf[-1] in ("time_decay", "recurrent_param"):
        return uniform(-3.0, 1.0)
    if leaf[-1].startswith("time_mix") or leaf[-1] == "mu" or leaf[-1].startswith("x_"):
        return uniform(0.0, 1.0)
    if leaf[-1] in ("time_first", "lower_bounds", "k_k", "k_a", "r_k", "bonus"):
        return normal(1.0)
    if leaf[0] == "fgate_preact" and leaf[-1] == "bias":
        return uniform(1.0, 4.0)
    if leaf[0] in ("igate_preact", "ifgate_preact") and leaf[-1] == "bias":
        return normal(1.0)
    if leaf[-1] == "A_log":
        return uniform(1.0, 16.0).log()
    if leaf[-1] in ("dt_bias", "dt_proj_bias") or leaf == ["dt_proj", "bias"]:
        step = uniform(math.log(1e-2), math.log(0.5)).exp()
        return step + torch.log(-torch.expm1(-step))
    if leaf[-1] == "D":
        return normal(1.0)
    if leaf[-1] in ("bias", "e_score_correction_bias", "input_gate_bias", "recurrent_gate_bias"):
        return normal(0.1)
    if norm and config.model_type == "recurrent_gemma":
        return normal(0.2)
    if norm and config.model_type == "qwen3_next" and "linear_attn" not in name:
        return normal(0.2)  # an offset from 1
    if norm:
        return 1.0 + normal(0.2)
    if leaf[0] in ("conv1d", "conv"):
        return normal(0.5)
    if "embed" in leaf[0] or leaf[0] in ("wte", "wpe"):
        return normal(0.15 if config.tie_word_embeddings else 1.0)
    return normal(1.0 / math.sqrt(shape[0] if config.model_type == "gpt2" else shape[-1]))


def store(case, model, folder):
    if case.store == "sharded":
        limit = sum(p.numel() for p in model.parameters()) * 4 * 6 // 10
    else:
        limit = "1GB"
    model = copy.deepcopy(model)  # a cast would also round the tables of rotary frequencies
    if case.bf16:
        model.bfloat16()
        for _, buffer in choosers(model):
            buffer.data = buffer.float()  # as in the published files
    model.save_pretrained(folder, max_shard_size=limit)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if case.config:
        (folder / "config.json").write_text(json.dumps(case.config, indent=2) + "\n")
    if case.rename or case.extra:
        tensors = load_file(folder / "model.safetensors")
        for old, new in case.rename:
            tensors = {name.replace(old, new): value for name, value in tensors.items()}
        tensors |= {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in case.extra.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if case.store == "pickle":
        tensors = {name: value.half() for name, value in tensors.items()}
        tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]  # one storage under two names
        torch.save(OrderedDict(sorted(tensors.items())), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    if case.store == "consolidated":
        (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
        (folder / "config.json").rename(folder / "params.json")
    shards = len(list(folder.glob("*.safetensors")))
    assert shards == {"sharded": 2, "pickle": 0}.get(case.store, 1), shards


def check_stored(case, model, ids, folder, logits):
    """What was written must read back as the same model."""
    if case.config and "architectures" not in case.config:  # not for transformers
        file = next(file for file in folder.iterdir() if file.suffix in (".bin", ".safetensors"))
        official = model.state_dict()
        for name, value in (torch.load(file) if file.suffix == ".bin" else load_file(file)).items():
            for old, new in reversed(case.rename):
                name = name.replace(new, old)
            assert torch.equal(value.float(), official.pop(name)), name
        assert set(official) <= {"lm_head.weight"}, official.keys()
        return
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        assert deviation(again(ids, use_cache=False).logits[0], logits) < 1e-6, "the stored folder is another model"


# ---------------------------------------------------------------- recording


def record(case, model, generator, folder):
    vocab = case.vocab or model.config.vocab_size
    described = case.family in DESCRIBED
    ids = torch.randint(0, vocab, (1, case.tokens), generator=generator)
    taps = Taps(model, described)
    with torch.no_grad():
        logits = model(ids, use_cache=False, output_attentions=case.family in ("llama", "bamba")).logits[0]
    taps.close()
    check_stored(case, model, ids, folder, logits)
    check_routing(model, ids, logits)
    golden = {"input_ids": ids[0].numpy(), "logits": logits.numpy()}
    if case.logits_only:
        return golden, "logits only"
    for i, resid in enumerate(taps.resid):
        golden[f"resid.{i}"] = resid.numpy()
    worst = 0.0
    for i in first_of_each_kind(taps.mixers):
        values, error = describe_mixer(case, model, taps, i)
        worst = max(worst, error)
        for name, value in values.items() if case.internals else []:
            integer = np.issubdtype(value.dtype, np.integer)
            golden[f"mixer.{i}.{name}"] = value.astype(np.int64 if integer else np.float32)
    prompt, continuation, margin = greedy(model, vocab, generator)
    golden |= {"greedy_prompt": prompt, "greedy": continuation}
    note = f"reference {worst:.1e}  " if described else ""
    if case.family not in ("samba", "rwkv", "recurrent_gemma", "xlstm", "rwkv6", "rwkv7", *fla_models.FAMILIES):
        decode = decode_deviation(model, ids, logits)
        note += f"cached decode {decode:.1e}  "
        if case.decode_exact:
            assert decode < 1e-4, f"{case.name}: cached decode is off by {decode}"
    note += f"greedy margin {margin:.3f}"
    if case.family == "bamba":
        note += f"  (decode without position_ids {decode_deviation(model, ids, logits, positions=False):.1e})"
    return golden, note


def check_routing(model, ids, logits):
    """No token may sit so close between two experts that rounding decides."""
    routers = [p for name, p in model.named_parameters() if name.split(".")[-2] in ("router", "gate")]
    noise = torch.Generator().manual_seed(0)
    for _ in range(4 if routers else 0):
        exact = [p.clone() for p in routers]
        with torch.no_grad():
            for p in routers:
                p *= 1.0 + 1e-4 * torch.randn(p.shape, generator=noise)
            moved = deviation(model(ids, use_cache=False).logits[0], logits)
            for p, value in zip(routers, exact):
                p.copy_(value)
        assert moved < 3e-3, f"an expert changes with the last digits of the router: {moved}"


class Taps:
    """Forward hooks: the residual stream after every layer, and where asked each mixer's input and output."""

    def __init__(self, model, mixers):
        base = model.base_model
        layers = next(getattr(base, name) for name in ("h", "blocks", "layers") if hasattr(base, name))
        count = len(layers)
        self.resid, self.inputs, self.outputs = [None] * count, [None] * count, [None] * count
        self.weights = [None] * count
        self.mixers, self.handles = [], []
        for i, layer in enumerate(layers):
            self.handles.append(layer.register_forward_hook(self.after_layer(i)))
            if not mixers:
                continue
            mixer = next(getattr(layer, n) for n in ("mixer", "mamba", "self_attn") if hasattr(layer, n))
            self.mixers.append(mixer)
            self.handles.append(mixer.register_forward_hook(self.after_mixer(i)))
            entry = mixer.q_proj if hasattr(mixer, "q_proj") else mixer.in_proj
            self.handles.append(entry.register_forward_hook(self.after_entry(i)))

    def after_layer(self, i):
        def hook(_, __, output):
            self.resid[i] = (output[0] if isinstance(output, tuple) else output)[0].float().clone()

        return hook

    def after_mixer(self, i):
        def hook(_, __, output):
            first, *rest = output if isinstance(output, tuple) else (output,)
            self.outputs[i] = first[0].clone()
            self.weights[i] = rest[0][0].clone() if rest else None

        return hook

    def after_entry(self, i):
        def hook(_, inputs, __):
            self.inputs[i] = inputs[0][0].clone()

        return hook

    def close(self):
        for handle in self.handles:
            handle.remove()


def first_of_each_kind(mixers):
    kinds = [type(mixer).__name__ for mixer in mixers]
    return sorted({kinds.index(kind) for kind in kinds})


def describe_mixer(case, model, taps, i):
    """The internals from the float64 reference, once it has reproduced the official output."""
    mixer, config = taps.mixers[i], model.config
    u = taps.inputs[i].double().numpy()
    w = {name: value.double().numpy() for name, value in mixer.state_dict().items()}
    if taps.weights[i] is not None:
        head_dim = mixer.head_dim
        rope = dict(config.rope_parameters)
        rotary = int(head_dim * rope.get("partial_rotary_factor", 1.0))
        kv_heads = config.num_key_value_heads
        values = reference.attention(u, w, config.num_attention_heads, kv_heads, head_dim, rotary, rope)
        error = deviation(values["mixing"], taps.weights[i])
        assert error < 1e-5, f"{case.name}: attention weights are off by {error}"
        if rope.get("rope_type") == "llama3":
            plain = rope | {"rope_type": "default"}
            other = reference.attention(u, w, config.num_attention_heads, kv_heads, head_dim, rotary, plain)
            assert deviation(other["out"], taps.outputs[i]) > 1e-2, "the frequency scaling does not matter here"
    elif case.family == "mamba":
        values = reference.mamba1(u, w, mixer.time_step_rank, case.mixing)
    else:
        limit = mixer.time_step_limit
        arguments = (u, w, mixer.n_groups, mixer.head_dim, mixer.norm.variance_epsilon, limit)
        values = reference.mamba2(*arguments, case.mixing)
        if mixer.n_groups > 1:
            ungrouped = reference.mamba2(*arguments, False, norm_groups=1)
            assert deviation(ungrouped["out"], taps.outputs[i]) > 1e-2, "the gated norm is not per group"
        if limit != (0.0, math.inf):
            share = [np.mean(values["delta"] == bound) for bound in limit]
            assert min(share) > 0.01, f"the clamp does not bite: {share}"
    error = deviation(values["out"], taps.outputs[i])
    assert error < 1e-5, f"{case.name}: mixer {i} is off by {error}"
    return values, error


def greedy(model, vocab, generator):
    """A prompt whose continuation is lively, clear at every step, and free of end tokens."""
    ends = model.config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    for _ in range(200):
        prompt = torch.randint(0, vocab, (1, PROMPT), generator=generator)
        ids, margin = prompt, math.inf
        for _ in range(CONTINUATION):
            with torch.no_grad():
                best = model(ids, use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, (best.values[0] - best.values[1]).item())
            token = best.indices[0].item()
            if margin < 0.01 or token >= vocab or token in ends:
                break
            ids = torch.cat([ids, best.indices[:1][None]], dim=1)
        else:
            continuation = ids[0, PROMPT:]
            if len(continuation.unique()) >= 6:
                return prompt[0].numpy(), continuation.numpy(), margin
    raise AssertionError("no lively prompt found")


def decode_deviation(model, ids, logits, positions=True):
    """Prefill all but three tokens, then three cached steps, against the one-shot logits.

    Bamba starts counting positions at 0 again in every call unless it is told them.
    """
    with torch.no_grad():
        output = model(ids[:, :-3], use_cache=True)
        steps = []
        for t in range(ids.shape[1] - 3, ids.shape[1]):
            key = "cache_params" if "cache_params" in output else "past_key_values"
            where = {"position_ids": torch.tensor([[t]])} if positions and key == "past_key_values" else {}
            output = model(ids[:, t : t + 1], use_cache=True, **{key: output[key]}, **where)
            steps.append(output.logits[0, -1])
    return deviation(torch.stack(steps), logits[-3:])


def deviation(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return np.abs(a - b).max() / np.abs(b).max()


# ---------------------------------------------------------------- tokenizer

SENTENCES = [
    "The state of a sequence model is a small box that forgets a little at every step.",
    "What the gate lets through is written into the state, and what the state remembers is read out again.",
    "A short convolution looks at the last few tokens; the scan looks at everything before them.",
    "Η κατάσταση ενός μοντέλου θυμάται και ξεχνά σε κάθε βήμα.",
    "状態は一歩ごとに少しずつ忘れる。門は何を書き込むかを決める。",
    "Decay, write, read: 0.5, 0.25, 0.125 … 🙂🌊🙂",
]
SAMPLES = [
    "The gate forgets the state.",
    " leading space, and  two spaces\n\ttab",
    "Η κατάσταση ξεχνά",
    "状態を忘れる。",
    "waves 🌊🙂 and a family 👩‍👩‍👧",
    "naïve café — ½ 𝛥t",
    "<|endoftext|>The end",
    "",
]


def make_tokenizer(folder):
    """Byte-level BPE of 300 tokens: most non-Latin letters stay split over several tokens."""
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = []
    for text in SAMPLES:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        pieces = [tokenizer.decode([i], skip_special_tokens=False) for i in ids]
        rows.append({"text": text, "ids": ids, "pieces": pieces})
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "samples.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    split = sum("\ufffd" in piece for row in rows for piece in row["pieces"])
    assert split > 10
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {split} sample tokens are parts of a character")


if __name__ == "__main__":
    main()
