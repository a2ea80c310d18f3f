"""A run as its files tell it: what was planned, what has happened, what was measured. Nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.errors import DamagedFile, UserError
from stacking.planning.plan import Plan, load_plan
from stacking.run.folder import RunFolder, command
from stacking.run.metrics import Record, read_metrics

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
    events = folder.journal.events()
    if any(event.get("stage", 0) >= len(plan.stages) for event in events):
        problem = f"tells of a stage beyond the {len(plan.stages)} of {folder.plan.name}"
        raise DamagedFile(folder.journal.path, problem, f"remove it; `{command('resume', path)}` begins another")
    return Run(
        folder=folder,
        plan=plan,
        events=events,
        metrics=[_records(folder.stage(stage.name).metrics, stage.index) for stage in plan.stages],
    )


_NUMBERS = ("step", "global_step", "tokens", "loss", "seconds", "time")
_MORE_OF_TRAINING = ("tokens_per_second", "learning_rate")


def _records(path: Path, stage: int) -> list[Record]:
    """The metrics of one stage, each with the numbers that a status or a report is made of."""
    records = read_metrics(path)
    for number, record in enumerate(records, start=1):
        names = _NUMBERS + (_MORE_OF_TRAINING if record["kind"] == "train" else ())
        if record.get("stage") != stage or not all(isinstance(record.get(name), (int, float)) for name in names):
            raise DamagedFile(path, f"record {number} is not one of stage {stage}", "remove that line")
    return records
