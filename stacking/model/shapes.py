"""Names and shapes of the parameters of a layer's parts."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """Return the weight [outputs, inputs] and the bias [outputs] of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int, affine: bool = True) -> Shapes:
    """Return the weight and the bias [width] of a LayerNorm; nothing without ``affine``."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)} if affine else {}
