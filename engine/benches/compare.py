"""Statescope beside llama.cpp on the CPU: one interleaved run, medians, a Markdown table with the limit of the machine.

    python3 engine/benches/compare.py --peer llama-bench --model mamba-130m=FOLDER,F32.gguf,F16.gguf,Q8_0.gguf [--model …]
        [--threads 2] [--rounds 3] [--prefill 512,4096] [--decode 64]

Each round measures the limits and runs ours, then the peer, for every model and dtype (A B A B …); medians count. A model is a name, a folder for us, and the peer's conversions
to f32, f16 and q8_0; a dtype without a file is measured for us alone. The limit of decoding is what the machine reads from memory divided
by weights, state read and state written; the limit of reading a text is its rate of f32 multiply-adds (`--limits` of the bench `tokens`).

The peer: `pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36`, unpack, in vendor/llama.cpp
`cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF && cmake --build build --target llama-bench llama-quantize`; random checkpoints
from tests/make_large.py, converted with `PYTHONPATH=gguf-py python3 convert_hf_to_gguf.py FOLDER --outtype f32|f16|q8_0`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DTYPES = ["f32", "f16", "q8"]


def built():
    """The bench `tokens`, built."""
    command = ["cargo", "bench", "-p", "statescope-engine", "--bench", "tokens", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    artifacts = [json.loads(line) for line in lines if line.startswith("{")]
    return next(a["executable"] for a in artifacts if a.get("executable") and a["target"]["name"] == "tokens")


def ours(tokens, *arguments):
    out = subprocess.run([tokens, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)


def peer(bench, file, threads, prefill, decode):
    """Tokens a second by work."""
    command = [bench, "-m", file, "-t", str(threads), "-r", "1", "-o", "json", "-p", ",".join(map(str, prefill)), "-n", str(decode)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return {("prefill", run["n_prompt"]) if run["n_prompt"] else ("decode", 0): run["avg_ts"] for run in json.loads(out)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer")
    parser.add_argument("--tokens", help="the bench `tokens`, if it is built already")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefill", default="512")
    parser.add_argument("--decode", type=int, default=64)
    options = parser.parse_args()
    tokens = options.tokens or built()
    prefill = [int(n) for n in options.prefill.split(",") if n]
    threads = ["--threads", str(options.threads)]

    limits, found, facts = [], {}, {}
    for _ in range(options.rounds):
        # On a shared machine what memory gives changes from minute to minute.
        limits.append(ours(tokens, "--limits", *threads))
        for model in options.model:
            name, paths = model.split("=", 1)
            folder, *files = paths.split(",")
            for dtype, file in zip(DTYPES, files + [""] * 3):
                work = ["--prefill", options.prefill, "--decode", str(options.decode), "--repeat", "1"]
                line = ours(tokens, "--model", folder, "--dtype", dtype, *threads, *work)
                facts[name, dtype] = line
                rates = {("prefill", run["tokens"]): run["tokens_per_s"] for run in line["prefill"]}
                rates |= {("decode", run["after"]): run["tokens_per_s"] for run in line["decode"]}
                other = peer(options.peer, file, options.threads, prefill, options.decode) if options.peer and file else {}
                for work, rate in rates.items():
                    cell = found.setdefault((name, dtype, work), ([], []))
                    cell[0].append(rate)
                    cell[1].extend([other[work]] if work in other else [])
                print(".", end="", file=sys.stderr, flush=True)

    limits = {key: statistics.median(limit[key] for limit in limits) for key in limits[0]}
    print(f"\nread {limits['read_bytes_per_s'] / 1e9:.1f} GB/s, {limits['multiply_adds_per_s'] / 1e9:.0f} · 10⁹ multiply-adds a second\n")
    print("| model | work | dtype | statescope | llama.cpp | ratio | limit | share of it |\n|---|---|---|---:|---:|---:|---:|---:|")
    for (name, dtype, (kind, count)), (mine, other) in found.items():
        fact = facts[name, dtype]
        if kind == "decode":
            limit = limits["read_bytes_per_s"] / (fact["weights_bytes"] + 2 * fact["state_bytes"])
        else:
            run = next(run for run in fact["prefill"] if run["tokens"] == count)
            limit = limits["multiply_adds_per_s"] / run["multiply_adds_per_token"]
        rate = statistics.median(mine)
        ratio = f"{statistics.median(other):.1f} | {rate / statistics.median(other):.2f}" if other else "– | –"
        work = "decode" if kind == "decode" else f"prefill {count}"
        print(f"| {name} | {work} | {dtype} | {rate:.1f} | {ratio} | {limit:.0f} | {rate / limit:.0%} |")


if __name__ == "__main__":
    main()
