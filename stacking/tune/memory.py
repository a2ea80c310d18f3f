"""Which candidates cannot fit: the plan's estimate against what a rank may use."""

from __future__ import annotations

from pathlib import Path

from stacking.hardware.machine import Machine
from stacking.planning.plan import Plan, Stage

_RUNTIME = {"cpu": 700 << 20, "cuda": 800 << 20}
"""Bytes that a rank takes before it holds a model: libraries on a CPU, the CUDA context on a GPU."""
_TRUST = {"cpu": 0.9, "cuda": 1.2}
"""How much of the memory an estimate may fill before the candidate is left out. The estimates err on both sides. A GPU
that runs out of memory fails one trial, so what is near the limit is tried; a host that runs out kills processes."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def memory_needed(plan: Plan, stage: Stage) -> int:
    """Bytes on one rank's device when ``stage`` trains."""
    return stage.memory_per_rank + _RUNTIME[plan.launch.accelerator]


def memory_limit(plan: Plan, machine: Machine, ranks_on_host: int) -> int | None:
    """Bytes that an estimate may reach; None where nothing is known of the device.

    On a CPU the ranks of a host share its memory, or what its control group is allowed.
    """
    if plan.launch.accelerator == "cuda":
        return int(machine.memory * _TRUST["cuda"]) if machine.accelerators else None
    return int(min(machine.memory, _allowed(_CGROUP)) * _TRUST["cpu"]) // ranks_on_host


def _allowed(path: Path) -> int:
    """What a control group's file allows; more than any host has where it allows everything."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 1 << 60
