"""Joins the jobs that the journal records as submitted with their states in SLURM."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stacking.errors import StackingError, UserError
from stacking.launch import slurm_client
from stacking.launch.slurm_client import SlurmJob
from stacking.run.folder import RunFolder, command
from stacking.storage.files import read_json, write_json

Event = Mapping[str, Any]


def known_jobs(events: Iterable[Event]) -> dict[str, Event]:
    """Returns the newest ``submitted`` event of each job name, for the most recent submission mode."""
    submitted = [event for event in events if event["event"] == "submitted"]
    return {event["name"]: event for event in submitted if event["mode"] == submitted[-1]["mode"]}


def slurm_jobs(events: Iterable[Event]) -> dict[str, SlurmJob]:
    """Returns the run's jobs that SLURM still knows, by name.

    Raises:
        StackingError: SLURM does not answer.
    """
    ids = {name: int(event["job"]) for name, event in known_jobs(events).items()}
    found = slurm_client.jobs(list(ids.values()))
    return {name: found[job] for name, job in ids.items() if job in found}


def live_jobs(events: Iterable[Event]) -> dict[str, SlurmJob]:
    """Returns the run's pending and running jobs by name, except those whose dependency can never be satisfied.

    A job from which this process submits the rest of the chain is about to end and does not count.

    Raises:
        StackingError: SLURM does not answer.
    """
    jobs, own = slurm_jobs(events), slurm_client.own_job()
    return {n: job for n, job in jobs.items() if job.is_live and job.reason != slurm_client.NEVER and job.id != own}


def unreleased(events: Iterable[Event], live: Mapping[str, SlurmJob]) -> set[int]:
    """Returns the jobs that an interrupted submission left on hold; any other hold was placed by a user."""
    released = {job for event in events if event["event"] == "released" for job in event["jobs"]}
    return {job.id for job in live.values() if job.reason == slurm_client.HELD and job.id not in released}


_BAD_FOR = 7 * 24 * 3600.0
"""Seconds for which a failure counts against a node."""


def failing_nodes(events: Iterable[Event]) -> list[str]:
    """Returns the nodes on which a rank was the first to fail, twice within a week."""
    since = time.time() - _BAD_FOR
    failed = Counter(e["node"] for e in events if e["event"] == "failed" and "node" in e and e["time"] > since)
    return sorted(node for node, times in failed.items() if times > 1)


@dataclass(frozen=True)
class Queue:
    """What is known of a run's jobs."""

    jobs: Mapping[str, SlurmJob]
    """By name; without those that SLURM does not know."""
    asked: float
    """The unix time at which SLURM answered."""
    error: str | None = None
    """Why SLURM does not answer now."""


def queue(run: RunFolder, events: Iterable[Event]) -> Queue:
    """Asks SLURM for the run's jobs and remembers the answer; returns the last answer if there is none now.

    The memory also keeps how jobs ended after SLURM has forgotten them.
    """
    if not known_jobs(events):
        return Queue({}, time.time())
    known = _remembered(run)
    try:
        found = slurm_jobs(events)
    except StackingError as error:
        return replace(known, error=str(error))
    ids = {int(event["job"]) for event in known_jobs(events).values()}
    ended = {name: job for name, job in known.jobs.items() if job.id in ids and not job.is_live}
    now = Queue({**ended, **found}, time.time())
    if now.jobs != known.jobs:
        with suppress(StackingError, OSError):  # a user who may only read the run can look, too
            rows = {name: {**asdict(job), "folder": None} for name, job in now.jobs.items()}
            write_json(_memory(run), {"asked": now.asked, "jobs": rows})
    return now


def _memory(run: RunFolder) -> Path:
    return run.scripts / "queue.json"


def _remembered(run: RunFolder) -> Queue:
    try:
        content = read_json(_memory(run))
        return Queue({name: SlurmJob(**job) for name, job in content["jobs"].items()}, float(content["asked"]))
    except (StackingError, OSError, TypeError, ValueError, KeyError, AttributeError):
        return Queue({}, 0.0)


def is_submitted_from_outside(run: RunFolder, environment: Mapping[str, str]) -> bool:
    """Returns whether the run was submitted, and this process belongs to none of its jobs."""
    submitted = {str(event["job"]) for event in run.journal.events() if event["event"] == "submitted"}
    return bool(submitted) and environment.get("SLURM_JOB_ID") not in submitted


def refuse_beside_jobs(run: RunFolder, environment: Mapping[str, str]) -> None:
    """Refuses to start a controller by hand while SLURM jobs of the run will need its lock.

    Args:
        environment: tells whether this process itself belongs to a job of the run.

    Raises:
        UserError: jobs are queued or running, or SLURM does not say whether they are.
    """
    if not is_submitted_from_outside(run, environment):
        return
    events = run.journal.events()
    try:
        live = live_jobs(events)
    except StackingError as error:
        if all(is_done(event, events) for event in known_jobs(events).values()):
            return
        problem = f"was submitted to SLURM, which does not say whether its jobs are queued or running ({error})"
        raise UserError(run.path, problem, "ask again later, or add --here if there are none") from None
    if live:
        listed = ", ".join(f"{job.id} ({name}, {job.state.lower()})" for name, job in live.items())
        missing = f"run `{command('submit --resume', run.path)}` to submit the jobs that are missing"
        here = f"`{command('cancel', run.path)}` first, or --here, to run it on this machine"
        raise UserError(run.path, f"is continued by its SLURM jobs {listed}", f"{missing}, or {here}")


def is_done(submitted: Event, events: Iterable[Event]) -> bool:
    """Returns whether every phase of a job is finished, according to the journal."""
    return not phases_left(submitted["phases"], events)


def phases_left(labels: str, events: Iterable[Event]) -> list[tuple[str, int]]:
    """Returns the name and stage of those of a job's phases that the journal calls neither finished nor skipped.

    Args:
        labels: in the format of ``stacking resume --only``.
    """
    finished = finished_phases(events)
    asked = ((name, int(stage)) for name, _, stage in (label.partition(":") for label in labels.split(",")))
    return [phase for phase in asked if phase not in finished]


def finished_phases(events: Iterable[Event]) -> set[tuple[str, int]]:
    """Returns the name and stage of each phase that the journal calls finished or skipped."""
    return {(event["phase"], event["stage"]) for event in events if event["event"] in ("finished", "skipped")}
