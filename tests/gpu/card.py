"""The device of these tests."""

from __future__ import annotations

import os

import torch

from stacking.model.kernels import KERNELS, generation

DEVICE = torch.device("cuda")
"""With a CPU here, the tests test themselves."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CPU = torch.device("cpu")


def unavailable() -> str:
    """Returns why these tests cannot run here; empty if they can."""
    if DEVICE.type == "cpu":
        return ""
    if "NULL_GPU_NAME" in os.environ:
        return "kernels of the null GPU compute nothing"
    return "" if torch.cuda.is_available() else "there is no CUDA device"


def lacks(precision: str) -> bool:
    """Whether the device does not compute in ``precision``."""
    return precision not in KERNELS[generation(DEVICE)].precisions


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the norm of the difference, relative to that of what is expected."""
    difference = found.detach().double().cpu() - expected.detach().double().cpu()
    return float(difference.norm() / expected.detach().double().norm().cpu().clamp(min=1e-12))
