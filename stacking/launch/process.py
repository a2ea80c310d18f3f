"""Starts child processes that do not outlive the controller, and ends them with all of their descendants."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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


class Tail:
    """Reads what is appended to a log from now on, each line once; costs one ``stat`` while the log does not grow."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def text(self) -> str:
        """Returns the complete lines added since the last call."""
        if not self._path.exists() or self._path.stat().st_size <= self._offset:
            return ""
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", "replace")


class RankStarter:
    """Manages a program such as srun or mpirun that starts a job's ranks and ends after them."""

    def __init__(self, process: subprocess.Popen[bytes], patience: float) -> None:
        self.process, self._patience = process, patience

    def stop(self) -> None:
        """Sends SIGUSR1, which the program forwards to every rank; SIGTERM would make it end them."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Sends SIGTERM, which ends all ranks, and kills the program after ``patience`` seconds."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=self._patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Returns a preexec function that makes the child receive ``number`` when this process dies for any reason."""

    def ask() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)

    return ask
