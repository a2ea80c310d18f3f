"""The record of one candidate."""

from __future__ import annotations

from typing import Literal

from stacking.storage.frozen import Frozen
from stacking.tune.candidate import Candidate

Result = Literal["measured", "out-of-memory", "failed", "pruned"]


class Tried(Frozen):
    """A candidate and how its trial ended, or why it had none."""

    candidate: Candidate
    result: Result
    """``pruned``: not measured, because it cannot fit."""
    tokens_per_second: float = 0.0
    """Tokens/s of all ranks, including padding; 0 if nothing was measured."""
    update_seconds: float | None = None
    """Median seconds of an update of the recipe's whole global batch."""
    spread: float | None = None
    """Interquartile range of the steps relative to their median."""
    memory_bytes: int | None = None
    """Peak bytes of one rank."""
    message: str = ""
    """One line on what went wrong or why it was left out."""
    wall_seconds: float = 0.0
    """Seconds of the whole trial, including the start of its processes."""

    @property
    def does_not_fit(self) -> bool:
        return self.result in ("out-of-memory", "pruned")
