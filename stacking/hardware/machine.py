"""Detects this computer's devices without torch: a plan must start at once, also on a login node."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stacking.hardware.cores import usable_cores
from stacking.hardware.nvidia_smi import visible_gpus
from stacking.hardware.presets import DEVICE_CLASSES, DeviceClass, cpu_class, device_class
from stacking.hardware.processor import cpu_flags, has_native_bf16


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
    cpu: DeviceClass = DEVICE_CLASSES["cpu"]
    """The class of the CPU, which ranks use if there is no GPU or none is requested."""


def find_machine() -> Machine:
    """Describes this computer, as nvidia-smi and the operating system report it.

    ``DS_ACCELERATOR=cpu`` hides the GPUs, as it does for DeepSpeed; CUDA_VISIBLE_DEVICES is respected.

    Raises:
        StackingError: nvidia-smi does not answer.
    """
    cores, cpu = usable_cores(), cpu_class(has_native_bf16(cpu_flags()))
    gpus = [] if os.environ.get("DS_ACCELERATOR") == "cpu" else visible_gpus()
    if gpus:
        first = gpus[0]
        device = device_class(first.name, first.memory, first.capability)
        return Machine(len(gpus), device, first.memory, cores, cpu)
    return Machine(0, cpu, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cores, cpu=cpu)
