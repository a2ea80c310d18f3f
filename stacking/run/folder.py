"""The folder of one run: where each thing lies, and the lock that keeps a second controller out."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stacking.errors import StackingError, UserError
from stacking.run.journal import Journal
from stacking.storage.files import disk_errors


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

    @contextmanager
    def locked(self, patience: float = 10.0) -> Iterator[int]:
        """Hold the run for one controller; yields the lock's file descriptor.

        Children inherit the descriptor, so that the lock outlives a killed controller until its last rank is gone.
        Such a lock is waited for, ``patience`` seconds at most; so is one that another host holds, as a file server
        may notice only later that the host is dead.

        Raises:
            UserError: another controller holds the run.
        """
        with disk_errors(self.path):
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(descriptor, patience)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = self._holder()
                if time.monotonic() > deadline or _alive_here(holder):
                    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
                    raise UserError(
                        self.path, f"is in use by {who}", "wait for it, stop it, or choose another folder"
                    ) from None
                time.sleep(0.1)

    def _holder(self) -> dict[str, object]:
        try:
            holder: dict[str, object] = json.loads(self.lock.read_text())
            return holder
        except ValueError:
            return {}


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


def _alive_here(holder: dict[str, object]) -> bool:
    return holder.get("host") == socket.gethostname() and Path(f"/proc/{holder['pid']}").exists()


def is_locked(lock: Path) -> bool:
    """Whether a live controller, or a rank that outlived it, holds the lock file."""
    try:
        with open(lock, "rb") as file:
            # Shared, so that two who look do not see each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise StackingError(f"{lock}: cannot be tested ({error.strerror})") from error
    return False
