"""Detects this computer's devices without torch: a plan must start at once, also on a login node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from stacking.errors import StackingError
from stacking.hardware.presets import DEVICE_CLASSES, DeviceClass, cpu_class, device_class
from stacking.hardware.processor import cpu_flags, has_native_bf16

_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits")
_LIST = ("nvidia-smi", "-L")
_PATIENCE = 30
"""Time limit of nvidia-smi in seconds; it never ends if the driver hangs."""


@dataclass(frozen=True)
class Machine:
    """The devices available to ranks."""

    accelerators: int
    """Number of GPUs; 0: ranks run on the CPU."""
    device: DeviceClass
    """The class of the first GPU, or of the CPU."""
    memory: int
    """Bytes per GPU, or of the whole host."""
    cores: int
    has_nvcc: bool = False
    """Whether DeepSpeed can compile its CUDA kernels here."""
    cpu: DeviceClass = DEVICE_CLASSES["cpu"]
    """The class of the CPU, which ranks use if there is no GPU or none is requested."""


def find_machine() -> Machine:
    """Describe this computer, as nvidia-smi and the operating system report it.

    ``DS_ACCELERATOR=cpu`` hides the GPUs, as it does for DeepSpeed; CUDA_VISIBLE_DEVICES is respected.

    Raises:
        StackingError: nvidia-smi does not answer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpu = cpu_class(has_native_bf16(cpu_flags()))
    gpus = [] if os.environ.get("DS_ACCELERATOR") == "cpu" else _gpus()
    if gpus:
        first = gpus[0]
        device = device_class(first.name, first.memory, first.capability)
        return Machine(len(gpus), device, first.memory, cores, _has_nvcc(), cpu)
    return Machine(0, cpu, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cores, cpu=cpu)


def _has_nvcc() -> bool:
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") is not None or os.access(os.path.join(toolkit, "bin", "nvcc"), os.X_OK)


@dataclass(frozen=True)
class _Gpu:
    """A row of nvidia-smi's output, or a slice of one."""

    index: str
    uuid: str
    name: str
    memory: int
    """Bytes."""
    capability: float


def _gpus() -> list[_Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves visible, in its order."""
    found = _ask(_QUERY)
    rows = [[part.strip() for part in line.split(",")] for line in found.splitlines() if line.count(",") == 4]
    gpus = [
        _Gpu(index, uuid, name, _bytes(memory), _number(capability)) for index, uuid, name, memory, capability in rows
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    slices = _slices(gpus) if "MIG-" in visible else []
    chosen: list[_Gpu] = []
    for item in filter(None, map(str.strip, visible.split(","))):
        match = next((gpu for gpu in (*gpus, *slices) if _is_called(gpu, item)), None)
        if match is None or match in chosen:
            break  # like CUDA, ignore everything from the first unknown item on
        chosen.append(match)
    return chosen


def _is_called(gpu: _Gpu, item: str) -> bool:
    """Whether an item of CUDA_VISIBLE_DEVICES refers to ``gpu``: its index, or a prefix of its UUID."""
    return item == gpu.index if item.isdigit() else len(item) > 4 and gpu.uuid.startswith(item)


def _slices(gpus: list[_Gpu]) -> list[_Gpu]:
    """Return the MIG devices, each with the memory that its profile (``1g.5gb``) names."""
    slices, parent = [], None
    for line in _ask(_LIST).splitlines():
        uuid = re.search(r"UUID: ([\w/-]+)", line)
        if uuid is None:
            continue
        profile = re.search(r"MIG \S*?\.(\d+)gb", line)
        if profile is None:
            parent = next((gpu for gpu in gpus if gpu.uuid == uuid[1]), None)
        elif parent is not None:
            memory = int(profile[1]) << 30
            slices.append(_Gpu("", uuid[1], parent.name, memory, parent.capability))
    return slices


def _ask(command: tuple[str, ...]) -> str:
    """Return the output of nvidia-smi; empty if it is not installed or finds no driver.

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
    """Parse a number printed by nvidia-smi; 0 for ``[N/A]``."""
    try:
        return float(text)
    except ValueError:
        return 0.0
