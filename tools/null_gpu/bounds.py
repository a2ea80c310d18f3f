"""What one update of `proof.yaml` may ask of the device: 4 layers, one micro-batch of 64 ragged sequences.

Too low: layers this narrow are not compiled, and DeepSpeed's checks of single gradients, which the null GPU answers on
the host, do not count as waits.

Kernels are what a fast card waits for in small stages, and every wait of the host empties its queue. The figures are
those that `tools/prove_gpu` found, rounded up; lower them when they fall.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Bound(NamedTuple):
    """The bound of one card and precision."""

    attention: str
    """The kernel that computes attention."""
    launches: Sequence[int]
    """Kernels of one update under ZeRO 0, 1, 2 and 3."""


BOUNDS: Mapping[tuple[str, str], Bound] = {
    ("P40", "fp32"): Bound("sdpa", (900, 1050, 1050, 1050)),
    ("V100", "fp16"): Bound("sdpa", (1800, 1700, 1700, 1000)),
    ("A100", "bf16"): Bound("varlen_flash", (1500, 700, 700, 700)),
    ("H100", "bf16"): Bound("varlen_flash", (1500, 700, 700, 700)),
}
WAITS_OF_ANY_UPDATE: Sequence[int] = (0, 0, 0, 2)
"""Of forward and backward, by ZeRO level."""
WAITS_OF_STEP: Sequence[int] = (11, 10, 10, 10)
"""Of the optimizer's step, by ZeRO level."""
