"""Calls SLURM's client programs: sbatch, squeue, sacct, scancel, scontrol. No other module does."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from stacking.errors import StackingError, Unreachable, UserError

_LOG = logging.getLogger(__name__)
_FOREIGN = (
    *("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_"),
    *("PMI_", "PMIX_", "OMPI_", "PRTE_", "HYDRA_", "HYDI_", "MPI_LOCAL", "MV2_COMM_"),
)
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
_TIMEOUT = 120
"""Seconds; a busy slurmctld answers late, a dead one never."""
_UNREACHABLE = (
    *("Unable to contact", "Socket timed out", "Connection refused", "Zero Bytes were transmitted"),
    *("Could not establish a configuration source", "Unable to process configuration file"),
    "Unexpected message received",  # what `scontrol requeue` says while slurmctld is away
)
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between two calls of a SLURM that does not answer; the last pause repeats."""
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_AT_WORK = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
_Answer = TypeVar("_Answer")
LIVE = (*_WAITING, *_AT_WORK)
HELD = "JobHeldUser"
"""Pending reason of a job that `submit` has not released yet, or that a user holds."""
NEVER = "DependencyNeverSatisfied"
"""Pending reason of a job whose predecessor failed."""
# The working directory comes last because only it may hold a bar.
_START = re.compile(r"to start at (\S+)")
_SQUEUE = "%A|%T|%P|%N|%M|%S|%r|%j|%Z"
_SACCT = "JobIDRaw,State,Partition,NodeList,Elapsed,Start,Reason,JobName,WorkDir"


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """Describes one job as reported by SLURM."""

    id: int
    state: str
    """SLURM's long name: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, …"""
    partition: str = ""
    nodes: str = ""
    """Compressed, as in ``n[1-2]``; empty while it waits."""
    elapsed: str = ""
    start: str | None = None
    """Actual or expected start time, ISO 8601."""
    reason: str | None = None
    """Why the job is pending, or why it ended."""
    name: str = ""
    folder: Path | None = None
    """The job's working directory."""

    @property
    def is_live(self) -> bool:
        """Whether the job is pending or running, so that it may still run without intervention."""
        return self.state in LIVE

    @property
    def is_waiting(self) -> bool:
        """Whether the job is in the queue and has not started."""
        return self.state in _WAITING


def require() -> None:
    """Checks that this machine can submit jobs.

    Raises:
        UserError: SLURM's client programs are not installed here.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch", "is not on this machine", "run this on a login node, or preview with --dry-run")


def own_job(environment: Mapping[str, str] = os.environ) -> int | None:
    """Returns the id of the SLURM job that this process runs in."""
    own = environment.get("SLURM_JOB_ID", "")
    return int(own) if own.isdigit() else None


def submit_argv(script: Path, folder: Path, after: str | None = None, hold: bool = True) -> list[str]:
    """Returns the command that submits ``script`` to run in ``folder`` after a dependency such as ``afterok:11``.

    Args:
        hold: the job cannot start before it is released, when the run's journal records its id.
    """
    options = (["--hold"] if hold else []) + [f"--chdir={folder}"] + ([f"--dependency={after}"] if after else [])
    return ["sbatch", "--parsable", *options, str(script)]


def submit(script: Path, folder: Path, after: str | None = None, hold: bool = True) -> int:
    """Submits a script and returns the job's id; arguments as in `submit_argv`.

    Raises:
        UserError: SLURM rejects the job; the message says why.
        StackingError: SLURM does not answer.
    """
    answer = _run(submit_argv(script, folder, after, hold), refused=str(script))
    number = answer.strip().rpartition("\n")[2].split(";")[0]
    if not number.isdigit():
        raise StackingError(f"sbatch answered {answer.strip()!r} where the id of a job was expected")
    return int(number)


def check(script: Path, folder: Path) -> str | None:
    """Validates ``script`` with SLURM; returns its expected start time in ISO 8601, if SLURM reports one.

    ``sbatch --hold`` checks neither cores nor memory nor nodes, so a job that no node can run would stay pending.

    Raises:
        UserError: SLURM rejects the job; the message says why.
        StackingError: SLURM does not answer.
    """
    said = _run(["sbatch", "--test-only", f"--chdir={folder}", str(script)], refused=str(script), errors=True)
    found = _START.search(said)
    return found.group(1) if found and _is_soon(found.group(1)) else None


def _is_soon(start: str) -> bool:
    """Returns whether a start is a prediction: behind jobs without a time limit, SLURM names one years ahead."""
    return datetime.fromisoformat(start) < datetime.now() + timedelta(days=300)


def default_hours(partition: str | None) -> float | None:
    """Returns the time limit of jobs in ``partition`` that request none; None: unlimited, or unknown.

    Args:
        partition: None is the cluster's default.
    """
    for line in _run(["sinfo", "--noheader", "--format=%P|%L|%l"], refused="sinfo").splitlines():
        name, default, longest = line.strip().split("|")
        if name == f"{partition}*" or name == partition or (partition is None and name.endswith("*")):
            return _hours(default) or _hours(longest)
    return None


def _hours(text: str) -> float | None:
    """Parses ``days-hours:minutes:seconds``, of which SLURM leaves out leading parts."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    return days * 24 + hours + minutes / 60 + seconds / 3600 or None


def release(ids: Iterable[int | None]) -> None:
    """Releases held jobs."""
    listed = ",".join(map(str, ids))
    if listed:
        _run(["scontrol", "release", listed], refused=f"jobs {listed}")


def cancel(ids: Iterable[int]) -> None:
    """Cancels jobs: running ones get SIGTERM first, and SIGKILL after KillWait."""
    listed = [str(job) for job in ids]
    if listed:
        _run(["scancel", "--quiet", *listed], refused=f"jobs {', '.join(listed)}")


def requeue(job: int) -> None:
    """Requeues a job under its own id; a running job is ended first."""
    _run(["scontrol", "requeue", str(job)], refused=f"job {job}")


def standing(job: int) -> tuple[str, int]:
    """Returns the state of a job in the queue and how often it was requeued, including a requeue that ends it now.

    Raises:
        UserError: SLURM does not know the job.
        Unreachable: SLURM does not answer.
    """
    argv = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--Format=State:30,RestartCnt:10"]
    words = _run(argv, refused=f"job {job}").split()
    if len(words) < 2 or not words[1].isdigit():
        raise UserError(f"job {job}", "is not in the queue", "submit it again")
    return words[0], int(words[1])


def steps_can_overlap() -> bool:
    """Returns whether job steps can share their cores: srun has ``--overlap`` since SLURM 20.11, and needs it since."""
    try:
        found = re.search(r"(\d+)\.(\d+)", _run(["srun", "--version"], "srun --version"))
    except StackingError:
        return False
    return found is not None and (int(found[1]), int(found[2])) >= (20, 11)


def patiently(ask: Callable[[], _Answer], patience: float) -> _Answer:
    """Calls ``ask`` until SLURM answers, for at most ``patience`` seconds after the first refusal.

    Raises:
        Unreachable: SLURM did not answer in that time.
    """
    deadline, pauses = None, iter(_PAUSES)
    while True:
        try:
            return ask()
        except Unreachable:
            now = time.monotonic()
            deadline = now + patience if deadline is None else deadline
            if now > deadline:
                raise
            time.sleep(min(next(pauses, _PAUSES[-1]), max(0.0, deadline - now)))


def jobs(ids: Sequence[int]) -> dict[int, SlurmJob]:
    """Returns what SLURM knows of these jobs: from the queue, and for jobs that left it from accounting, if available.

    Raises:
        StackingError: SLURM does not answer.
    """
    if not ids:
        return {}
    found = _queue(["--jobs", ",".join(map(str, ids))])
    missing = [job for job in ids if job not in found]
    return {**found, **_accounting(missing)} if missing else found


def jobs_in(folder: Path) -> dict[int, SlurmJob]:
    """Returns this user's live jobs whose working directory is ``folder``."""
    found = _queue(["--user", str(os.getuid())])
    return {job.id: job for job in found.values() if job.folder == folder and job.is_live}


def _queue(selection: Sequence[str]) -> dict[int, SlurmJob]:
    argv = ["squeue", "--noheader", "--states=all", f"--format={_SQUEUE}", *selection]
    try:
        return _parse(_run(argv, refused="squeue"))
    except UserError as error:
        if "Invalid job id" in error.problem:  # none of them is in the queue anymore
            return {}
        raise


def _accounting(ids: Sequence[int]) -> dict[int, SlurmJob]:
    listed = ",".join(map(str, ids))
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={_SACCT}", "--jobs", listed]
    try:
        return _parse(_run(argv, refused="sacct"))
    except StackingError:  # some sites keep no accounting, or restrict access to it
        return {}


def node_hours(ids: Sequence[int], since: float) -> float | None:
    """Returns the node-hours of these jobs, including those before a requeue; None without accounting.

    Args:
        since: the unix time of the first submission; SLURM may have given the same ids to earlier jobs.
    """
    start = f"--starttime={datetime.fromtimestamp(since):%Y-%m-%dT%H:%M:%S}"
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", start]
    argv += ["--format=NNodes,ElapsedRaw", "--jobs", ",".join(map(str, ids))]
    try:
        lines = _run(argv, refused="sacct").splitlines()
    except StackingError:
        return None
    rows = [line.split("|") for line in lines if line and not line.startswith("CLUSTER:")]
    return sum(int(nodes) * int(seconds) for nodes, seconds in rows) / 3600 if rows else None


def _parse(text: str) -> dict[int, SlurmJob]:
    found = {}
    for line in text.splitlines():
        if line.startswith("CLUSTER:"):  # with SLURM_CLUSTERS
            continue
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
    """Runs a program and returns its standard output, or with ``errors`` its standard error (`sbatch --test-only`).

    Raises:
        UserError: the program is missing, or rejects ``refused``.
        StackingError: SLURM does not answer.
    """
    program = argv[0]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT, env=_environment(os.environ))
    except FileNotFoundError:
        raise UserError(program, "is not on this machine", "run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{program} did not answer for {_TIMEOUT} s") from None
    _LOG.debug("%s: exit code %d: %s", shlex.join(argv), done.returncode, (done.stdout + done.stderr).strip())
    if done.returncode == 0:
        return done.stderr if errors else done.stdout
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    words = "; ".join(line.removeprefix(f"{program}: ").removeprefix("error: ") for line in said)
    if any(sign in words for sign in _UNREACHABLE):
        raise Unreachable(f"{program}: {words}")
    raise UserError(refused, f"{program} says: {words}", "correct the site file, or ask the cluster's operators")


def _environment(submitter: Mapping[str, str]) -> dict[str, str]:
    """Removes variables that a surrounding SLURM or MPI job has set from the submitter's environment.

    Jobs inherit this environment, and sbatch reads ``SBATCH_*`` and ``SLURM_MEM_PER_CPU`` as options.
    """
    return {name: value for name, value in submitter.items() if name in _KEPT or not name.startswith(_FOREIGN)}
