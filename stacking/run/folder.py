"""Defines the layout of a run's folder, and the lock that admits one controller."""

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
from stacking.storage.os_errors import explained


class RunFolder:
    """Names the paths inside ``RUN/``; see the README for the layout."""

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
        self.amended = self.scripts / "recipe.yaml"
        self.journal = Journal(self.path / "journal.jsonl")

    def samples(self, split: str) -> Path:
        """Returns the path of the sample index of ``split``, an int64 array that the samplers memory-map."""
        return self.path / f"samples.{split}.npy"

    def stage(self, name: str) -> StageFolder:
        """Returns the folder of the stage called ``name``, such as ``0-L3``."""
        return StageFolder(self.path / name)

    def remove_unfinished(self) -> None:
        """Removes partial files of killed processes; the caller must hold the run's lock and call it before any phase.

        Partial checkpoints are removed by `checkpoints.newest_good`.
        """
        for pattern in (".*.partial", "*/.*.partial", "*/checkpoints/.*.partial"):
            for path in self.path.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, patience: float = 10.0) -> Iterator[Lease]:
        """Locks the run for one controller.

        Children inherit the lease's descriptor, so the lock outlives a killed controller until its last rank has
        ended. This method waits up to ``patience`` seconds for such a lock, and for one that another host holds,
        because a file server may detect a dead host late.

        Raises:
            UserError: another controller holds the run.
        """
        lease = Lease(self.lock, patience)
        try:
            yield lease
        finally:
            lease.close()


class StageFolder:
    """Names the paths inside a stage's folder, such as ``RUN/0-L3/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = path / "start"
        self.checkpoints = path / "checkpoints"
        self.state = path / "state"
        self.metrics = path / "metrics.jsonl"
        self.logs = path / "logs"

    def trial(self, operator: str) -> Path:
        """Returns the metrics of one candidate in a trial of growth operators."""
        return self.path / f"trial-{operator}.jsonl"

    def attention(self, moment: str) -> Path:
        """Returns the folder of a measurement of attention; see `stacking.run.phases.MOMENTS`."""
        return self.path / f"attention-{moment}"


def command(name: str, run_dir: Path) -> str:
    """Returns ``stacking NAME RUN_DIR`` as a shell command, for messages."""
    return f"stacking {name} {shlex.quote(str(run_dir))}"


def continuation(run: RunFolder) -> str:
    """Returns the command that continues the run: through SLURM if its jobs were submitted."""
    submitted = any(event["event"] == "submitted" for event in run.journal.events())
    return command("submit --resume" if submitted else "resume", run.path)


def is_locked(lock: Path) -> bool:
    """Returns whether a live controller, or a rank that outlived it, holds the lock file."""
    try:
        if not lock.is_file():  # opening a named pipe would wait for ever
            return False
        with open(lock, "rb") as file:
            # Shared, so that concurrent tests do not block each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        unexplained = StackingError(f"{lock}: cannot be tested ({error.strerror})")
        raise explained(error, lock) or unexplained from error
    return False
