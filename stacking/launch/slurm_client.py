"""The only place that calls Slurm's client programs: sbatch, squeue, sacct, scancel, scontrol."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stacking.errors import StackingError, UserError

_FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "PMI_", "PMIX_", "OMPI_", "PRTE_")
_KEPT = ("SLURM_CONF",)
_TIMEOUT = 120
"""Seconds; a busy slurmctld answers late, a dead one never."""
_UNREACHABLE = (
    *("Unable to contact", "Socket timed out", "Connection refused", "Zero Bytes were transmitted"),
    *("Could not establish a configuration source", "Unable to process configuration file"),
)
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_AT_WORK = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
LIVE = (*_WAITING, *_AT_WORK)
HELD = "JobHeldUser"
"""The reason of a job that `submit` has not released yet, or that a user holds."""
NEVER = "DependencyNeverSatisfied"
"""The reason of a job whose predecessor failed."""
# The working directory comes last because only it may hold a bar.
_START = re.compile(r"to start at (\S+)")
_SQUEUE = "%A|%T|%P|%N|%M|%S|%r|%j|%Z"
_SACCT = "JobIDRaw,State,Partition,NodeList,Elapsed,Start,Reason,JobName,WorkDir"


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What Slurm says about one job."""

    id: int
    state: str
    """Slurm's long name: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, …"""
    partition: str = ""
    nodes: str = ""
    """Compressed, as in ``n[1-2]``; empty while it waits."""
    elapsed: str = ""
    start: str | None = None
    """When it began or, as far as Slurm can tell, will begin; ISO 8601."""
    reason: str | None = None
    """Why it waits, or what ended it."""
    name: str = ""
    folder: Path | None = None
    """Where it works."""

    @property
    def is_live(self) -> bool:
        """Whether it waits or works: it may still run without anybody's doing."""
        return self.state in LIVE

    @property
    def is_waiting(self) -> bool:
        return self.state in _WAITING


def require() -> None:
    """Make sure that this machine can submit.

    Raises:
        UserError: Slurm's programs are not here.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch", "is not on this machine", "do this on a login node, or look with --dry-run")


def submit_argv(script: Path, folder: Path, after: object = None) -> list[str]:
    """The command that submits ``script`` to work in ``folder`` once job ``after`` has succeeded.

    It is submitted held, so that it cannot start before the run's journal knows its id.
    """
    dependency = [] if after is None else [f"--dependency=afterok:{after}"]
    return ["sbatch", "--parsable", "--hold", f"--chdir={folder}", *dependency, str(script)]


def submit(script: Path, folder: Path, after: int | None = None) -> int:
    """Submit a script, held; returns the job's id.

    Raises:
        UserError: Slurm refuses it; says why.
        StackingError: Slurm does not answer.
    """
    answer = _run(submit_argv(script, folder, after), refused=str(script))
    number = answer.strip().rpartition("\n")[2].split(";")[0]
    if not number.isdigit():
        raise StackingError(f"sbatch answered {answer.strip()!r} where the id of a job was expected")
    return int(number)


def check(script: Path, folder: Path) -> str | None:
    """Ask SLURM whether it would take ``script``; returns when it would start, as ISO 8601, if SLURM can tell.

    ``sbatch --hold`` checks neither cores nor memory nor nodes: a job that no node can run would wait for ever.

    Raises:
        UserError: SLURM refuses it; says why.
        StackingError: SLURM does not answer.
    """
    said = _run(["sbatch", "--test-only", f"--chdir={folder}", str(script)], refused=str(script), errors=True)
    found = _START.search(said)
    return found.group(1) if found else None


def release(ids: Iterable[int]) -> None:
    """Let held jobs start."""
    listed = ",".join(map(str, ids))
    if listed:
        _run(["scontrol", "release", listed], refused=f"jobs {listed}")


def cancel(ids: Iterable[int]) -> None:
    """End jobs: running ones get SIGTERM first, and KillWait later SIGKILL."""
    listed = [str(job) for job in ids]
    if listed:
        _run(["scancel", "--quiet", *listed], refused=f"jobs {', '.join(listed)}")


def requeue(job: int) -> None:
    """Put a job of ours back into the queue under its own id; one that is at work is ended."""
    _run(["scontrol", "requeue", str(job)], refused=f"job {job}")


def jobs(ids: Sequence[int]) -> dict[int, SlurmJob]:
    """What Slurm knows of these jobs: from the queue, and of those that left it from the accounting, if there is any.

    Raises:
        StackingError: Slurm does not answer.
    """
    if not ids:
        return {}
    found = _queue(["--jobs", ",".join(map(str, ids))])
    missing = [job for job in ids if job not in found]
    return {**found, **_accounting(missing)} if missing else found


def jobs_in(folder: Path) -> dict[int, SlurmJob]:
    """This user's jobs in the queue that work in ``folder``."""
    found = _queue(["--user", str(os.getuid())])
    return {job.id: job for job in found.values() if job.folder == folder and job.is_live}


def _queue(selection: Sequence[str]) -> dict[int, SlurmJob]:
    argv = ["squeue", "--noheader", "--states=all", f"--format={_SQUEUE}", *selection]
    try:
        return _parse(_run(argv, refused="squeue"))
    except UserError as error:
        if "Invalid job id" in error.problem:  # none of them is in the queue any more
            return {}
        raise


def _accounting(ids: Sequence[int]) -> dict[int, SlurmJob]:
    listed = ",".join(map(str, ids))
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={_SACCT}", "--jobs", listed]
    try:
        return _parse(_run(argv, refused="sacct"))
    except StackingError:  # many a site keeps no accounting, or not for everybody
        return {}


def _parse(text: str) -> dict[int, SlurmJob]:
    found = {}
    for line in text.splitlines():
        number, state, partition, nodes, elapsed, start, reason, name, folder = line.split("|", 8)
        found[int(number)] = SlurmJob(
            id=int(number),
            state=state.split()[0],  # "CANCELLED by 1000"
            partition=partition,
            nodes="" if nodes in ("None assigned", "(null)") else nodes,
            elapsed=elapsed,
            start=None if start in ("N/A", "Unknown", "None") else start,
            reason=None if reason in ("None", "") else reason,
            name=name,
            folder=Path(folder),
        )
    return found


def _run(argv: Sequence[str], refused: str, errors: bool = False) -> str:
    """The program's standard output; with ``errors`` its standard error, where `sbatch --test-only` answers.

    Raises:
        UserError: the program is not there, or says no to ``refused``.
        StackingError: Slurm does not answer.
    """
    program = argv[0]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT, env=_environment(os.environ))
    except FileNotFoundError:
        raise UserError(program, "is not on this machine", "do this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise StackingError(f"{program} did not answer for {_TIMEOUT} s") from None
    if done.returncode == 0:
        return done.stderr if errors else done.stdout
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    words = "; ".join(line.removeprefix(f"{program}: ").removeprefix("error: ") for line in said)
    if any(sign in words for sign in _UNREACHABLE):
        raise StackingError(f"{program}: {words}")
    raise UserError(refused, f"{program} says: {words}", "correct the site file, or ask the cluster's operators")


def _environment(submitter: Mapping[str, str]) -> dict[str, str]:
    """The submitter's environment without what a job around it, or around its shell, has left there.

    A job takes its environment from here, and sbatch takes ``SBATCH_*`` and ``SLURM_MEM_PER_CPU`` for options.
    """
    return {name: value for name, value in submitter.items() if name in _KEPT or not name.startswith(_FOREIGN)}
