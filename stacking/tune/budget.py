"""How much a tuning may take."""

from __future__ import annotations

import time
from collections.abc import Callable

_SEARCH = 0.75
"""The search's part of a stage's time; the rest is the final's."""


class Budget:
    """A number of trials per stage, and a time that the stages share.

    Args:
        trials: most trials of one stage's search; None: as many as it takes.
        seconds: of the whole tuning, from now; None: as long as it takes.
        stages: how many there are to tune.
    """

    def __init__(
        self, trials: int | None, seconds: float | None, stages: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trials, self._left_stages, self._clock = trials, stages, clock
        self._end = None if seconds is None else clock() + seconds
        self._search_end: float | None = None
        self._stage_end: float | None = None

    def next_stage(self) -> None:
        """Give the next stage its part of the time that is left."""
        if self._end is not None:
            now = self._clock()
            share = max(0.0, self._end - now) / max(self._left_stages, 1)
            self._search_end, self._stage_end = now + _SEARCH * share, now + share
        self._left_stages -= 1

    def seconds_left(self) -> float | None:
        """For this stage; None: no limit."""
        return None if self._stage_end is None else max(0.0, self._stage_end - self._clock())

    def search_spent(self, measured: int) -> str:
        """Why no further trial of the search may start after ``measured`` of them; nothing while one may."""
        if self._trials is not None and measured >= self._trials:
            return f"it has had its {self._trials} trials"
        if self._search_end is not None and self._clock() >= self._search_end:
            return "its time is over"
        return ""

    def final_spent(self) -> str:
        """Why no further trial of the final may start; nothing while one may."""
        return "the time is over" if self.seconds_left() == 0 else ""
