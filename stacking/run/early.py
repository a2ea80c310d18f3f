"""Starts the ranks of the next stage before the one before has ended, and lets them train during the transition.

A rank needs seconds for imports, and can spend them while the last updates are computed. It touches no device before
the ranks of the stage before have left theirs. The ranks end with the controller, or as soon as a phase before theirs
fails.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stacking.launch.job import RunningJob
from stacking.planning.plan import Plan, StagePlan
from stacking.run.folder import RunFolder
from stacking.run.phases import Phase, phases, starting_state

LEAD = 20.0
"""Seconds before the expected end of a stage at which the ranks of the next one start."""


@dataclass(frozen=True, kw_only=True)
class EarlyStart:
    """Describes ranks that were started early: the phase, its attempt, their number and the running job."""

    label: str
    attempt: int
    ranks: int
    running: RunningJob
    since: float
    """When the ranks started, on the monotonic clock."""


class Countdown:
    """Estimates when a stage ends, from its metrics."""

    def __init__(self, stage: StagePlan) -> None:
        self._stage = stage
        self._end = float("inf")

    def note(self, record: Mapping[str, Any]) -> None:
        """Reads a record of the metrics; a stage of automatic length may end at any time, so its end is unknown."""
        if record["kind"] == "train" and self._stage.until is None:
            left = self._stage.steps - record["step"]
            self._end = time.monotonic() + left * record["seconds"] / record["step"]

    @property
    def is_near(self) -> bool:
        """Whether the end is expected within `LEAD` seconds."""
        return self._end - time.monotonic() <= LEAD


def to_start_early(phase: Phase, labels: Collection[str], plan: Plan, run: RunFolder) -> Phase | None:
    """Returns the training phase after ``phase``, whose ranks may start before it has ended; None: there is none.

    Args:
        phase: the training of the stage before, or its consolidation.
        labels: the phases that this controller runs.
    """
    index = phase.stage + 1
    if f"train:{index}" not in labels:
        return None
    stage = plan.stages[index]
    awaited = starting_state(plan, run, stage)
    if stage.trial_updates or awaited is None or awaited.exists():  # a trial needs the devices for itself
        return None
    return next(later for later in phases(plan, run) if later.label == f"train:{index}")
