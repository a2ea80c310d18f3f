"""Rules out candidates that cannot fit, by the plan's estimate and the memory of a rank."""

from __future__ import annotations

from pathlib import Path

from stacking.hardware.machine import Machine
from stacking.planning.plan import Plan, StagePlan

_RUNTIME = {"cpu": 700 << 20, "cuda": 800 << 20}
"""Bytes that a rank uses before it holds a model: libraries on a CPU, the CUDA context on a GPU."""
_TRUST = {"cpu": 0.9, "cuda": 1.2}
"""The share of the memory above which an estimate rules out a candidate. The estimates err on both sides. A GPU out of
memory fails one trial, so candidates near the limit are tried; a host out of memory kills processes."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def memory_needed(plan: Plan, stage: StagePlan) -> int:
    """Return the bytes on one rank's device while ``stage`` trains."""
    return stage.memory_per_rank + _RUNTIME[plan.launch.accelerator]


def memory_limit(plan: Plan, machine: Machine, ranks_on_host: int) -> int | None:
    """Return the bytes that an estimate may reach; None if the device's memory is unknown.

    On a CPU the ranks of a host share its memory, or what its control group allows.
    """
    if plan.launch.accelerator == "cuda":
        return int(machine.memory * _TRUST["cuda"]) if machine.accelerators else None
    return int(min(machine.memory, _allowed(_CGROUP)) * _TRUST["cpu"]) // ranks_on_host


def _allowed(path: Path) -> int:
    """Return the limit in a control group's file; a number larger than any host's memory if unlimited."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 1 << 60
