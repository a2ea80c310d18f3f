"""Applies, saves and restores the fp16 loss scale of a live engine.

ZeRO's optimizers and the others keep it in different objects with the same field names. Without its counters, a resumed
run would raise the scale at another step than an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stacking.state.deepspeed_private import LOSS_SCALE_FIELDS as FIELDS
from stacking.state.deepspeed_private import leaves_loss_unscaled, loss_scaler, smallest_loss_scale

_LONG = 20
"""Consecutive skipped updates that exceed the initial search, which halves 65,536 at most 16 times."""


def loss_scale(engine: Any) -> dict[str, float]:
    """Returns the loss scale and its counters; empty without loss scaling (fp32, bf16)."""
    scaler = _scaler(engine)
    return {field: getattr(scaler, field) for field in FIELDS if hasattr(scaler, field)}


def as_backward_takes_it(engine: Any, loss: Tensor) -> Tensor:
    """Returns the loss for ``engine.backward``: times the loss scale where DeepSpeed forgets it."""
    if engine.fp16_enabled() and leaves_loss_unscaled(engine):
        return loss * float(loss_scaler(engine).cur_scale)
    return loss


def overflow_warning(scale: float, smallest: float, skipped: int, streak: int) -> str | None:
    """Returns a warning about updates skipped because gradients overflowed; None if there is no problem.

    Args:
        scale: the current loss scale.
        smallest: the minimum of the loss scale.
        skipped: the number of skipped updates since the last record.
        streak: the current number of consecutive skipped updates.
    """
    if skipped and scale <= smallest:
        return f"fp16: gradients overflow although the loss scale is at its minimum of {smallest:g}; try bf16 or fp32"
    if streak >= _LONG:
        return f"fp16: no progress, the last {streak:,} updates were skipped; the loss scale is {scale:g}"
    return None


def smallest_scale(engine: Any) -> float:
    """Returns the minimum of the engine's loss scale; for a fixed scale, the scale itself."""
    return smallest_loss_scale(_scaler(engine))


def set_loss_scale(engine: Any, saved: Mapping[str, float]) -> None:
    """Restores the result of `loss_scale`, ignoring fields that this engine's scaler lacks."""
    scaler = _scaler(engine)
    for field in FIELDS:
        if field in saved and hasattr(scaler, field):
            setattr(scaler, field, saved[field])


def _scaler(engine: Any) -> Any:
    return loss_scaler(engine) if engine.fp16_enabled() else None
