"""What to tell a person about a job that failed."""

from __future__ import annotations

import signal
from pathlib import Path

from stacking.errors import Diverged, Preempted, StackingError, UserError
from stacking.launch.job import Outcome

_IN_OWN_WORDS = (UserError.exit_code, Diverged.exit_code)
"""Failures that every rank explains in one line of its own."""


def last_error(log: Path | None) -> str:
    """The last line of ``log`` that says something: what a person is shown of a failed rank."""
    if log is None or not log.exists():
        return "no output"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if any(map(str.isalnum, line))), "no output")


def describe(outcome: Outcome) -> str:
    """One line that names the rank and its host, how it ended, its last words and its log.

    What a rank that got SIGKILL wrote last has nothing to do with its end.
    """
    if outcome.exit_code < 0:
        ending = f"was killed by {signal.Signals(-outcome.exit_code).name}"
    else:
        ending = f"ended with exit code {outcome.exit_code}"
    who = "the launcher" if outcome.rank is None else f"rank {outcome.rank}"
    where = f" on {outcome.host}" if outcome.host else ""
    words = "" if outcome.exit_code == -signal.SIGKILL else f": {last_error(outcome.log)}"
    return f"{who}{where} {ending}{words} (log: {outcome.log})"


def raise_for(outcome: Outcome) -> None:
    """Raise a failed job's error; a user's mistake or a divergence keeps its exit code and its one line."""
    if outcome.exit_code != 0:
        error = StackingError(explain(outcome))
        if outcome.exit_code in (*_IN_OWN_WORDS, Preempted.exit_code):
            error.exit_code = outcome.exit_code
        raise error


def explain(outcome: Outcome) -> str:
    """The rank's own line where it explains the failure, otherwise what `describe` says."""
    if outcome.exit_code in _IN_OWN_WORDS:
        return last_error(outcome.log).removeprefix("stacking: ")
    return describe(outcome)
