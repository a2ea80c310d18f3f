"""The cards that the null GPU can stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """What a program can ask a card about."""

    name: str
    """As the CUDA runtime and nvidia-smi give it."""
    capability: tuple[int, int]
    memory: int
    """Bytes."""
    multiprocessors: int
    shared: int
    """Bytes of shared memory that one block may ask for."""

    def environment(self, devices: int = 1) -> dict[str, str]:
        """Returns the variables from which the library and `nvidia-smi` read the card.

        Args:
            devices: how many such cards the machine has.
        """
        major, minor = self.capability
        return {
            "NULL_GPU_NAME": self.name,
            "NULL_GPU_CAPABILITY": f"{major}{minor}",
            "NULL_GPU_MEMORY": str(self.memory),
            "NULL_GPU_MULTIPROCESSORS": str(self.multiprocessors),
            "NULL_GPU_SHARED": str(self.shared),
            "NULL_GPU_DEVICES": str(devices),
        }


CARDS: Mapping[str, Card] = {
    "P40": Card("Tesla P40", (6, 1), 24 * GIB, 30, 48 << 10),
    "V100": Card("Tesla V100-SXM2-32GB", (7, 0), 32 * GIB, 80, 96 << 10),
    "A100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 80 * GIB, 108, 163 << 10),
    "H100": Card("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB, 132, 227 << 10),
}
"""One for each generation. Source: NVIDIA's CUDA C++ programming guide, technical specifications per compute
capability, and the data sheets of the cards."""
