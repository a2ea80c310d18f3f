"""Starts child processes that do not outlive the controller, and ends them with all of their descendants."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stacking.launch.job import Job
from stacking.storage.os_errors import disk_errors

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start_process(
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    inherited: Sequence[int],
    on_parent_death: signal.Signals,
) -> subprocess.Popen[bytes]:
    """Starts a program that writes to ``log``, inherits the descriptors ``inherited`` and dies with the controller.

    Args:
        on_parent_death: the signal that the program gets when the controller dies for any reason.
    """
    with disk_errors(log.parent):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = open(log, "ab")  # noqa: SIM115 - closed below
    with file:
        return subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=inherited,
            # A separate session, so that Ctrl-C reaches only the controller, which then requests a checkpoint.
            start_new_session=True,
            preexec_fn=die_with_parent(on_parent_death),
        )


class RankStarter:
    """Manages a program such as srun or mpirun that starts a job's ranks and ends after them."""

    patience = 60.0
    """Seconds that the program may take to end the ranks."""

    def __init__(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        self.job, self.process = job, process

    def stop(self) -> None:
        """Sends SIGUSR1, which the program forwards to every rank; SIGTERM would make it end them."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Sends SIGTERM, which ends all ranks, and kills the program after ``patience`` seconds."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=self.patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Returns a preexec function that makes the child receive ``number`` when this process dies for any reason."""

    def ask() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)

    return ask
