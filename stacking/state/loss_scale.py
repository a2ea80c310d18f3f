"""The fp16 loss scale of a live engine, as numbers that a checkpoint can keep.

ZeRO's optimizers and the others keep it in different objects, under the same names. Without the counters a resumed run
would raise the scale at another step than one that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What changes from step to step."""


def loss_scale(engine: Any) -> dict[str, float]:
    """The loss scale and its counters; empty where there is none (fp32, bf16)."""
    scaler = _scaler(engine)
    return {field: getattr(scaler, field) for field in FIELDS if hasattr(scaler, field)}


def set_loss_scale(engine: Any, saved: Mapping[str, float]) -> None:
    """Go on with what `loss_scale` returned; what this engine's kind of scaling does not have is left out."""
    scaler = _scaler(engine)
    for field in FIELDS:
        if field in saved and hasattr(scaler, field):
            setattr(scaler, field, saved[field])


def _scaler(engine: Any) -> Any:
    if not engine.fp16_enabled():
        return None
    return getattr(engine.optimizer, "loss_scaler", None) or getattr(engine.optimizer, "loss_scale_config", None)
