"""Starts ranks with OpenMPI's `mpirun`, on this machine or on the hosts of a hostfile."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stacking.errors import UserError
from stacking.hardware.cores import usable_cores
from stacking.launch.job import Accelerator, Fate, Job, Outcome
from stacking.launch.local import Local, LocalJob
from stacking.launch.process import RankStarter, start_process

_RANK = "{rank}"
_EXPORTED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "CUDA_VISIBLE_DEVICES")
_EXPORTED_PREFIXES = ("STACKING_", "NCCL_", "GLOO_", "MASTER_", "OMP_", "DS_", "TORCH_", "HF_")


class Mpi:
    """Starts one mpirun per training phase; a phase with a single process runs on this machine without mpirun."""

    unattended = False
    overlaps = False

    def __init__(self, hostfile: Path | None = None) -> None:
        """Checks that mpirun and the hostfile exist.

        Raises:
            UserError: mpirun or the hostfile is missing.
        """
        if shutil.which("mpirun") is None:
            raise UserError("mpirun", "is not on this machine", "install OpenMPI, or use --launcher local")
        if hostfile is not None and not hostfile.is_file():
            raise UserError("--hostfile", f"{hostfile} is not a file", "give lines such as 'node1 slots=4'")
        self._hostfile = hostfile

    def capacity(self, accelerator: Accelerator) -> int | None:
        return None

    def requeue(self) -> Fate:
        return Fate()

    def start(self, job: Job, inherited: Sequence[int] = ()) -> MpiJob | LocalJob:
        if job.ranks == 1:
            return Local().start(job, inherited)
        variables = {**job.variables(threads=usable_cores() // job.ranks), "STACKING_RANK_LOG": str(job.log(_RANK))}
        environment = {**os.environ, **variables, **job.environment}
        argv = mpirun(job, self._hostfile, environment)
        process = start_process(argv, environment, job.launcher_log, inherited, signal.SIGTERM)
        return MpiJob(job, process)


def mpirun(job: Job, hostfile: Path | None, names: Iterable[str]) -> list[str]:
    """Returns the command that starts ``job`` and exports the relevant variables among ``names`` to all hosts."""
    exported = [name for name in names if name in _EXPORTED or name.startswith(_EXPORTED_PREFIXES)]
    return [
        "mpirun",
        *("-np", str(job.ranks)),
        *(["--hostfile", str(hostfile)] if hostfile else []),
        *("--bind-to", "none"),  # OMP_NUM_THREADS sets the cores per rank; binding to one core would waste the others
        *(word for name in sorted(exported) for word in ("-x", name)),
        *job.argv,
    ]


def log_to_file(environment: Mapping[str, str]) -> None:
    """Redirects a rank's output to its own log, because mpirun would interleave the ranks' output."""
    if "STACKING_RANK_LOG" in environment and "OMPI_COMM_WORLD_RANK" in environment:
        path = environment["STACKING_RANK_LOG"].replace(_RANK, environment["OMPI_COMM_WORLD_RANK"])
        with open(path, "ab") as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())


class MpiJob(RankStarter):
    """Manages the ranks of one mpirun."""

    patience = 30.0

    def poll(self) -> Outcome | None:
        code = self.process.poll()
        if code is None or code == 0:
            return None if code is None else Outcome(exit_code=0)
        return failure(self.job, code, self.job.launcher_log.read_text(encoding="utf-8", errors="replace"))


_EXITED = re.compile(r"Process name: \[\[\d+,\d+\],(\d+)\]\s+Exit code:\s+(\d+)")
_KILLED = re.compile(r"process rank (\d+) with PID \d+ on node (\S+) exited on signal (\d+)")


def failure(job: Job, code: int, said: str) -> Outcome:
    """Returns how a job ended, given mpirun's exit code and its output ``said``."""
    if killed := _KILLED.search(said):
        rank = int(killed.group(1))
        return Outcome(exit_code=-int(killed.group(3)), rank=rank, host=killed.group(2), log=job.log(rank))
    if exited := _EXITED.search(said):
        rank = int(exited.group(1))
        return Outcome(exit_code=int(exited.group(2)), rank=rank, log=job.log(rank))
    return Outcome(exit_code=code, rank=None, log=job.launcher_log)
