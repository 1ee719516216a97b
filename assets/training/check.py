"""Compare randomly initialised training modules with the `transformers` classes, in f32.

    python check.py        # on a GPU this checks the kernels too
"""

import torch

from configs import CONFIGS, hf_model
from models import LanguageModel


@torch.no_grad()
def difference(name, device, steps=300):
    """Largest logit difference over the largest logit, after perturbing every parameter."""
    torch.manual_seed(0)
    model = LanguageModel(name).to(device)
    for p in model.parameters():
        p += 0.02 * torch.randn_like(p)
    reference = hf_model(name).float().to(device).eval()
    keys = reference.load_state_dict(model.state_dict(), strict=False)
    assert keys.missing_keys == ["lm_head.weight"] and not keys.unexpected_keys
    reference.tie_weights()
    ids = torch.randint(0, 4096, (2, steps), device=device)
    expected = reference(input_ids=ids, use_cache=False).logits
    return float((model(ids) - expected).abs().max() / expected.abs().max())


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limit = 5e-3 if device == "cuda" else 1e-4  # Triton's f32 products are TF32
    for name in CONFIGS:
        value = difference(name, device)
        print(f"{name}: {value:.2e} {'ok' if value < limit else 'DIFFERENT'}", flush=True)


if __name__ == "__main__":
    main()
