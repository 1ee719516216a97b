"""Times mamba_ssm, built on the machine (see kernels/README.md), on the shapes of this bench: python3 peers.py [scans] [ssds]."""
import importlib.util
import sys
import types

import torch

# The package's __init__ imports what these ops do not need.
root = importlib.util.find_spec("mamba_ssm").submodule_search_locations
package = types.ModuleType("mamba_ssm")
package.__path__ = list(root)
sys.modules["mamba_ssm"] = package


def median(call, count=20):
    for _ in range(3):
        call()
    times = []
    for _ in range(count):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        call()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b))
    return sorted(times)[count // 2]


torch.manual_seed(0)
dev = "cuda"
print(torch.cuda.get_device_name())


def scans():
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    for dtype in (torch.bfloat16, torch.float32):
        for L in (2048, 16384, 131072):
            D, N = 5120, 16
            u, dt, z = (torch.randn(1, D, L, device=dev, dtype=dtype) for _ in range(3))
            B, C = (torch.randn(1, 1, N, L, device=dev, dtype=dtype) for _ in range(2))
            A = -torch.arange(1, N + 1, device=dev, dtype=torch.float32).repeat(D, 1)
            Dv, bias = torch.randn(D, device=dev), torch.full((D,), -4.0, device=dev)
            with torch.no_grad():
                t = median(lambda: selective_scan_fn(u, dt, A, B, C, Dv, z, bias, True, True))
            print(f"| peer: selective scan {dtype}, D5120 N16 L{L} | {t:.3f} ms |", flush=True)
            del u, dt, z


def ssds():
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    for H, G, L in ((80, 1, 2048), (80, 1, 16384), (80, 1, 131072), (128, 8, 16384)):
        P, N, dtype = 64, 128, torch.bfloat16
        x = torch.randn(1, L, H, P, device=dev, dtype=dtype)
        dt = torch.randn(1, L, H, device=dev, dtype=dtype)
        B, C = (torch.randn(1, L, G, N, device=dev, dtype=dtype) for _ in range(2))
        A, D, bias = -torch.rand(H, device=dev) * 10 - 1, torch.randn(H, device=dev), torch.full((H,), -4.0, device=dev)
        best = None
        for chunk in (128, 256):
            with torch.no_grad():
                t = median(lambda: mamba_chunk_scan_combined(x, dt, A, B, C, chunk, D=D, dt_bias=bias, dt_softplus=True,
                                                             return_final_states=True))
            best = min(best or t, t)
        print(f"| peer: SSD bf16, H{H} P{P} N{N} G{G} L{L} | {best:.3f} ms (best of chunks of 128 and 256) |", flush=True)


for part in (scans, ssds):
    if len(sys.argv) > 1 and part.__name__ not in sys.argv[1:]:
        continue
    try:
        part()
    except Exception as error:
        print(f"| peer: {part.__name__} | not measured: {type(error).__name__}: {error} |", flush=True)
