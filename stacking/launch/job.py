"""Defines launchers, the jobs that they start and how those end."""

from __future__ import annotations

import os
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
    """DeepSpeed's name for the device type."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def variables(self, threads: int) -> dict[str, str]:
        """Returns the variables of every rank, which has ``threads`` threads unless OMP_NUM_THREADS is set."""
        return {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, threads))),
            "DS_ACCELERATOR": self.accelerator,
            "TOKENIZERS_PARALLELISM": "false",
        }

    def log(self, rank: int | str) -> Path:
        """Returns the log file of ``rank``, which may be a launcher's placeholder."""
        return self.logs / f"{self.name}.rank{rank}.log"

    @property
    def launcher_log(self) -> Path:
        """The output of srun or mpirun."""
        return self.logs / f"{self.name}.launcher.log"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Describes how a job ended."""

    exit_code: int
    """0, or the exit code of the rank that ended the job; negative: the signal that killed it."""
    rank: int | None = 0
    """The first rank that failed; None: the launcher itself failed."""
    host: str = ""
    """The host of that rank, if known."""
    log: Path | None = None
    """The log of that rank or of the launcher."""


@dataclass(frozen=True)
class Fate:
    """Tells what a scheduler does with the controller's job after a stop."""

    text: str = ""
    """For the user; empty without a scheduler."""
    restarts: bool = False
    """Whether the job starts again without intervention."""


class RunningJob(Protocol):
    """A running job."""

    def poll(self) -> Outcome | None:
        """Returns how the job ended; None while it runs."""

    def stop(self) -> None:
        """Asks every rank to write a checkpoint and exit (SIGTERM)."""

    def kill(self) -> None:
        """Kills every rank immediately (SIGKILL)."""


class Launcher(Protocol):
    """Starts jobs."""

    unattended: bool
    """Whether a scheduler runs the controller, so that no user is present to retry."""
    overlaps: bool
    """Whether a second job can start while one waits."""

    def capacity(self, accelerator: Accelerator) -> int | None:
        """Returns the maximum number of ranks for a job now; None: unlimited."""

    def start(self, job: Job, inherited: Sequence[int] = ()) -> RunningJob:
        """Starts ``job``; its processes inherit the open file descriptors ``inherited``."""

    def requeue(self) -> Fate:
        """Makes the scheduler start the controller again, unless it was cancelled; returns what will happen."""
