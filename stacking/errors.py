"""The exceptions that a user can meet, and the exit code that each one means.

StackingError          1   a failure; its message says what to look at
├── StorageFailure     1   a disk or file server failed, perhaps for a moment; resume tries again
├── LostLock           1   another controller has taken the run over; this one has stopped
├── UserError          2   the input is wrong: where, what is wrong, what would be right
│   ├── DamagedFile    2   a file is torn or altered; carries the path
│   └── NoSpace        2   the disk is full; the last good state is untouched
├── Diverged           3   training left the finite numbers; the same samples would do it again
└── Preempted         75   stopped at a step boundary with a checkpoint; resume goes on
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_LONGEST = 2_000
"""Characters that a line shows of a text which a file may have chosen."""


def printable(text: str) -> str:
    """``text`` in one line; control characters are escaped, so that no terminal obeys them."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in re.sub(r"\s*[\r\n]\s*", " ", text.strip()))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} … {shown[-_LONGEST // 2 :]}"


class StackingError(Exception):
    """Anything that this program reports in one line instead of a traceback."""

    exit_code = 1


class UserError(StackingError):
    """The user's input is wrong.

    Args:
        where: the file and, after a colon, the key or line: ``recipe.yaml: stages[1].layers``.
        problem: what is wrong with it.
        remedy: what would be right.
    """

    exit_code = 2

    def __init__(self, where: str | Path, problem: str, remedy: str) -> None:
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(printable(f"{where}: {problem}; {remedy}"))


class DamagedFile(UserError):
    """A file that was complete once is torn, missing or altered."""

    def __init__(self, path: Path, problem: str, remedy: str = "restore it or remove what it belongs to") -> None:
        self.path = path
        super().__init__(path, problem, remedy)


class NoSpace(UserError):
    """The disk under ``path`` is full; names the file system and what is left of it."""

    def __init__(self, path: Path) -> None:
        problem = f"no space left on the device{_file_system(path)}"
        super().__init__(path, problem, "free some space and repeat it; what was complete is untouched")


def _file_system(path: Path) -> str:
    """Where the file system that holds ``path`` is mounted, and how much of it is free."""
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
    """A file could not be read or written for a reason that is not the user's and may pass."""

    def __init__(self, path: str | Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; the file system failed, perhaps for a moment: try it again")


class LostLock(StackingError):
    """Another controller has taken the run over."""

    def __init__(self, lock: Path | None = None) -> None:
        where = "the run's lock" if lock is None else str(lock)
        super().__init__(f"{where}: another controller has taken the run over; this one has stopped")


class Diverged(StackingError):
    """Training produced NaN or infinity, or can make no further update. Repeating it gives the same result."""

    exit_code = 3


class Preempted(StackingError):
    """Training stopped on request at a step boundary, after a checkpoint."""

    exit_code = 75
