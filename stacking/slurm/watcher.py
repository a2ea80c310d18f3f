"""Submits the rest of a chain again after it lost a job by accident.

A job's shell has SLURM start it again after a stop, a preemption or a killed controller. Nothing does so if the
shell itself dies: by SIGKILL, out of memory, at a time limit that came without a warning, or on a site that cancels
preempted jobs. The job after it is then cancelled, and so on down to the last one, after which the watcher starts
(``--dependency=afternotok``). It runs ``python -m stacking.slurm.watcher RUN MENDS`` and looks at the first job that
did not end well. If all of them do, SLURM removes the watcher (``--kill-on-invalid-dep``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.errors import StackingError
from stacking.launch import slurm_client
from stacking.launch.slurm_client import SlurmJob
from stacking.run.folder import RunFolder, command, is_locked
from stacking.slurm.command import SubmitRequest, submit
from stacking.slurm.ledger import phases_left

_PATIENCE = 600.0
"""Seconds to wait for SLURM to answer, and for the lost job's last processes to end."""
_BY_SLURM = ("PREEMPTED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")
_STOPPED = 75

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Ending:
    """Describes how a job of the chain ended."""

    name: str
    job: int
    phases: str
    """In the format of ``stacking resume --only``."""
    state: str
    """SLURM's state; empty if SLURM has forgotten the job."""
    is_live: bool
    code: int | None
    """What its script exited with; None: the script was killed, or never started."""
    has_started: bool

    @property
    def is_good(self) -> bool:
        """Whether the job succeeded, or is still pending or running."""
        return self.is_live or self.state == "COMPLETED" or (not self.state and self.code == 0)

    @property
    def is_accident(self) -> bool:
        """Whether neither an error nor a person ended the job, so that starting it again may help."""
        if not self.state:
            return self.has_started and self.code is None
        return self.state in _BY_SLURM or (self.state == "FAILED" and self.code in (None, _STOPPED))


def first_broken(run: RunFolder, events: Sequence[Event], watcher: int) -> Ending | None:
    """Returns the first job of the chain before ``watcher`` that did not end well.

    Raises:
        Unreachable: SLURM does not answer.
    """
    found = list(_chain_before(events, watcher))[::-1]
    known = slurm_client.jobs([event["job"] for event in found])
    endings = (_ending(run, event, known.get(event["job"])) for event in found)
    return next((ending for ending in endings if not ending.is_good), None)


def mend(run: RunFolder, watcher: int, mends: int) -> Iterator[str]:
    """Submits the rest of the chain again if an accident broke it, at most ``mends`` times per job.

    Yields:
        The lines for the watcher's log.

    Raises:
        StackingError: SLURM does not answer, or the rest cannot be submitted.
    """
    broken = slurm_client.patiently(lambda: first_broken(run, run.journal.events(), watcher), _PATIENCE)
    if broken is None:
        yield "no job ended badly: nothing to mend"
        return
    killed = ", and its script was killed" if broken.has_started and broken.code is None else ""
    what = f"job {broken.job} ({broken.name}) ended as {broken.state or 'unknown to SLURM'}{killed}"
    if not broken.is_accident:
        yield f"{what}, which is not mended"
        return
    kills = run.scripts / f"{broken.name}.kills"
    before = len(kills.read_text().splitlines()) if kills.exists() else 0
    follows = "the rest of the chain is submitted again"
    if before >= mends:
        follows = f"already started again {before} times; run `{command('submit --resume', run.path)}` to continue"
    _record(run, broken, f"{what}; {follows}")
    yield f"{what}; {follows}"
    if before < mends:
        with kills.open("a") as file:
            file.write(f"{broken.state}\n")
        _wait_until_free(run)
        request = SubmitRequest(run=run, recipe=None, mode=None, site=None)
        yield from slurm_client.patiently(lambda: list(submit(request)), _PATIENCE)


def _chain_before(events: Sequence[Event], watcher: int) -> Iterator[Event]:
    """Yields the events of the jobs before ``watcher``, the last job first."""
    submitted = {event["job"]: event for event in events if event["event"] == "submitted"}
    event = submitted.get(watcher)
    while event is not None:
        kind, _, job = (event["after"] or "").partition(":")
        event = submitted.get(int(job)) if kind in ("afterok", "afternotok") else None
        if event is not None:
            yield event


def _ending(run: RunFolder, event: Event, known: SlurmJob | None) -> Ending:
    name, job = event["name"], event["job"]
    written = run.scripts / f"{name}.{job}.code"
    code = written.read_text().strip() if written.is_file() else ""
    return Ending(
        name=name,
        job=job,
        phases=event["phases"],
        state=known.state if known else "",
        is_live=known is not None and known.is_live,
        code=int(code) if code.isdigit() else None,
        has_started=(run.scripts / f"{name}.{job}.log").is_file(),
    )


def _record(run: RunFolder, broken: Ending, message: str) -> None:
    """Tells the journal, and thereby `stacking status`, how the job ended."""
    for phase, stage in phases_left(broken.phases, run.journal.events())[:1]:
        run.journal.append("failed", phase=phase, stage=stage, message=message)


def _wait_until_free(run: RunFolder) -> None:
    """Waits for processes of the lost job that still hold the run's lock."""
    deadline = time.monotonic() + _PATIENCE
    while is_locked(run.lock) and time.monotonic() < deadline:
        time.sleep(1)


def main(arguments: Sequence[str]) -> int:
    """Runs the watcher: prints what it did to its job's log.

    Args:
        arguments: the run's folder, and how often a job may be submitted again.

    Returns:
        The exit code.

    Raises:
        StackingError: this is not a SLURM job, or SLURM does not answer.
    """
    folder, mends = arguments
    watcher = slurm_client.own_job()
    if watcher is None:
        raise StackingError("the watcher works only inside a SLURM job")
    for line in mend(RunFolder(Path(folder)), watcher, int(mends)):
        print(f"stacking: {line}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StackingError as error:
        print(f"stacking: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
