"""The jobs of a run: what the journal says was submitted, joined with what Slurm says has become of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stacking.launch import slurm_client
from stacking.launch.slurm_client import SlurmJob

Event = Mapping[str, Any]


def known_jobs(events: Iterable[Event]) -> dict[str, Event]:
    """The newest ``submitted`` event under each job's name, of the way of submitting that was used last."""
    submitted = [event for event in events if event["event"] == "submitted"]
    return {event["name"]: event for event in submitted if event["mode"] == submitted[-1]["mode"]}


def slurm_jobs(events: Iterable[Event]) -> dict[str, SlurmJob]:
    """What Slurm still knows of the run's jobs, by name.

    Raises:
        StackingError: Slurm does not answer.
    """
    ids = {name: int(event["job"]) for name, event in known_jobs(events).items()}
    found = slurm_client.jobs(list(ids.values()))
    return {name: found[job] for name, job in ids.items() if job in found}


def live_jobs(events: Iterable[Event]) -> dict[str, SlurmJob]:
    """The run's jobs that wait or work, by name; without those that wait for what will never happen.

    Raises:
        StackingError: Slurm does not answer.
    """
    return {name: job for name, job in slurm_jobs(events).items() if job.is_live and job.reason != slurm_client.NEVER}


def is_done(submitted: Event, events: Iterable[Event]) -> bool:
    """Whether every phase of a job is finished, as far as the journal knows."""
    finished = {f"{event['phase']}:{event['stage']}" for event in events if event["event"] == "finished"}
    return set(str(submitted["phases"]).split(",")) <= finished
