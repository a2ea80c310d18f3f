"""Whether a phase that crashed is tried again, and when."""

from __future__ import annotations

from stacking.errors import Diverged, UserError

FINAL = frozenset({UserError.exit_code, Diverged.exit_code})
"""Exit codes of failures that another try would only repeat."""
_LONGEST = 600.0
"""Seconds that no pause exceeds."""


class Retries:
    """Counts the crashes of one phase; getting further in between starts the count anew.

    Args:
        limit: how many crashes in a row, at the same checkpoint, are followed by another try.
        seconds: the first pause; each further one is twice as long.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit, self._seconds = limit, seconds
        self._count, self._step = 0, -1

    def pause(self, step: int) -> float | None:
        """Seconds to wait after a crash with ``step`` as the latest checkpoint; None: give up."""
        if step > self._step:
            self._count, self._step = 0, step
        self._count += 1
        if self._count > self._limit:
            return None
        return min(_LONGEST, self._seconds * 2 ** (self._count - 1))
