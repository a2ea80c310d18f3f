"""The exceptions that a user can meet, and the exit code that each one means.

StackingError          1   a failure; its message says what to look at
├── UserError          2   the input is wrong: where, what is wrong, what would be right
│   ├── DamagedFile    2   a file is torn or altered; carries the path
│   └── NoSpace        2   the disk is full; the last good state is untouched
├── Diverged           3   training left the finite numbers; the same samples would do it again
└── Preempted         75   stopped at a step boundary with a checkpoint; resume goes on
"""

from __future__ import annotations

from pathlib import Path


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
        super().__init__(" ".join(f"{where}: {problem}; {remedy}".split()))


class DamagedFile(UserError):
    """A file that was complete once is torn, missing or altered."""

    def __init__(self, path: Path, problem: str, remedy: str = "restore it or remove what it belongs to") -> None:
        self.path = path
        super().__init__(path, problem, remedy)


class NoSpace(UserError):
    """The disk under ``path`` is full."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, "no space left on the device", "free some space and repeat it; what was complete is untouched"
        )


class Diverged(StackingError):
    """Training produced NaN or infinity, or can make no further update. Repeating it gives the same result."""

    exit_code = 3


class Preempted(StackingError):
    """Training stopped on request at a step boundary, after a checkpoint."""

    exit_code = 75
