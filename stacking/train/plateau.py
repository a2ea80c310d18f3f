"""Watches the held-out losses of a stage that ends when they level off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stacking.planning.plan import Plan, StagePlan
from stacking.planning.plateau import has_levelled, settled_from


class Plateau:
    """Decides whether the stage ends; the same on all ranks, since all know the same losses.

    Args:
        records: the metrics of the stage up to the checkpoint from which it resumes.
    """

    def __init__(self, plan: Plan, stage: StagePlan, records: Iterable[Mapping[str, Any]]) -> None:
        self._until = stage.until
        self._begin = settled_from(stage, plan.schedule)
        self._evaluations: list[tuple[int, float]] = []
        for record in records:
            if record["kind"] == "evaluation":
                self.note(record["step"], record["loss"])

    @property
    def is_reached(self) -> bool:
        """Returns whether the stage ends with the latest evaluation."""
        return self._until is not None and has_levelled(self._until, self._evaluations)

    def note(self, step: int, loss: float) -> None:
        """Adds the held-out loss after update ``step`` (from 1)."""
        if step > self._begin:
            self._evaluations.append((step, loss))
