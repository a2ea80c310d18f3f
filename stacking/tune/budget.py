"""Limits on the number and time of trials."""

from __future__ import annotations

import time
from collections.abc import Callable

_SEARCH = 0.75
"""The share of a stage's time for the search; the rest is for the runoff."""


class Budget:
    """A number of trials per stage, and a time that the stages share.

    Args:
        trials: maximum number of trials in one stage's search; None: unlimited.
        seconds: time for the whole tuning, from now; None: unlimited.
        stages: number of stages to tune.
    """

    def __init__(
        self, trials: int | None, seconds: float | None, stages: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trials, self._left_stages, self._clock = trials, stages, clock
        self._end = None if seconds is None else clock() + seconds
        self._search_end: float | None = None
        self._stage_end: float | None = None

    def next_stage(self) -> None:
        """Assign the next stage its share of the remaining time."""
        if self._end is not None:
            now = self._clock()
            share = max(0.0, self._end - now) / max(self._left_stages, 1)
            self._search_end, self._stage_end = now + _SEARCH * share, now + share
        self._left_stages -= 1

    def seconds_left(self) -> float | None:
        """Return the seconds left for this stage; None: no limit."""
        return None if self._stage_end is None else max(0.0, self._stage_end - self._clock())

    def search_spent(self, measured: int) -> str:
        """Return why the search may start no further trial after ``measured`` of them; empty while it may."""
        if self._trials is not None and measured >= self._trials:
            return f"the limit of {self._trials} trials was reached"
        if self._search_end is not None and self._clock() >= self._search_end:
            return "the time limit was reached"
        return ""

    def final_spent(self) -> str:
        """Return why the runoff may start no further trial; empty while it may."""
        return "the time limit was reached" if self.seconds_left() == 0 else ""
