"""The folder of one run: where each thing lies, and the lock that keeps a second controller out."""

from __future__ import annotations

import fcntl
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stacking.errors import StackingError
from stacking.run.journal import Journal
from stacking.run.lease import Lease


class RunFolder:
    """Paths inside ``RUN/``; see the README for the layout."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.recipe = self.path / "recipe.yaml"
        self.plan = self.path / "plan.json"
        self.lock = self.path / "lock"
        self.export = self.path / "export"
        self.start = self.path / "start"
        self.report = self.path / "report.html"
        self.site = self.path / "site.yaml"
        self.scripts = self.path / "slurm"
        self.journal = Journal(self.path / "journal.jsonl")

    def samples(self, split: str) -> Path:
        """The sample index of ``split``: int64 rows that the samplers map into memory."""
        return self.path / f"samples.{split}.npy"

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.path / name)

    def remove_unfinished(self) -> None:
        """Remove what killed processes have left half-written; to be called by who holds the run, before anything runs.

        That of a checkpoint goes when the checkpoints are looked through (`checkpoints.newest_good`).
        """
        for pattern in (".*.partial", "*/.*.partial", "*/checkpoints/.*.partial"):
            for path in self.path.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, patience: float = 10.0) -> Iterator[Lease]:
        """Hold the run for one controller.

        Children inherit the lease's descriptor, so that the lock outlives a killed controller until its last rank is
        gone. Such a lock is waited for, ``patience`` seconds at most; so is one that another host holds, as a file
        server may notice only later that the host is dead.

        Raises:
            UserError: another controller holds the run.
        """
        lease = Lease(self.lock, patience)
        try:
            yield lease
        finally:
            lease.close()


class StageFolder:
    """Paths inside ``RUN/0-L3/`` and its like."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = path / "start"
        self.checkpoints = path / "checkpoints"
        self.state = path / "state"
        self.metrics = path / "metrics.jsonl"
        self.logs = path / "logs"


def command(name: str, run_dir: Path) -> str:
    """``stacking NAME RUN_DIR`` as it can be typed into a shell."""
    return f"stacking {name} {shlex.quote(str(run_dir))}"


def is_locked(lock: Path) -> bool:
    """Whether a live controller, or a rank that outlived it, holds the lock file."""
    try:
        with open(lock, "rb") as file:
            # Shared, so that two who look do not see each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise StackingError(f"{lock}: cannot be tested ({error.strerror})") from error
    return False
