"""What this computer has, found without torch: a plan must start at once, also on a login node."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from stacking.hardware.presets import DEVICE_CLASSES, DeviceClass, cpu_class, device_class
from stacking.hardware.processor import cpu_flags, has_native_bf16

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Machine:
    """The devices that ranks can use."""

    accelerators: int
    """How many GPUs; 0: ranks run on the CPU."""
    device: DeviceClass
    """The class of the first GPU, or of the CPU."""
    memory: int
    """Bytes per GPU, or of the whole host."""
    cores: int
    has_nvcc: bool = False
    """Whether DeepSpeed can compile its CUDA kernels here."""
    cpu: DeviceClass = DEVICE_CLASSES["cpu"]
    """The class of its CPU, which ranks use where there is no GPU or none is wanted."""


def find_machine() -> Machine:
    """This computer, as nvidia-smi and the operating system describe it.

    ``DS_ACCELERATOR=cpu`` hides the GPUs, as it does for DeepSpeed; CUDA_VISIBLE_DEVICES is respected.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpu = cpu_class(has_native_bf16(cpu_flags()))
    gpus = [] if os.environ.get("DS_ACCELERATOR") == "cpu" else _gpus()
    if gpus:
        name, mebibytes, capability = gpus[0]
        memory = int(float(mebibytes)) << 20
        return Machine(len(gpus), device_class(name, memory, float(capability)), memory, cores, _has_nvcc(), cpu)
    return Machine(0, cpu, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cores, cpu=cpu)


def _has_nvcc() -> bool:
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") is not None or os.access(os.path.join(toolkit, "bin", "nvcc"), os.X_OK)


def _gpus() -> list[list[str]]:
    """Name, memory in MiB and compute capability of every visible GPU."""
    try:
        found = subprocess.run(_QUERY, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = [[part.strip() for part in line.split(",")] for line in found.splitlines() if line.count(",") == 2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    count = len([item for item in visible.split(",") if item.strip() and item.strip() != "-1"])
    return gpus[:count]
