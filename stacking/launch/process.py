"""Child processes of a controller: started so that none outlives it, and ended with all that they started."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start_process(
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    inherited: Sequence[int],
    on_parent_death: signal.Signals,
) -> subprocess.Popen[bytes]:
    """Start a program that writes to ``log``, keeps the descriptors ``inherited`` open and dies with the controller.

    Args:
        on_parent_death: the signal that it gets when the controller dies, however that dies.
    """
    with open(log, "ab") as file:
        return subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=inherited,
            # A session of its own, so that Ctrl-C reaches the controller alone, which then asks for a checkpoint.
            start_new_session=True,
            preexec_fn=die_with_parent(on_parent_death),
        )


class RankStarter:
    """A program such as srun or mpirun that has started the ranks of a job and ends when they have."""

    def __init__(self, process: subprocess.Popen[bytes], patience: float) -> None:
        self.process, self._patience = process, patience

    def stop(self) -> None:
        """SIGUSR1, which it hands to every rank; SIGTERM would make it end them."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """SIGTERM makes it end all ranks and wait for them; after ``patience`` seconds it is killed itself."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=self._patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """What a child does before exec, so that it gets the signal ``number`` when this process dies, however."""

    def ask() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)

    return ask
