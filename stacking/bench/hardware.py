"""Records what a benchmark ran on: device, clocks, threads, versions and matrix-multiplication speed."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from typing import Any

import torch
import torch.distributed as dist

from stacking.bench.instruments import synchronise
from stacking.errors import StackingError
from stacking.hardware.cores import usable_cores
from stacking.hardware.nvidia_smi import query, visible_gpus
from stacking.hardware.presets import Precision, printed_peak
from stacking.hardware.processor import cpu_name
from stacking.planning.plan import StagePlan

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
_GEMM_REPEATS = 7
_PACKAGES = ("deepspeed", "transformers", "triton", "apex", "flash-attn", "numpy")
_SMI = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "persistence_mode")


def hardware(device: torch.device, stage: StagePlan, gemm: float) -> dict[str, Any]:
    """Describes the machine, after the engines have configured it.

    ``peak_tflops`` covers the devices of all ranks in the stage's precision: from `stacking.hardware.presets`, or, on a
    CPU or a card without a row, ``gemm``.

    Args:
        gemm: the result of `gemm_tflops`.
    """
    found = {
        "device": device.type,
        "ranks": stage.ranks,
        "host_cpu": cpu_name(),
        "cores": usable_cores(),
        "threads_per_rank": torch.get_num_threads(),
        "gemm_tflops": gemm,
        **_versions(),
    }
    if device.type == "cuda":
        return found | _gpu(device, stage, gemm)
    return found | {"name": cpu_name(), "peak_tflops": gemm, "peak_source": _measured_here(device)}


def gemm_tflops(device: torch.device, precision: Precision) -> float:
    """Measures the TFLOPS of all ranks' devices multiplying square matrices simultaneously; the best of several."""
    size = _GEMM_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=_DTYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(_GEMM_REPEATS):
        synchronise(device)
        started = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    total = torch.tensor([2 * size**3 / best / 1e12], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def _measured_here(device: torch.device) -> str:
    size = _GEMM_SIZE[device.type]
    return f"measured in this run with a product of two {size:,}-wide square matrices"


def _gpu(device: torch.device, stage: StagePlan, gemm: float) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    in_tf32 = stage.precision == "fp32" and torch.backends.cuda.matmul.allow_tf32
    precision = "tf32" if in_tf32 else stage.precision
    peak, source = printed_peak(properties.name, precision) or (gemm / stage.ranks, _measured_here(device))
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "peak_tflops": peak * stage.ranks,
        "peak_source": f"{precision}, {source}",
        "matmul_precision": precision,
        **_from_smi(torch.cuda.current_device()),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {f"version_{name}": version for name, version in found.items()}


def _from_smi(index: int) -> dict[str, str]:
    """Returns driver, clocks and power limit as printed by nvidia-smi; empty if it is unavailable."""
    try:
        uuid = visible_gpus()[index].uuid
        return next(row for row in query("uuid", *_SMI) if row.pop("uuid") == uuid)
    except (StackingError, IndexError, StopIteration):
        return {}
