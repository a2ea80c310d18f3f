"""Keeps NaN and infinity out of what is made of a training state; what is read is checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stacking.errors import UserError
from stacking.state.format import BUFFERS, MOMENTS, WEIGHTS, Readable, TrainingState
from stacking.storage.partition import Shape, numel

CHECKED = "finite"
"""Key of a state's provenance that says that every value was finite when it was written."""
_SLICE = 1 << 22
"""Elements that are looked at together: 16 MiB."""


class FiniteState(Readable):
    """A view of ``source`` that gives finite values only.

    Args:
        where: the folder, for the error.

    Raises:
        UserError: by `fill` and `read`, at a value that is not finite; names the first tensor of ``source`` with one.
    """

    def __init__(self, source: TrainingState, where: Path) -> None:
        self._source, self._where = source, where
        self.names, self.buffers, self.moments = source.names, source.buffers, source.moments
        self.optimizer_step, self.model, self.progress = source.optimizer_step, source.model, source.progress

    def shape(self, name: str) -> Shape:
        return self._source.shape(name)

    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        self._source.fill(kind, name, start, into)
        if not _all_finite(into):
            require_finite(self._source, self._where)


def require_finite(source: TrainingState, where: Path) -> None:
    """Read all of ``source`` once, in slices, and refuse it where a weight, moment or buffer is not finite.

    Raises:
        UserError: it names the first such tensor.
        DamagedFile: a file of ``source`` is torn or altered.
    """
    kinds = (WEIGHTS, *MOMENTS) if source.moments else (WEIGHTS,)
    tensors = [(kind, name, numel(source.shape(name))) for kind in kinds for name in source.names]
    tensors += [(BUFFERS, name, numel(spec.shape)) for name, spec in source.buffers.items()]
    for kind, name, count in tensors:
        for start in range(0, count, _SLICE):
            if not _all_finite(source.read(kind, name, start, min(count, start + _SLICE))):
                problem = f"holds NaN or infinity, first in {name} ({kind})"
                raise UserError(where, problem, "take an earlier checkpoint, or pass --allow-non-finite")


def was_checked(manifest: Mapping[str, Any]) -> bool:
    """Whether the state with this manifest was written from finite values."""
    provenance = manifest.get("provenance")
    return isinstance(provenance, dict) and provenance.get(CHECKED) is True


def _all_finite(values: np.ndarray) -> bool:
    if not np.issubdtype(values.dtype, np.floating):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(values.reshape(-1))):  # faster than asking each; a finite sum has finite terms
            return True
    return bool(np.isfinite(values).all())
