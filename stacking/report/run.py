"""Reads a run's plan, journal and metrics. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.errors import DamagedFile, UserError
from stacking.planning.plan import Plan, StagePlan
from stacking.run.checkpoints import checkpoints, step_of
from stacking.run.decisions import settled_plan
from stacking.run.folder import RunFolder, StageFolder, command
from stacking.run.metrics import MetricsContent, Record, inspect_metrics, is_torn

Event = dict[str, Any]
"""One line of ``journal.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Holds what is known of a run from its files."""

    folder: RunFolder
    plan: Plan
    events: list[Event]
    """Oldest first."""
    metrics: list[list[Record]]
    """Per stage, oldest first."""
    damage: tuple[str, ...]
    """Damage to the metrics: missing files, altered lines, updates without a record."""

    def records(self, kind: str) -> list[Record]:
        """Returns all ``train`` or ``evaluation`` records, in the order of the stages."""
        return [record for stage in self.metrics for record in stage if record["kind"] == kind]

    def stage_records(self, index: int, kind: str) -> list[Record]:
        """Returns the ``train`` or ``evaluation`` records of one stage."""
        return [record for record in self.metrics[index] if record["kind"] == kind]


def read_run(path: Path) -> Run:
    """Reads the run in the folder ``path``.

    Raises:
        UserError: ``path`` is not a run directory.
        DamagedFile: its plan or journal is damaged.
    """
    folder = RunFolder(path)
    if not folder.plan.is_file():
        problem = "is not a run directory (no plan.json)" if path.is_dir() else "is not a folder"
        raise UserError(path, problem, "give the folder that was --run-dir of `stacking run`")
    plan = settled_plan(folder)
    events = folder.journal.events()
    if any(event.get("stage", 0) >= len(plan.stages) for event in events):
        problem = f"mentions a stage beyond the {len(plan.stages)} of {folder.plan.name}"
        raise DamagedFile(folder.journal.path, problem, f"remove it; `{command('resume', path)}` creates a new one")
    read = [_records(folder.stage(stage.name).metrics, stage.index) for stage in plan.stages]
    damage = [
        f"{folder.stage(stage.name).metrics.relative_to(folder.path)}: {problem}"
        for stage, reading in zip(plan.stages, read, strict=True)
        for problem in (*_shortened(reading.damage), *_gaps(plan, stage, folder.stage(stage.name), reading, events))
    ]
    return Run(
        folder=folder, plan=plan, events=events, metrics=[reading.records for reading in read], damage=tuple(damage)
    )


_NUMBERS = ("step", "global_step", "tokens", "loss", "seconds", "time")
_MORE_OF_TRAINING = ("tokens_per_second", "learning_rate")


def _records(path: Path, stage: int) -> MetricsContent:
    """Reads the metrics of one stage, keeping only records with the fields that status and report need."""
    records, damage = inspect_metrics(path)
    sound = [record for record in records if _is_of(stage, record)]
    foreign = [f"a record of update {r['step']} is not one of stage {stage}" for r in records if not _is_of(stage, r)]
    return MetricsContent(sound, damage + foreign)


def _is_of(stage: int, record: Record) -> bool:
    names = _NUMBERS + (_MORE_OF_TRAINING if record["kind"] == "train" else ())
    return record.get("stage") == stage and all(isinstance(record.get(name), (int, float)) for name in names)


def _gaps(plan: Plan, stage: StagePlan, folder: StageFolder, reading: MetricsContent, events: list[Event]) -> list[str]:
    """Describes missing records of updates that must have happened according to the checkpoints and the journal."""
    of_training = [e["event"] for e in events if (e.get("phase"), e.get("stage")) == ("train", stage.index)]
    trained = of_training[-1:] == ["finished"]
    seen = {record["step"] for record in reading.records if record["kind"] == "train"}
    done = max([step_of(checkpoint) for checkpoint in checkpoints(folder.checkpoints)], default=0)
    reached = stage.steps if trained else max(done, max(seen, default=0))
    if not folder.metrics.exists():
        return ["is missing"] if reached else []
    torn = ["its last line is torn"] if trained and is_torn(folder.metrics) else []
    missing = [step for step in _logged(plan, stage) if step <= reached and step not in seen]
    if len(missing) <= len(reading.damage):
        return torn
    return [*torn, f"{len(missing):,} records between updates {missing[0]:,} and {missing[-1]:,} are missing"]


def _logged(plan: Plan, stage: StagePlan) -> list[int]:
    return [*range(plan.log_every, stage.steps, plan.log_every), stage.steps]


def _shortened(damage: list[str], most: int = 5) -> list[str]:
    rest = len(damage) - most
    return damage if rest <= 0 else [*damage[:most], f"{rest:,} more lines are damaged"]
