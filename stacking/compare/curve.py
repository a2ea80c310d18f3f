"""Computes with curves of held-out loss over cost: the arithmetic of a comparison, as pure functions of numbers.

Between two held-out evaluations a loss curve is a straight line. A curve reaches a loss where it first falls to it: at
the first evaluation at or below the loss, and on the line from the evaluation before. Growth can raise the loss again;
that does not undo the crossing. A curve that never falls to the loss has no crossing, and nothing is extrapolated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

Measure = Literal["wall", "rebuilt", "flops", "tokens"]
MEASURES: tuple[Measure, ...] = ("wall", "rebuilt", "flops", "tokens")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One held-out evaluation and what the run had cost by then."""

    loss: float
    mlm_loss: float
    """The masked-word part of the loss, without next-sentence prediction."""
    wall: float
    """Seconds of wall-clock charged to the run; see `stacking.report.comparison.ChargedClock`."""
    rebuilt: float | None
    """The same, rebuilt from step times measured separately; see `stacking.compare.rebuilt`. None: not measured yet."""
    flops: float
    tokens: float
    """Real tokens trained on."""
    layers: int


@dataclass(frozen=True)
class Crossing:
    """Where a curve first falls to a loss: ``share`` of the way from point ``index - 1`` to point ``index``."""

    index: int
    share: float

    def at(self, values: Sequence[float]) -> float:
        """Interpolates ``values``, which has one entry per point."""
        if self.index == 0:
            return values[0]
        before, after = values[self.index - 1], values[self.index]
        return before + self.share * (after - before)


def crossing(losses: Sequence[float], level: float) -> Crossing | None:
    """Returns where ``losses`` first fall to ``level``; None: never.

    A curve whose first point is at or below the level counts as reaching it there, not before.
    """
    index = next((i for i, loss in enumerate(losses) if loss <= level), None)
    if index is None:
        return None
    if index == 0:
        return Crossing(0, 1.0)
    before = losses[index - 1]
    return Crossing(index, (before - level) / (before - losses[index]))


def loss_at(curve: Sequence[Point], seconds: float) -> float | None:
    """Returns the loss after ``seconds`` of charged wall-clock; None before the first and after the last evaluation."""
    times = [point.wall for point in curve]
    right = bisect_left(times, seconds)
    if right == len(times) or (right == 0 and times[0] != seconds):
        return None
    if times[right] == seconds:
        return curve[right].loss
    share = (seconds - times[right - 1]) / (times[right] - times[right - 1])
    return curve[right - 1].loss + share * (curve[right].loss - curve[right - 1].loss)


def cost_at(curve: Sequence[Point], place: Crossing, measure: Measure) -> float | None:
    """Returns the cost at a crossing; None where the measure is not known."""
    values = [getattr(point, measure) for point in curve]
    return None if None in values else place.at(values)


@dataclass(frozen=True)
class Spread:
    """The mean and spread of one number over the seeds.

    ``mean`` and the rest are None unless every seed has the number: a mean over the lucky seeds would flatter.
    """

    values: tuple[float | None, ...]
    """Per seed."""

    @property
    def known(self) -> list[float]:
        """The numbers of the seeds that have one."""
        return [value for value in self.values if value is not None]

    @property
    def is_complete(self) -> bool:
        """Whether every seed has the number."""
        return bool(self.values) and None not in self.values

    @property
    def mean(self) -> float | None:
        """The mean over the seeds."""
        return fmean(self.known) if self.is_complete else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None for fewer than two seeds."""
        return stdev(self.known) if self.is_complete and len(self.values) > 1 else None

    def as_dict(self) -> dict[str, object]:
        """Returns the mean, the range, the deviation and the number of each seed, for JSON."""
        ends = (min(self.known), max(self.known)) if self.is_complete else (None, None)
        return {
            "mean": self.mean,
            "min": ends[0],
            "max": ends[1],
            "standard_deviation": self.deviation,
            "per_seed": list(self.values),
        }


def round_levels(highest: float, lowest: float, most: int = 8) -> list[float]:
    """Returns at most ``most`` round losses above ``lowest`` and up to ``highest``, descending.

    They are multiples of the smallest of 0.01, 0.02, 0.05, 0.1, … that gives few enough of them.
    """
    if not lowest < highest:
        return []
    for hundredths in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        first, last = int(lowest * 100 // hundredths) + 1, int(highest * 100 // hundredths)
        if last - first < most:
            return [n * hundredths / 100 for n in range(last, first - 1, -1) if lowest < n * hundredths / 100]
    return []
