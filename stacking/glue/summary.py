"""Summarises each task over its seeds: median, spread and failures, the content of ``glue.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median, stdev

from stacking.glue.results import SUMMARY, SeedResult
from stacking.storage.files import read_sealed, write_sealed
from stacking.storage.frozen import Frozen, record_of


class OverSeeds(Frozen):
    """One metric over the seeds; scores are at most 1."""

    values: tuple[float, ...]
    """By seed."""
    median: float
    lowest: float
    highest: float
    deviation: float | None
    """The sample's standard deviation; null for one seed."""


class TaskSummary(Frozen):
    """One task over its seeds, failed runs included."""

    task: str
    from_mnli: bool
    """Whether training started from the model fine-tuned on MNLI, so that the paper's scores do not compare."""
    seeds: tuple[int, ...]
    failed: tuple[int, ...]
    """Seeds whose run is no better than the most frequent label."""
    scores: dict[str, dict[str, OverSeeds]]
    """Per development set and metric."""
    majority: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    seconds: float
    """Of training, over all seeds."""


class GlueSummary(Frozen):
    """One model on GLUE."""

    kind: str = "glue"
    format: int = 1
    model: str
    recipe: str
    changes: tuple[str, ...]
    """Values of ``--set``."""
    tasks: tuple[TaskSummary, ...]


def summarise(results: Sequence[SeedResult], from_mnli: bool) -> TaskSummary:
    """Summarises the runs of one task, of which there is at least one."""
    first = results[0]
    scores = {
        name: {metric: _spread([result.scores[name][metric] for result in results]) for metric in first.scores[name]}
        for name in first.scores
    }
    return TaskSummary(
        task=first.task,
        from_mnli=from_mnli,
        seeds=tuple(result.seed for result in results),
        failed=tuple(result.seed for result in results if result.failed),
        scores=scores,
        majority=first.majority,
        notes=tuple(_notes(first)),
        seconds=round(sum(result.seconds for result in results), 2),
    )


def _spread(values: Sequence[float]) -> OverSeeds:
    return OverSeeds(
        values=tuple(values),
        median=median(values),
        lowest=min(values),
        highest=max(values),
        deviation=stdev(values) if len(values) > 1 else None,
    )


def _notes(result: SeedResult) -> list[str]:
    notes = list(result.notes)
    if result.max_length < result.recipe.max_length:
        notes.append(f"inputs have at most {result.max_length} tokens: the model has no more positions")
    if result.cut:
        notes.append(f"{result.cut:,} training inputs were cut to {result.max_length} tokens")
    if result.left_out:
        notes.append(f"{result.left_out:,} lines of the data without all columns and a label were left out")
    if result.recipe.max_steps is not None:
        notes.append(f"training stopped after {result.steps:,} updates")
    return notes


def write_summary(folder: Path, summary: GlueSummary) -> None:
    """Writes ``glue.json`` into ``folder``, sealed."""
    write_sealed(folder / SUMMARY, summary.model_dump(mode="json"))


def read_summary(folder: Path) -> GlueSummary:
    """Reads ``glue.json``.

    Raises:
        UserError: there is none.
        DamagedFile: it was changed.
    """
    path = folder / SUMMARY
    return record_of(GlueSummary, read_sealed(path), path, "a summary", "run the same command again")
