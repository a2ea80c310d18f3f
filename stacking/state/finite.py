"""Rejects NaN and infinity in training states, checking values as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stacking.errors import UserError
from stacking.state.format import BUFFERS, MOMENTS, WEIGHTS, TrainingState
from stacking.storage.partition import Shape, numel

CHECKED = "finite"
"""Key in a state's provenance: all values were finite when it was written."""
_SLICE = 1 << 22
"""Elements that are checked at once: 16 MiB."""


class FiniteState(TrainingState):
    """Views ``source`` and rejects non-finite values.

    Raises:
        UserError: raised by `fill` and `read` for a non-finite value; names the first tensor of ``source`` with one.
    """

    def __init__(self, source: TrainingState, where: Path) -> None:
        self._source, self._where = source, where
        self.names, self.buffers, self.moments = source.names, source.buffers, source.moments
        self.optimizer_step, self.parameter_steps = source.optimizer_step, source.parameter_steps
        self.model, self.progress = source.model, source.progress

    def shape(self, name: str) -> Shape:
        return self._source.shape(name)

    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        self._source.fill(kind, name, start, into)
        if not _all_finite(into):
            require_finite(self._source, self._where)


def require_finite(source: TrainingState, where: Path) -> None:
    """Reads all of ``source`` in slices and checks that weights, moments and buffers are finite.

    Raises:
        UserError: a value is not finite; the message names the first such tensor.
        DamagedFile: a file of ``source`` is truncated or altered.
    """
    kinds = (WEIGHTS, *MOMENTS) if source.moments else (WEIGHTS,)
    tensors = [(kind, name, numel(source.shape(name))) for kind in kinds for name in source.names]
    tensors += [(BUFFERS, name, numel(spec.shape)) for name, spec in source.buffers.items()]
    for kind, name, count in tensors:
        for start in range(0, count, _SLICE):
            if not _all_finite(source.read(kind, name, start, min(count, start + _SLICE))):
                problem = f"holds NaN or infinity, first in {name} ({kind})"
                raise UserError(where, problem, "use an earlier checkpoint, or pass --allow-non-finite")


def was_checked(manifest: Mapping[str, Any]) -> bool:
    """Returns whether the state with this manifest was written from finite values."""
    provenance = manifest.get("provenance")
    return isinstance(provenance, dict) and provenance.get(CHECKED) is True


def _all_finite(values: np.ndarray) -> bool:
    if not np.issubdtype(values.dtype, np.floating):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(values.reshape(-1))):  # faster than checking each; finite sum, finite terms
            return True
    return bool(np.isfinite(values).all())
