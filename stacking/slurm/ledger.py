"""Joins the jobs that the journal records as submitted with their states in SLURM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stacking.launch import slurm_client
from stacking.launch.slurm_client import SlurmJob

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


def is_done(submitted: Event, events: Iterable[Event]) -> bool:
    """Returns whether every phase of a job is finished, according to the journal."""
    finished = {f"{event['phase']}:{event['stage']}" for event in events if event["event"] == "finished"}
    return set(str(submitted["phases"]).split(",")) <= finished
