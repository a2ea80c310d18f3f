"""A run as its files tell it: what was planned, what has happened, what was measured. Nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.errors import UserError
from stacking.metrics import Record, read_metrics
from stacking.plan import Plan, load_plan
from stacking.runfolder import RunFolder

Event = dict[str, Any]
"""One line of ``journal.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that is known about one run."""

    folder: RunFolder
    plan: Plan
    events: list[Event]
    """Oldest first."""
    metrics: list[list[Record]]
    """Per stage, oldest first."""

    def records(self, kind: str) -> list[Record]:
        """All ``train`` or ``evaluation`` records, over the stages in order."""
        return [record for stage in self.metrics for record in stage if record["kind"] == kind]

    def stage_records(self, index: int, kind: str) -> list[Record]:
        """The ``train`` or ``evaluation`` records of one stage."""
        return [record for record in self.metrics[index] if record["kind"] == kind]


def read_run(path: Path) -> Run:
    """Read the run in the folder ``path``.

    Raises:
        UserError: it is not a run directory.
        DamagedFile: its plan, journal or metrics are damaged.
    """
    folder = RunFolder(path)
    if not folder.plan.is_file():
        problem = "is not a run directory (no plan.json)" if path.is_dir() else "is not a folder"
        raise UserError(path, problem, "give the folder that was --run-dir of `stacking run`")
    plan = load_plan(folder.plan)
    return Run(
        folder=folder,
        plan=plan,
        events=folder.journal.events(),
        metrics=[read_metrics(folder.stage(stage.name).metrics) for stage in plan.stages],
    )
