"""Makes the paper's table, with our rows beside the published ones, and a table of every metric with its spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from stacking.glue.metrics import NAMES
from stacking.glue.summary import GlueSummary, TaskSummary
from stacking.glue.tasks import TASKS
from stacking.report.tables import Table
from stacking.terminal.units import UNKNOWN, counted, duration

Cells = Mapping[str, tuple[float, ...]]
"""Per task, its metrics in percent, in the order of the table; for MNLI matched and mismatched."""

COLUMNS = tuple(task.name for task in TASKS.values() if task.in_average)


@dataclass(frozen=True)
class Row:
    """One row of the paper's table."""

    name: str
    split: str
    cells: Cells
    is_comparable: bool = True
    """False: the tasks started from MNLI, unlike the published ones."""


def _published(name: str, split: str, *scores: tuple[float, ...]) -> Row:
    return Row(name, split, dict(zip(COLUMNS, scores, strict=True)))


PUBLISHED = (
    _published(
        "BERT-base (Devlin et al., 2019)", "test",
        (52.1,), (93.5,), (88.9, 84.8), (87.1, 85.8), (71.2, 89.2), (84.6, 83.4), (90.5,), (66.4,),
    ),
    _published(
        "baseline (Gong et al., 2019)", "test",
        (52.8,), (92.8,), (87.3, 83.0), (81.2, 80.0), (70.2, 88.4), (84.4, 83.7), (90.4,), (64.9,),
    ),
    _published(
        "stacking (Gong et al., 2019)", "test",
        (56.2,), (93.9,), (88.2, 83.9), (84.2, 82.5), (70.4, 88.7), (84.4, 84.2), (90.1,), (67.0,),
    ),
    _published(
        "BERT-base cased (run_glue, one seed)", "dev",
        (56.53,), (92.32,), (88.85, 84.07), (88.64, 88.48), (87.49, 90.71), (83.91, 84.10), (90.66,), (65.70,),
    ),
)  # fmt: skip
"""Table 2 of Gong et al. (2019), and the README of Hugging Face's run_glue (whose MRPC is F1/accuracy)."""


def rows_of(summary: GlueSummary) -> list[Row]:
    """Returns a model's row, and a second one for tasks that started from MNLI."""
    rows = []
    own = {task.task: _cell(task) for task in summary.tasks if not task.from_mnli}
    if own:
        rows.append(Row(summary.model, "dev", own))
    started = {task.task: _cell(task) for task in summary.tasks if task.from_mnli}
    if started:
        rows.append(Row(f"{summary.model}, from MNLI", "dev", started, is_comparable=False))
    return rows


def _cell(task: TaskSummary) -> tuple[float, ...]:
    return tuple(100 * spread.median for scores in task.scores.values() for spread in scores.values())


def average(cells: Cells, tasks: Sequence[str]) -> float | None:
    """Returns the mean over ``tasks`` of the mean of each task's metrics; None if one is missing."""
    if not tasks or any(task not in cells for task in tasks):
        return None
    return fmean(fmean(cells[task]) for task in tasks)


def paper_table(summaries: Sequence[GlueSummary]) -> Table:
    """Returns the paper's table: published rows, then ours, with the average over the tasks that all of ours have."""
    ours = [row for summary in summaries for row in rows_of(summary)]
    shared = [task for task in COLUMNS if all(task in row.cells for row in ours if row.is_comparable)]
    shared = shared if any(row.is_comparable for row in ours) else []
    head = ("model", "scores", *COLUMNS, f"average of {len(shared)}")
    rows = [
        (
            row.name if row.is_comparable else f"{row.name} (not comparable)",
            row.split,
            *(_shown(row.cells.get(task)) for task in COLUMNS),
            _shown_average(average(row.cells, shared) if row.is_comparable else None),
        )
        for row in (*PUBLISHED, *ours)
    ]
    return Table(head, rows, _notes(ours, shared))


def _shown(scores: tuple[float, ...] | None) -> str:
    return UNKNOWN if scores is None else "/".join(f"{score:.1f}" for score in scores)


def _shown_average(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def _notes(ours: Sequence[Row], shared: Sequence[str]) -> list[str]:
    notes = [
        "CoLA: Matthews correlation; MRPC, QQP: F1/accuracy; STS-B: Pearson/Spearman correlation; MNLI: accuracy,"
        " matched/mismatched; others: accuracy; all times 100. Our rows are medians over seeds on the development sets."
        " Scores on the test sets are usually lower, and QQP's test set is distributed differently.",
        f"The average is over {', '.join(shared)}: first the mean of a task's metrics, then the mean of the tasks."
        " The paper's own average (78.3, 77.4 and 78.4) also counts WNLI."
        if shared
        else "There is no average: our rows share no task.",
    ]
    if not all(row.is_comparable for row in ours):
        notes.append(
            "Rows from MNLI start from the model fine-tuned on MNLI; the paper's tasks all start from the model."
        )
    return notes


def spread_table(summary: GlueSummary) -> Table:
    """Returns every metric of one model: median, range, standard deviation, failed runs."""
    head = ("task", "metric", "median", "lowest", "highest", "deviation", "most frequent label", "failed", "training")
    rows = []
    for task in summary.tasks:
        for name, scores in task.scores.items():
            for metric, spread in scores.items():
                rows.append(
                    (
                        f"{name}, from MNLI" if task.from_mnli else name,
                        NAMES[metric],
                        *(f"{100 * value:.1f}" for value in (spread.median, spread.lowest, spread.highest)),
                        UNKNOWN if spread.deviation is None else f"{100 * spread.deviation:.1f}",
                        f"{100 * task.majority[name][metric]:.1f}",
                        f"{len(task.failed)} of {counted(len(task.seeds), 'run')}",
                        duration(task.seconds),
                    )
                )
    notes = ["A failed run scores no more than always answering the most frequent label. Medians include failed runs."]
    notes += [f"{task.task}: {note}." for task in summary.tasks for note in task.notes]
    return Table(head, rows, notes)


def as_text(summary: GlueSummary, beside: Sequence[GlueSummary] = ()) -> str:
    """Returns both tables and their notes as plain text."""
    tables = [spread_table(summary), paper_table([*beside, summary])]
    return "\n\n".join("\n".join([table.as_text(), "", *table.notes]) for table in tables)
