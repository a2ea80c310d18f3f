"""The fp16 loss scale of a live engine, as numbers that a checkpoint can keep.

ZeRO's optimizers and the others keep it in different objects, under the same names. Without the counters a resumed run
would raise the scale at another step than one that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacking.state.deepspeed_private import LOSS_SCALE_FIELDS as FIELDS
from stacking.state.deepspeed_private import loss_scaler, smallest_loss_scale

_LONG = 20
"""Skipped updates in a row that are no longer the search for a scale, which halves 65,536 at most 16 times."""


def loss_scale(engine: Any) -> dict[str, float]:
    """The loss scale and its counters; empty where there is none (fp32, bf16)."""
    scaler = _scaler(engine)
    return {field: getattr(scaler, field) for field in FIELDS if hasattr(scaler, field)}


def overflow_warning(scale: float, smallest: float, skipped: int, streak: int) -> str | None:
    """What a person should know about updates that were skipped because gradients overflowed; usually nothing.

    Args:
        scale: the loss scale now.
        smallest: below which it will not go.
        skipped: updates since the last record.
        streak: skipped updates in a row, up to now.
    """
    if skipped and scale <= smallest:
        return f"fp16: gradients overflow although the loss scale is at its minimum of {smallest:g}; try bf16 or fp32"
    if streak >= _LONG:
        return f"fp16: no progress, as the last {streak:,} updates were skipped; the loss scale is {scale:g}"
    return None


def smallest_scale(engine: Any) -> float:
    """Below which the loss scale will not go."""
    return smallest_loss_scale(_scaler(engine))


def set_loss_scale(engine: Any, saved: Mapping[str, float]) -> None:
    """Go on with what `loss_scale` returned; what this engine's kind of scaling does not have is left out."""
    scaler = _scaler(engine)
    for field in FIELDS:
        if field in saved and hasattr(scaler, field):
            setattr(scaler, field, saved[field])


def _scaler(engine: Any) -> Any:
    return loss_scaler(engine) if engine.fp16_enabled() else None
