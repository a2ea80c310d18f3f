"""What a launcher is asked to start, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Job:
    """One phase of a run: the same command on ``ranks`` processes."""

    name: str
    """Names the log files: ``train-2`` gives ``train-2.rank0.log``."""
    argv: Sequence[str]
    ranks: int
    logs: Path
    accelerator: str = "cpu"
    """DeepSpeed's name of the device: ``cpu`` or ``cuda``."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def log(self, rank: int) -> Path:
        return self.logs / f"{self.name}.rank{rank}.log"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    exit_code: int
    """0; or the code of the rank that ended the job (negative: the signal that killed it)."""
    rank: int = 0
    """The first rank that ended the job."""
    log: Path | None = None
    """That rank's log."""


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

    def start(self, job: Job, inherited: Sequence[int] = ()) -> RunningJob:
        """Start ``job``; its processes keep the file descriptors ``inherited`` open."""
