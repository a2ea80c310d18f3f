"""What a launcher is asked to start, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Accelerator = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One phase of a run: the same command on ``ranks`` processes."""

    name: str
    """Names the log files: ``train-2`` gives ``train-2.rank0.log``."""
    argv: Sequence[str]
    ranks: int
    logs: Path
    accelerator: Accelerator = "cpu"
    """DeepSpeed's name of the device."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def log(self, rank: int | str) -> Path:
        """The log of ``rank``, which may be a launcher's placeholder for it."""
        return self.logs / f"{self.name}.rank{rank}.log"

    @property
    def launcher_log(self) -> Path:
        """What srun or mpirun says."""
        return self.logs / f"{self.name}.launcher.log"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    exit_code: int
    """0; or the code of the rank that ended the job (negative: the signal that killed it)."""
    rank: int | None = 0
    """The first rank that ended the job; None: the launcher itself did."""
    host: str = ""
    """Where that rank ran, if it is known."""
    log: Path | None = None
    """That rank's log, or the launcher's."""


class RunningJob(Protocol):
    """A job that was started."""

    def poll(self) -> Outcome | None:
        """``None`` while it runs."""

    def stop(self) -> None:
        """Ask every rank to checkpoint and leave (SIGTERM)."""

    def kill(self) -> None:
        """End every rank now (SIGKILL)."""


class Launcher(Protocol):
    """A way to start jobs."""

    unattended: bool
    """Whether a scheduler runs the controller, so that nobody is there to try again by hand."""

    def capacity(self, accelerator: Accelerator) -> int | None:
        """How many ranks a job may have now; None: as many as it likes."""

    def start(self, job: Job, inherited: Sequence[int] = ()) -> RunningJob:
        """Start ``job``; its processes keep the file descriptors ``inherited`` open."""

    def requeue(self) -> str:
        """Let the scheduler start the controller again later; says what will happen, or nothing without a scheduler."""
