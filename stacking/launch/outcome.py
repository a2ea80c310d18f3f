"""What to tell a person about a job that failed."""

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
    """``outcome``, with the exit code of a full disk where a rank failed and not even its log could be written."""
    failed = outcome.exit_code not in (0, UserError.exit_code, Preempted.exit_code)
    if failed and outcome.exit_code > 0 and _silenced(outcome.log):
        return replace(outcome, exit_code=NoSpace.exit_code)
    return outcome


def _silenced(log: Path | None) -> bool:
    return log is not None and _last_line(log) == _SILENCE and log.parent.is_dir() and is_full(log.parent)


_IN_OWN_WORDS = (UserError.exit_code, Diverged.exit_code)
"""Failures that every rank explains in one line of its own."""


def last_error(log: Path | None) -> str:
    """What a person is shown of a failed rank: its last line that says something, or why it could not write one."""
    if log is not None and _silenced(log):
        return str(NoSpace(log))
    return _SILENCE if log is None else _last_line(log)


def _last_line(log: Path) -> str:
    if not log.exists():
        return _SILENCE
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if any(map(str.isalnum, line))), _SILENCE)


def last_words(log: Path | None) -> str:
    """What ``log`` says about a rank's end: its last exception's meaning, else the last line that says something."""
    if log is None or not log.exists():
        return "no output"
    return meaning(log.read_text(encoding="utf-8", errors="replace").splitlines()) or last_error(log)


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
    words = "" if outcome.exit_code == -signal.SIGKILL else f": {last_words(outcome.log)}"
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
