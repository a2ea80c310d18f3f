"""Asks nvidia-smi for the GPUs and their properties, without torch."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from stacking.errors import StackingError

_PATIENCE = 30
"""Time limit of nvidia-smi in seconds; it never ends if the driver hangs."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that nvidia-smi lists, or a slice of one."""

    index: str
    uuid: str
    name: str
    memory: int
    """Bytes; 0: nvidia-smi does not say."""
    capability: float
    """0: nvidia-smi does not say."""


def query(*fields: str) -> list[dict[str, str]]:
    """Returns these fields of every GPU, as nvidia-smi prints them, without units.

    Raises:
        StackingError: nvidia-smi does not answer.
    """
    said = _ask("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    rows = ([part.strip() for part in line.split(",")] for line in said.splitlines())
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def installed_gpus() -> list[Gpu]:
    """Returns every GPU of this computer, visible to ranks or not.

    Raises:
        StackingError: nvidia-smi does not answer.
    """
    fields = ("index", "uuid", "name", "memory.total")
    rows = query(*fields, "compute_cap") or query(*fields)  # drivers before 510 refuse compute_cap
    return [
        Gpu(row["index"], row["uuid"], row["name"], _bytes(row["memory.total"]), _number(row.get("compute_cap", "")))
        for row in rows
    ]


def visible_gpus() -> list[Gpu]:
    """Returns the GPUs that CUDA_VISIBLE_DEVICES leaves visible, in its order.

    Where a GPU is divided by MIG, CUDA gives a process its first visible slice and nothing else.

    Raises:
        StackingError: nvidia-smi does not answer.
    """
    gpus = installed_gpus()
    slices = _slices(gpus) if gpus else {}
    chosen = _chosen([*gpus, *(part for parts in slices.values() for part in parts)], len(gpus))
    return next(([slices.get(gpu.uuid, [gpu])[0]] for gpu in chosen if gpu.uuid in slices or not gpu.index), chosen)


def _chosen(gpus: list[Gpu], whole: int) -> list[Gpu]:
    """Returns what CUDA_VISIBLE_DEVICES names; without it, the first ``whole`` ones."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus[:whole]
    chosen: list[Gpu] = []
    for item in filter(None, map(str.strip, visible.split(","))):
        match = next((gpu for gpu in gpus if _is_called(gpu, item)), None)
        if match is None or match in chosen:
            break  # like CUDA, ignore everything from the first unknown item on
        chosen.append(match)
    return chosen


def _is_called(gpu: Gpu, item: str) -> bool:
    """Whether an item of CUDA_VISIBLE_DEVICES refers to ``gpu``: its index, or a prefix of its UUID."""
    return item == gpu.index if item.isdigit() else len(item) > 4 and gpu.uuid.startswith(item)


def _slices(gpus: list[Gpu]) -> dict[str, list[Gpu]]:
    """Returns the MIG devices by their GPU's UUID, each with the memory that its profile (``1g.5gb``) names."""
    slices: dict[str, list[Gpu]] = {}
    parent = None
    for line in _ask("nvidia-smi", "-L").splitlines():
        uuid = re.search(r"UUID: ([\w/-]+)", line)
        if uuid is None:
            continue
        profile = re.search(r"MIG \S*?\.(\d+)gb\S*", line)
        if profile is None:
            parent = next((gpu for gpu in gpus if gpu.uuid == uuid[1]), None)
        elif parent is not None:
            memory = int(profile[1]) << 30
            part = Gpu("", uuid[1], f"{parent.name} {profile[0]}", memory, parent.capability)
            slices.setdefault(parent.uuid, []).append(part)
    return slices


def _ask(*command: str) -> str:
    """Returns the output of nvidia-smi; empty if it is not installed or finds no driver.

    Raises:
        StackingError: it does not answer.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True).stdout
    except subprocess.TimeoutExpired:
        problem = f"nvidia-smi did not answer within {_PATIENCE} s, so the GPUs are unknown"
        raise StackingError(f"{problem}; check the driver, or set DS_ACCELERATOR=cpu to ignore GPUs") from None
    except (OSError, subprocess.CalledProcessError):
        return ""


def _bytes(mebibytes: str) -> int:
    return int(_number(mebibytes)) << 20


def _number(text: str) -> float:
    """Parses a number printed by nvidia-smi; 0 for ``[N/A]``."""
    try:
        return float(text)
    except ValueError:
        return 0.0
