"""Starts ranks as child processes on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence

from stacking.errors import StackingError
from stacking.hardware.cores import usable_cores
from stacking.hardware.machine import find_machine
from stacking.launch.job import Accelerator, Fate, Job, Outcome
from stacking.launch.process import start_process


class Local:
    """Starts one process per rank with its own log file; the first rank that fails ends the others."""

    unattended = False
    overlaps = True

    def capacity(self, accelerator: Accelerator) -> int | None:
        return find_machine().accelerators if accelerator == "cuda" else None

    def requeue(self) -> Fate:
        return Fate()

    def start(self, job: Job, inherited: Sequence[int] = ()) -> LocalJob:
        port = _free_port()
        return LocalJob(job, [self._start_rank(job, rank, port, inherited) for rank in range(job.ranks)])

    @staticmethod
    def _start_rank(job: Job, rank: int, port: int, inherited: Sequence[int]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **rendezvous(job, rank, port), **job.environment}
        return start_process(job.argv, environment, job.log(rank), inherited, signal.SIGKILL)


def rendezvous(job: Job, rank: int, port: int) -> dict[str, str]:
    """Returns the variables with which ``torch.distributed`` and DeepSpeed find the ranks of ``job`` locally."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.ranks),
        "LOCAL_SIZE": str(job.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # Otherwise gloo resolves the host's own name, which fails in many containers.
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        **job.variables(threads=usable_cores() // job.ranks),
    }


class LocalJob:
    """Manages the processes of one job."""

    def __init__(self, job: Job, processes: list[subprocess.Popen[bytes]]) -> None:
        self.job, self.processes = job, processes

    def poll(self) -> Outcome | None:
        codes = [process.poll() for process in self.processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            rank = self._culprit(failed)
            self.kill()
            return Outcome(exit_code=self.processes[rank].returncode, rank=rank, log=self.job.log(rank))
        return Outcome(exit_code=0) if all(code == 0 for code in codes) else None

    def _culprit(self, failed: list[int]) -> int:
        """Picks from the ranks that failed between two polls one that was killed or reported an error of its own.

        The others usually failed because they lost a peer.
        """
        codes = {rank: self.processes[rank].returncode for rank in failed}
        return min(failed, key=lambda rank: (codes[rank] >= 0, codes[rank] == StackingError.exit_code, rank))

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
