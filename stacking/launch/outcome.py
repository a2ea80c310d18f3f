"""Describes failed jobs to users."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

from stacking.errors import Diverged, NoSpace, Preempted, StackingError, UserError
from stacking.launch.job import Outcome
from stacking.launch.meaning import meaning
from stacking.storage.os_errors import is_full

_SILENCE = "no output"


def diagnosed(outcome: Outcome) -> Outcome:
    """Sets the exit code of a full disk if a rank failed and could not even write its log."""
    failed = outcome.exit_code not in (0, UserError.exit_code, Preempted.exit_code)
    if failed and outcome.exit_code > 0 and _silenced(outcome.log):
        return replace(outcome, exit_code=NoSpace.exit_code)
    return outcome


def _silenced(log: Path | None) -> bool:
    return log is not None and _last_line(log) == _SILENCE and log.parent.is_dir() and is_full(log.parent)


_IN_OWN_WORDS = (UserError.exit_code, Diverged.exit_code)
"""Exit codes of failures that the rank itself explains in one line."""


def _last_error(log: Path | None) -> str:
    """Returns the last meaningful line of a failed rank, or the reason why it could not write one."""
    return str(NoSpace(log)) if log is not None and _silenced(log) else _last_line(log)


def _lines(log: Path | None) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines() if log is not None and log.exists() else []


def _last_line(log: Path | None) -> str:
    return next((line.strip() for line in reversed(_lines(log)) if any(map(str.isalnum, line))), _SILENCE)


def describe(outcome: Outcome) -> str:
    """Returns one line with the rank, its host, how it ended, its last error and its log.

    The last output of a rank that got SIGKILL is unrelated to its end and left out.
    """
    if outcome.exit_code < 0:
        ending = f"was killed by {signal.Signals(-outcome.exit_code).name}"
    else:
        ending = f"ended with exit code {outcome.exit_code}"
    who = "the launcher" if outcome.rank is None else f"rank {outcome.rank}"
    where = f" on {outcome.host}" if outcome.host else ""
    killed = outcome.exit_code == -signal.SIGKILL
    words = "" if killed else f": {meaning(_lines(outcome.log)) or _last_error(outcome.log)}"
    return f"{who}{where} {ending}{words} (log: {outcome.log})"


def raise_for(outcome: Outcome) -> None:
    """Raises a failed job's error; a user error or a divergence keeps its exit code and message."""
    if outcome.exit_code != 0:
        error = StackingError(explain(outcome))
        if outcome.exit_code in (*_IN_OWN_WORDS, Preempted.exit_code):
            error.exit_code = outcome.exit_code
        raise error


def explain(outcome: Outcome) -> str:
    """Returns the rank's own line if it explains the failure, otherwise that of `describe`."""
    if outcome.exit_code in _IN_OWN_WORDS:
        return _last_error(outcome.log).removeprefix("stacking: ")
    return describe(outcome)
