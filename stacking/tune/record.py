"""What became of one candidate."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from stacking.tune.candidate import Candidate

Result = Literal["measured", "out-of-memory", "failed", "pruned"]


class Tried(BaseModel):
    """A candidate and how its trial ended, or why there was none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidate: Candidate
    result: Result
    """``pruned``: not measured, because it cannot fit."""
    tokens_per_second: float = 0.0
    """Over all ranks, padding included; 0 where nothing was measured."""
    update_seconds: float | None = None
    """Median of one update of the recipe's whole global batch."""
    spread: float | None = None
    """Distance of the quartiles of the steps, as a share of their median."""
    memory_bytes: int | None = None
    """Most that one rank had."""
    message: str = ""
    """One line on what went wrong or why it was left out."""
    wall_seconds: float = 0.0
    """What the trial took, with the start of its processes."""

    @property
    def does_not_fit(self) -> bool:
        return self.result in ("out-of-memory", "pruned")
