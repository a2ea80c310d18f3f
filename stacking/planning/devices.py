"""Decides for which devices to plan: the machine's, or the class that the recipe names."""

from __future__ import annotations

from dataclasses import dataclass

from stacking.config.recipe import Recipe
from stacking.errors import UserError
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES, DeviceClass

_CPU_RANKS = 2
"""The meaning of ``auto`` on a CPU: enough to be distributed; more would compete for the same cores."""


@dataclass(frozen=True)
class Devices:
    """The devices to plan for: the machine's, or the class that the recipe names."""

    cuda: bool
    device: DeviceClass
    memory: int
    """Bytes per GPU, or of the host; 0: unknown."""
    count: int


def find_devices(recipe: Recipe, machine: Machine) -> Devices:
    """Returns the devices to plan for.

    Raises:
        UserError: the recipe wants a GPU, but there is none and it names no class.
    """
    wanted, named = recipe.launch.accelerator, recipe.launch.device
    cuda = named != "cpu" if named != "auto" else machine.accelerators > 0
    if wanted == "cpu":
        cuda = False
    if wanted == "cuda" and not cuda:
        remedy = "set it to cpu, or name the class to plan for as launch.device"
        raise UserError(recipe.key("launch", "accelerator"), "is cuda, but there is no GPU here", remedy)
    if not cuda:
        if named not in ("auto", "cpu"):
            raise UserError(recipe.key("launch", "device"), f"is {named}, but the accelerator is cpu", "remove one")
        memory = 0 if machine.accelerators else machine.memory
        return Devices(False, machine.cpu, memory, _CPU_RANKS)
    if named == "auto":
        return Devices(True, machine.device, machine.memory, machine.accelerators)
    device = DEVICE_CLASSES[named]
    return Devices(True, device, device.memory, max(machine.accelerators, 1))
