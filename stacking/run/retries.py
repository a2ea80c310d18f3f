"""Decides whether and when a crashed phase is retried."""

from __future__ import annotations

import logging

from stacking.errors import Diverged, UserError

_LOG = logging.getLogger(__name__)
FINAL = frozenset({UserError.exit_code, Diverged.exit_code})
"""Exit codes of failures that a retry would only repeat."""
_LONGEST = 600.0
"""Maximum pause, in seconds."""


class Retries:
    """Counts the crashes of one phase; progress between crashes resets the count.

    Args:
        limit: the maximum number of retries from the same checkpoint.
        seconds: the first pause; each following pause is twice as long.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit, self._seconds = limit, seconds
        self._count, self._step = 0, -1

    def pause(self, step: int) -> float | None:
        """Returns the seconds to wait after a crash whose latest checkpoint is ``step``; None: give up."""
        if step > self._step:
            self._count, self._step = 0, step
        self._count += 1
        _LOG.debug("crash %d since step %d; %d retries are allowed", self._count, step, self._limit)
        if self._count > self._limit:
            return None
        return min(_LONGEST, self._seconds * 2.0 ** (self._count - 1))
