"""Starts ranks with `srun`, as the tasks of a job step on the nodes of the controller's SLURM job."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from stacking.errors import StackingError, Unreachable, UserError
from stacking.launch import slurm_client
from stacking.launch.job import Accelerator, Fate, Job, Outcome
from stacking.launch.process import RankStarter, die_with_parent, start_process
from stacking.launch.rendezvous import expand_counts

_OF_ONE_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
_GRACE = 10.0
"""Seconds that the other ranks get to log their errors after a rank has failed."""
_PATIENCE = 600.0
"""Seconds to wait for a slurmctld that is away, before a step starts and before the job is requeued."""


@dataclass(frozen=True)
class Allocation:
    """Describes the allocation of the SLURM job that the controller runs in."""

    job: int
    nodes: int
    cores: int
    """Cores of the node with the fewest."""
    gpus: int
    """GPUs of the first node; the others are assumed to have as many."""
    tasks: int | None
    """Tasks per node as requested by the job's script; None: not requested."""
    restarts: int = 0
    """How often the job was requeued before."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Allocation:
        """Reads the allocation from the variables of a batch script.

        Raises:
            UserError: this process does not run in a SLURM job.
        """
        if "SLURM_JOB_ID" not in environment:
            raise UserError("--launcher slurm", "works only inside a SLURM job", "use `stacking submit`, or salloc")
        tasks = environment.get("STACKING_RANKS_PER_NODE") or environment.get("SLURM_NTASKS_PER_NODE")
        return cls(
            job=int(environment["SLURM_JOB_ID"]),
            nodes=int(environment.get("SLURM_JOB_NUM_NODES", 1)),
            cores=min(expand_counts(environment.get("SLURM_JOB_CPUS_PER_NODE", "1"))),
            gpus=int(environment.get("SLURM_GPUS_ON_NODE", 0)),
            tasks=int(tasks) if tasks else None,
            restarts=int(environment.get("SLURM_RESTART_COUNT", 0)),
        )

    def tasks_per_node(self, ranks: int, accelerator: Accelerator) -> int:
        """Returns one task per GPU or per task that the script requests, otherwise distributes ``ranks`` evenly."""
        slots = self.gpus if accelerator == "cuda" else self.tasks
        return min(ranks, slots or -(-ranks // self.nodes))


class Slurm:
    """Starts one job step per phase, with one task per rank that srun starts directly."""

    unattended = True

    def __init__(self) -> None:
        self._allocation = Allocation.of(os.environ)
        self.overlaps = slurm_client.steps_can_overlap()
        die_with_parent(signal.SIGTERM)()  # without its batch shell, a controller would train on others' nodes

    def capacity(self, accelerator: Accelerator) -> int | None:
        slots = self._allocation.gpus if accelerator == "cuda" else self._allocation.tasks
        return self._allocation.nodes * slots if slots else None

    def start(self, job: Job, inherited: Sequence[int] = ()) -> Step:
        with suppress(StackingError):  # srun then fails and says so
            slurm_client.patiently(lambda: slurm_client.standing(self._allocation.job), _PATIENCE)
        argv = srun(job, self._allocation, os.environ, self.overlaps)
        variables = {**job.variables(_cores_per_task(self._allocation, job)), "PYTHONUNBUFFERED": "1"}
        environment = {**inherited_by_ranks(os.environ), **variables, **job.environment}
        said_before = job.launcher_log.stat().st_size if job.launcher_log.exists() else 0
        process = start_process(argv, environment, job.launcher_log, inherited, signal.SIGTERM)
        return Step(job, process, said_before)

    def requeue(self) -> Fate:
        """Requeues this job under its own id, unless SLURM is doing so already or a user cancelled it."""
        try:
            return slurm_client.patiently(self._requeue, _PATIENCE)
        except UserError as error:
            return Fate(f"job {self._allocation.job} is not requeued ({error.problem})")
        except Unreachable as error:
            return Fate(f"it is not known whether SLURM starts job {self._allocation.job} again ({error})")

    def _requeue(self) -> Fate:
        job = self._allocation.job
        state, restarts = slurm_client.standing(job)
        if restarts > self._allocation.restarts:
            return Fate(f"SLURM has requeued job {job} and will start it again", restarts=True)
        if state == "RUNNING" and os.environ.get("STACKING_NO_REQUEUE"):
            return Fate(f"the script of job {job} submits the rest of the chain again", restarts=True)
        if state == "RUNNING":
            slurm_client.requeue(job)
            return Fate(f"job {job} is requeued and will start again", restarts=True)
        return Fate(f"job {job} was cancelled and will not start again")


def allocation_facts(environment: Mapping[str, str]) -> dict[str, int]:
    """Returns this process's SLURM job and its number of nodes, for the journal; empty outside of SLURM."""
    job = slurm_client.own_job(environment)
    return {} if job is None else {"job": job, "nodes": int(environment.get("SLURM_JOB_NUM_NODES", 1))}


def inherited_by_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the job's environment without variables that would give all ranks the same number.

    It also lacks the variable for ``--cpus-per-gpu``, which srun reads and which contradicts the launcher's options.
    """
    found = [name for name in _OF_ONE_RANK if name in environment]
    if found:
        print(f"stacking: {', '.join(found)}: ignored, since the launcher numbers the ranks", file=sys.stderr)
    return {name: value for name, value in environment.items() if name not in (*_OF_ONE_RANK, "SLURM_CPUS_PER_GPU")}


def srun(job: Job, allocation: Allocation, environment: Mapping[str, str], overlap: bool = False) -> list[str]:
    """Returns the command that starts ``job``; the site's options and container come from ``environment``.

    Args:
        overlap: share the cores and GPUs with other steps; otherwise the step would wait for them.
    """
    per_node = allocation.tasks_per_node(job.ranks, job.accelerator)
    nodes = -(-job.ranks // per_node)
    return [
        "srun",
        "--export=ALL",  # otherwise a job submitted with --export=NONE would start its ranks without a PATH
        f"--job-name={job.name}",
        f"--nodes={nodes}",
        f"--ntasks={job.ranks}",
        f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={_cores_per_task(allocation, job)}",
        *(["--overcommit"] if per_node > allocation.cores else []),
        "--distribution=block",
        "--cpu-bind=cores",
        *(["--overlap"] if overlap else []),
        "--kill-on-bad-exit=1",
        f"--output={job.log('%t')}",
        f"--error={job.log('%t')}",
        "--open-mode=append",
        *_words(environment, "srun"),
        *_words(environment, "container"),
        environment.get("STACKING_CONTAINER_PYTHON", job.argv[0]),
        *job.argv[1:],
    ]


def _words(environment: Mapping[str, str], key: str) -> list[str]:
    """Returns the words of a key of the site file, with ``$NAMES`` expanded.

    Raises:
        UserError: a variable is not set in the job.
    """

    def value(found: re.Match[str]) -> str:
        name = found.group(1) or found.group(2)
        if name not in environment:
            raise UserError(f"site file: {key}", f"has ${name}, which is not set in the job", "set it in the prelude")
        return environment[name]

    words = shlex.split(environment.get(f"STACKING_{key.upper()}", ""))
    return [re.sub(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", value, word) for word in words]


class Step(RankStarter):
    """Manages a job step through its srun."""

    def __init__(self, job: Job, process: subprocess.Popen[bytes], said_before: int) -> None:
        super().__init__(job, process)
        self._said_before = said_before
        self._first: Outcome | None = None
        self._deadline = 0.0

    def poll(self) -> Outcome | None:
        code = self.process.poll()
        if self._first is None:
            self._first = first_failure(self.job, self._said())
            self._deadline = time.monotonic() + _GRACE
        if code is None:
            if self._first is not None and time.monotonic() > self._deadline:
                self.process.terminate()
                self._deadline = float("inf")
            return None
        if code == 0:
            return Outcome(exit_code=0)
        return self._first or Outcome(exit_code=_as_signal(code), rank=None, log=self.job.launcher_log)

    def _said(self) -> str:
        """Returns the complete lines that this srun has added to its log."""
        content = self.job.launcher_log.read_bytes()[self._said_before :]
        return content[: content.rfind(b"\n") + 1].decode("utf-8", "replace")


_FAILED = re.compile(r"^srun: error: (\S+): tasks? (\d+)[\d,-]*: (.+)$", re.MULTILINE)
_EXITED = re.compile(r"Exited with exit code (\d+)")
_SIGNALS = {signal.strsignal(number): number for number in signal.valid_signals()}


def first_failure(job: Job, said: str) -> Outcome | None:
    """Returns the first failure that srun reports, such as ``srun: error: n2: task 1: Exited with exit code 3``."""
    found = _FAILED.search(said)
    if found is None:
        return None
    host, rank, ending = found.groups()
    if exited := _EXITED.match(ending):
        code = _as_signal(int(exited.group(1)))
    else:
        code = -_SIGNALS.get(ending.removesuffix(" (core dumped)"), signal.SIGKILL)
    return Outcome(exit_code=code, rank=int(rank), host=host, log=job.log(rank))


def _as_signal(code: int) -> int:
    """Converts a shell's ``128 + signal`` to ``-signal``."""
    return 128 - code if 128 < code < 128 + signal.NSIG else code


def _cores_per_task(allocation: Allocation, job: Job) -> int:
    return max(1, allocation.cores // allocation.tasks_per_node(job.ranks, job.accelerator))
