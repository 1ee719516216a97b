"""Hold fla_models.py against the fla package (0.6.0, pip install flash-linear-attention einops): names and shapes of all parameters, and the
recurrences against fla's naive ones, which need no GPU."""

import json
from pathlib import Path

import torch

import fla.models as official
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from safetensors.torch import load_file

import fla_models as ours

HERE = Path(__file__).parent
NAMES = {"retnet": "RetNet", "gla": "GLA", "linear_attn": "LinearAttention", "hgrn2": "HGRN2", "delta_net": "DeltaNet",
         "gated_deltanet": "GatedDeltaNet", "rwkv6": "RWKV6", "rwkv7": "RWKV7"}  # fmt: skip


def main():
    for folder in sorted(HERE.iterdir()):
        file = folder / "config.json"
        if not file.is_file() or json.loads(file.read_text()).get("model_type") not in NAMES:
            continue
        config = json.loads(file.read_text())
        name = NAMES[config.pop("model_type")]
        # fla's softmax attention does not even load without flash-attn: those layers are left out.
        attends = (config.pop("attn", None) or {"layers": []})["layers"]
        other = tuple(f"model.layers.{i}.attn." for i in attends)
        model = getattr(official, f"{name}ForCausalLM")(getattr(official, f"{name}Config")(**config))
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.startswith(other)}
        if config["tie_word_embeddings"]:
            shapes.pop("lm_head.weight")
        stored = {name: tuple(value.shape) for name, value in load_file(folder / "model.safetensors").items()}
        stored = {name: shape for name, shape in stored.items() if not name.startswith(other)}
        assert stored == shapes, (folder.name, set(stored.items()) ^ set(shapes.items()))
        print(f"{folder.name}: {len(stored)} parameters as in fla")
    torch.manual_seed(0)
    q, k, v = torch.randn(9, 2, 4).double(), torch.randn(9, 2, 4).double(), torch.randn(9, 2, 3).double()
    log, beta = -torch.rand(9, 2, 4).double(), torch.rand(9, 2).double()
    batch = [x[None].float() for x in (q, k, v, log)]
    theirs = naive_recurrent_gla(*batch)[0][0]
    print("gla", (theirs - ours.linear_recurrence(q * 4**-0.5, k, v, log)).abs().max().item())
    heads = [x.transpose(0, 1)[None].float() for x in (q, k, v)]
    theirs = delta_rule_recurrence(*heads, beta.T[None].float())[0][0].transpose(0, 1)
    print("delta", (theirs - ours.delta_recurrence(q * 4**-0.5, k, v, beta, torch.zeros_like(beta))).abs().max().item())


if __name__ == "__main__":
    main()
