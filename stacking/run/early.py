"""Starts the ranks of the next stage while the state that they will load is still being consolidated and grown.

A rank needs seconds for imports, its device and its process group, and can spend them during the transition. Then it
waits until the state has its name. The ranks end with the controller, or as soon as a phase before theirs fails.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from stacking.launch.job import RunningJob
from stacking.planning.plan import Plan
from stacking.run.folder import RunFolder
from stacking.run.phases import Phase, phases, starting_state

WHEN_READY = "when-ready"
"""The worker's last argument: wait for the state that the stage starts from."""


@dataclass(frozen=True, kw_only=True)
class EarlyStart:
    """Describes ranks that were started early: the phase, its attempt, their number and the running job."""

    label: str
    attempt: int
    ranks: int
    running: RunningJob
    since: float
    """When the ranks started, on the monotonic clock."""


def to_start_early(phase: Phase, labels: Collection[str], plan: Plan, run: RunFolder) -> Phase | None:
    """Returns the training phase whose ranks may start together with ``phase``; None: there is none.

    Args:
        labels: the phases that this controller runs.
    """
    index = phase.stage + 1
    if phase.name != "consolidate" or f"train:{index}" not in labels:
        return None
    stage = plan.stages[index]
    awaited = starting_state(plan, run, stage)
    if stage.trial_updates or awaited is None or awaited.exists():  # a trial needs the devices for itself
        return None
    return next(later for later in phases(plan, run) if later.label == f"train:{index}")
