"""What to tell a person about a job that failed."""

from __future__ import annotations

import signal
from pathlib import Path

from stacking.errors import Preempted, StackingError, UserError
from stacking.launch.job import Outcome
from stacking.launch.meaning import meaning


def last_error(log: Path | None) -> str:
    """The last line of ``log`` that says something: what a person is shown of a failed rank."""
    if log is None or not log.exists():
        return "no output"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if any(map(str.isalnum, line))), "no output")


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
    """Raise a failed job's error; a user's mistake keeps its exit code and its one line."""
    if outcome.exit_code != 0:
        users_mistake = outcome.exit_code == UserError.exit_code
        own_words = last_error(outcome.log).removeprefix("stacking: ")
        error = StackingError(own_words if users_mistake else describe(outcome))
        if outcome.exit_code in (UserError.exit_code, Preempted.exit_code):
            error.exit_code = outcome.exit_code
        raise error
