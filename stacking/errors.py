"""Defines the exceptions shown to users and their exit codes.

StackingError          1   a failure; the message says where to look
├── StorageFailure     1   a disk or file server failed, possibly transiently; resuming retries
├── Unreachable        1   SLURM does not answer; asking again later may help
├── LostLock           1   another controller has taken over the run; this one stops
├── UserError          2   the input is invalid: where, what is wrong, how to fix it
│   ├── DamagedFile    2   a file is truncated or altered; carries the path
│   └── NoSpace        2   the disk is full; the last good state is untouched
├── Diverged           3   training produced NaN or infinity; repeating it would too
└── Preempted         75   stopped at a step boundary after a checkpoint; can be resumed
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_LONGEST = 2_000
"""Maximum number of characters shown of a text that may come from a file."""


def printable(text: str) -> str:
    """Returns ``text`` as one line, with control characters escaped so that terminals do not interpret them."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in re.sub(r"\s*[\r\n]\s*", " ", text.strip()))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} … {shown[-_LONGEST // 2 :]}"


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error of another library says; its type if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class StackingError(Exception):
    """Base class of errors that are reported in one line, without a traceback."""

    exit_code = 1


class UserError(StackingError):
    """Reports invalid user input.

    Args:
        where: the file and, after a colon, the key or line: ``recipe.yaml: stages[1].layers``.
        problem: what is wrong with it.
        remedy: how to fix it.
    """

    exit_code = 2

    def __init__(self, where: str | Path, problem: str, remedy: str) -> None:
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(printable(f"{where}: {problem}; {remedy}"))


class DamagedFile(UserError):
    """Reports that a file which was once complete is truncated, missing or altered."""

    def __init__(self, path: Path, problem: str, remedy: str = "restore it or remove what it belongs to") -> None:
        self.path = path
        super().__init__(path, problem, remedy)


class NoSpace(UserError):
    """Reports that the disk holding ``path`` is full; names the file system and its free space."""

    def __init__(self, path: Path) -> None:
        problem = f"no space left on the device{_file_system(path)}"
        super().__init__(path, problem, "free some space and repeat it; what was complete is untouched")


def _file_system(path: Path) -> str:
    """Returns the mount point and free space of the file system that holds ``path``."""
    place = path.absolute()
    try:
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        while not place.is_mount():
            place = place.parent
    except OSError:
        return ""
    return f" (file system {place}, {free:,} bytes free)"


class StorageFailure(StackingError):
    """Reports that a file could not be read or written, for a reason that may be transient."""

    def __init__(self, path: str | Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; the file system failed, perhaps for a moment: try it again")


class Unreachable(StackingError):
    """Reports that SLURM did not answer, possibly only for a moment."""


class LostLock(StackingError):
    """Reports that another controller has taken over the run."""

    def __init__(self, lock: Path | None = None) -> None:
        where = "the run's lock" if lock is None else str(lock)
        super().__init__(f"{where}: another controller has taken the run over; this one has stopped")


class Diverged(StackingError):
    """Reports that training produced NaN or infinity, or cannot make another update; repeating it fails again."""

    exit_code = 3


class Preempted(StackingError):
    """Reports that training stopped on request at a step boundary, after writing a checkpoint."""

    exit_code = 75
