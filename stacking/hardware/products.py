"""Times matrix products on the CPU in fp32 and in bf16: `python -m stacking.hardware.products`."""

from __future__ import annotations

import json
import time

import torch

_SIZE = 512
_REPEATS = 7


def bf16_slowdown() -> float:
    """Returns the time of a product in bf16 relative to fp32, on one core: below 1 if the hardware supports bf16."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _seconds(torch.bfloat16) / _seconds(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _seconds(dtype: torch.dtype) -> float:
    """Returns the best of several products, excluding the first, which prepares the kernel."""
    a, b = (torch.ones(_SIZE, _SIZE, dtype=dtype) for _ in range(2))
    best = float("inf")
    torch.mm(a, b)
    for _ in range(_REPEATS):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    print(json.dumps({"bf16_slowdown": round(bf16_slowdown(), 2)}))
