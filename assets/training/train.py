"""Train one of the four models.

    python train.py mamba --data IDS_DIR --out DIR --epochs 60

Writes {name}.safetensors (bf16, names of the `transformers` class), {name}.json (losses, times,
settings) and {name}.log into --out.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from configs import CONFIGS, CONTEXT
from data import epoch_batches, load_ids
from models import LanguageModel, autocast
from optim import make_optimizers


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONFIGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=float, default=4, help="epochs")
    parser.add_argument("--deadline", type=float, help="unix time; shortens the schedule to fit")
    parser.add_argument("--stop-after", type=int, help="steps; for timing runs")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


@torch.no_grad()
def evaluate(model, ids, precise=False, batch=32):
    """Mean loss in nats per token, windows of CONTEXT every CONTEXT / 2 tokens.

    Every target but those of the first window is predicted from at least CONTEXT / 2 tokens.
    """
    model.eval()
    half, last = CONTEXT // 2, len(ids) - 1 - CONTEXT
    starts = torch.arange(0, last + 1, half, device=ids.device)
    covered = int(starts[-1]) + CONTEXT
    jobs = [(starts[:1], 0)] + [(chunk, half) for chunk in starts[1:].split(batch)]
    if covered < len(ids) - 1:
        jobs.append((starts[:1] * 0 + last, CONTEXT - (len(ids) - 1 - covered)))
    steps = torch.arange(CONTEXT + 1, device=ids.device)
    total = torch.zeros((), dtype=torch.float64, device=ids.device)
    with torch.compiler.set_stance("force_eager"), autocast(ids.device, not precise):
        for rows, skip in jobs:
            total += model.loss(ids[rows[:, None] + steps].long(), "sum", skip)
    model.train()
    return float(total) / (len(ids) - 1)


class Schedule:
    """Warm-up, then cosine to zero over the planned steps, or sooner where a deadline asks it."""

    def __init__(self, steps, warmup, deadline):
        self.steps, self.warmup, self.deadline = steps, warmup, deadline
        self.progress, self.step, self.mark = 0.0, 0, None
        self.pace = 1 / steps

    def advance(self):
        """Counts one step; returns the factor of the learning rate."""
        self.step += 1
        if self.deadline and self.step % 50 == 0:
            now = time.time()
            if self.mark:
                seconds = (now - self.mark) / 50
                left = max(self.deadline - now, seconds)
                self.pace = max(1 / self.steps, (1 - self.progress) * seconds / left)
            self.mark = now
        self.progress = min(1.0, self.progress + self.pace)
        if self.progress > 1 - 1e-6:
            self.progress = 1.0
        factor = 0.5 * (1 + math.cos(math.pi * self.progress))
        return factor * min(1.0, self.step / self.warmup)


def save_bf16(model, path):
    """The parameters in bf16, under the names of the `transformers` class."""
    state = {k: v.detach().bfloat16().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})


def main():
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log_file = (args.out / f"{args.name}.log").open("a", buffering=1)

    def log(**values):
        line = " ".join(f"{k}={v:.5g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        print(args.name, line, flush=True)
        log_file.write(line + "\n")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch._dynamo.config.recompile_limit = 64
    torch.manual_seed(args.seed)
    train, valid = (load_ids(args.data, split, device) for split in ("train", "valid"))
    index = json.loads((args.data / "index.json").read_text())["valid"]
    to_bits = index["tokens"] / index["bytes"] / math.log(2)
    model = LanguageModel(args.name, args.dropout).to(device).train()
    if device == "cuda" and not args.no_compile:
        model.compile()
    optimizers = make_optimizers(model, args.optimizer, args.lr, args.weight_decay)
    per_epoch = (len(train) - 1) // CONTEXT // args.batch
    schedule = Schedule(round(args.epochs * per_epoch), args.warmup, args.deadline)
    probe = train[: len(valid)]
    started, history, mark = time.time(), [], None

    epoch = 0
    while schedule.progress < 1:
        for ids in epoch_batches(train, epoch, args.seed, args.batch, CONTEXT):
            factor = schedule.advance()
            with autocast(device):
                loss = model.loss(ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if schedule.step % 100 == 0:
                value, now = loss.item(), time.time()
                ms = (now - mark) * 10 if mark else 0.0
                log(step=schedule.step, progress=schedule.progress, loss=value, ms=ms, s=now - started)
                assert math.isfinite(value)
                mark = now
            if schedule.progress >= 1 or schedule.step == args.stop_after:
                break
        epoch += 1
        done = schedule.progress >= 1 or schedule.step == args.stop_after
        if done or epoch % args.eval_every == 0:
            history.append([epoch, evaluate(model, valid), evaluate(model, probe)])
            log(epoch=epoch, valid=history[-1][1], bits=history[-1][1] * to_bits, train=history[-1][2])
            save_bf16(model, args.out / f"{args.name}.safetensors")
        if done:
            break

    trained = time.time() - started
    master = evaluate(model, valid, precise=True)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    rounded = evaluate(model, valid, precise=True)
    result = {
        "name": args.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": schedule.step,
        "tokens": schedule.step * args.batch * CONTEXT,
        "epochs": schedule.step / per_epoch,
        "seconds": round(trained, 1),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "settings": {k: str(v) for k, v in vars(args).items() if k not in ("data", "out")},
        "valid_nats": {"f32": master, "bf16": rounded},
        "valid_bits_per_byte": {"f32": master * to_bits, "bf16": rounded * to_bits},
        "history": history,
    }
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    log(done=1, nats=master, bits=master * to_bits, bf16_bits=rounded * to_bits)


if __name__ == "__main__":
    main()
