"""Finds how far two plans train the same updates from the beginning.

Schedules often share their beginning: the same shallow stage before different growths, or a constant learning rate
before the decays of a short and a long training (Hägele et al., https://arxiv.org/abs/2405.18392).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stacking.planning.plan import Plan, StagePlan

_OF_THE_RUN = ("seed", "model", "start", "optimizer", "evaluation", "log_every")
"""What both plans must share besides their data; ``log_every`` and ``evaluation`` because they shape the metrics."""
_OF_A_LENGTH = {"steps", "last_sample", "tokens", "epochs", "learning_rate", "flops", "memory_per_rank", "resources"}
"""What may differ between stages that train the same updates; the learning rates are compared update by update."""


@dataclass(frozen=True)
class Overlap:
    """The updates that two plans share."""

    updates: tuple[int, ...]
    """Per stage, up to the one in which they part."""
    parted_by: str
    """The first thing in which they differ, such as ``stages[1].growth``; empty if one continues the other."""


def overlap(mine: Plan, theirs: Plan) -> Overlap:
    """Returns how far two plans train the same updates on the same samples."""
    if difference := _first_difference(dict(_conditions(mine)), dict(_conditions(theirs))):
        return Overlap((), difference)
    updates: list[int] = []
    for own, other in zip(mine.stages, theirs.stages, strict=False):
        place = f"stages[{own.index}]"
        if difference := _first_difference(_settings(own), _settings(other)):
            return Overlap(tuple(updates), f"{place}.{difference}")
        if own.until is not None and own.steps != other.steps:
            return Overlap(tuple(updates), f"{place}.until, which decides its length as it trains")
        updates.append(_same_rates(own, other))
        if updates[-1] < min(own.steps, other.steps):
            return Overlap(tuple(updates), f"the learning rate of {place}, after {updates[-1]:,} updates")
        if own.steps != other.steps:
            return Overlap(tuple(updates), f"{place}.steps")
    return Overlap(tuple(updates), "")


def _conditions(plan: Plan) -> Iterator[tuple[str, Any]]:
    for key, value in plan.data.model_dump(mode="json", exclude={"path"}).items():
        yield f"data.{key}", value
    for key, value in plan.model_dump(mode="json", include=set(_OF_THE_RUN)).items():
        yield key, value


def _settings(stage: StagePlan) -> Mapping[str, Any]:
    return stage.model_dump(mode="json", exclude=_OF_A_LENGTH)


def _first_difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return next((key for key in mine if mine[key] != theirs.get(key)), "")


def _same_rates(own: StagePlan, other: StagePlan) -> int:
    """Returns the updates until the learning rates first differ."""
    both = min(own.steps, other.steps)
    return next((step for step in range(both) if own.rates_at(step) != other.rates_at(step)), both)
