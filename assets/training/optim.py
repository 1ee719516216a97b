"""Muon for the large matrices, AdamW for everything else, one learning-rate scale for both."""

import math

import torch

MATRICES = (
    "in_proj",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


def orthogonalise(g, steps=5):
    """The Newton-Schulz iteration of Muon on a stack of matrices [count, rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised per matrix; updates scaled to the size of AdamW's (rms 0.2)."""

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        by_shape = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        groups = [{"params": group} for group in by_shape.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """One step; matrices of one shape are handled together."""
        for group in self.param_groups:
            params, momentum = group["params"], group["momentum"]
            grad = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grad)
            state["momentum"].lerp_(grad, 1 - momentum)
            update = orthogonalise(grad.lerp(state["momentum"], momentum)).float()
            update *= -group["lr"] * 0.2 * math.sqrt(max(grad.shape[-2:]))
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.unbind()))


def make_optimizers(model, kind, lr, weight_decay):
    """The optimizers of a model; norms, biases, A_log, D and dt_bias get no weight decay."""
    matrices, decayed, free = [], [], []
    for name, p in model.named_parameters():
        if kind == "muon" and p.ndim == 2 and any(part in name for part in MATRICES):
            matrices.append(p)
        elif p.ndim >= 2 and "A_log" not in name:
            decayed.append(p)
        else:
            free.append(p)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    fused = decayed[0].is_cuda
    optimizers = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=fused)]
    if matrices:
        optimizers.append(Muon(matrices, lr, weight_decay))
    return optimizers
