"""Joins the jobs that the journal records as submitted with their states in SLURM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stacking.errors import StackingError, UserError
from stacking.launch import slurm_client
from stacking.launch.slurm_client import SlurmJob
from stacking.run.folder import RunFolder, command

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

    Raises:
        StackingError: SLURM does not answer.
    """
    return {name: job for name, job in slurm_jobs(events).items() if job.is_live and job.reason != slurm_client.NEVER}


def refuse_beside_jobs(run: RunFolder, environment: Mapping[str, str]) -> None:
    """Refuses to start a controller by hand while SLURM jobs of the run will need its lock.

    Args:
        environment: tells whether this process itself belongs to a job of the run.

    Raises:
        UserError: jobs are queued or running, or SLURM does not say whether they are.
    """
    events = run.journal.events()
    submitted = {str(event["job"]) for event in events if event["event"] == "submitted"}
    if not submitted or environment.get("SLURM_JOB_ID") in submitted:
        return
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
    finished = {f"{event['phase']}:{event['stage']}" for event in events if event["event"] == "finished"}
    return set(str(submitted["phases"]).split(",")) <= finished
