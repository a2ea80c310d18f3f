"""What one update of `proof.yaml` may ask of the device: 4 layers, 4 micro-batches of 16 ragged sequences.

Kernels are what a fast card waits for in small stages, and every wait of the host empties its queue. Launches are
those that `tools/prove_gpu` counted, rounded up to fifties with at least 20 to spare; waits are as counted. Lower them
when they fall. The rows are the precisions that the program allows on each card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Bound(NamedTuple):
    """The bound of one card and precision."""

    attention: str
    """The kernel that computes attention."""
    compiled: bool
    """Whether layers are compiled, except under ZeRO 3."""
    launches: Sequence[int]
    """Kernels of one update under ZeRO 0, 1, 2 and 3."""


BOUNDS: Mapping[tuple[str, str], Bound] = {
    ("P40", "fp32"): Bound("sdpa", False, (2250, 2350, 2750, 2550)),
    ("V100", "fp32"): Bound("sdpa", True, (1500, 1650, 2000, 2550)),
    ("V100", "fp16"): Bound("sdpa", True, (2500, 2450, 2800, 2300)),
    ("A100", "fp32"): Bound("sdpa", True, (1450, 1600, 1950, 2500)),
    ("A100", "fp16"): Bound("varlen_flash", True, (2400, 2300, 2650, 1650)),
    ("A100", "bf16"): Bound("varlen_flash", True, (2400, 1450, 1800, 1600)),
    ("H100", "fp32"): Bound("sdpa", True, (1450, 1600, 1950, 2500)),
    ("H100", "fp16"): Bound("varlen_flash", True, (2400, 2300, 2650, 1650)),
    ("H100", "bf16"): Bound("varlen_flash", True, (2400, 1450, 1800, 1600)),
}
WAITS_OF_ANY_UPDATE: Sequence[int] = (0, 0, 0, 8)
"""Of forward and backward, by ZeRO level. ZeRO 3 waits twice in every micro-batch for its stream of gradients."""
WAITS_OF_STEP: Mapping[str, Sequence[int]] = {
    "fp32": (4, 9, 9, 6),
    "fp16": (73, 10, 10, 7),
    "bf16": (73, 8, 8, 6),
}
"""Of the optimizer's step, by ZeRO level. The aim is 10; without ZeRO, DeepSpeed asks of every 16-bit gradient in turn
whether it is finite."""
MOST_RESERVED = 1.1
"""Memory that PyTorch may reserve, in planned memory: what it reserves and does not use is lost to the batch."""
