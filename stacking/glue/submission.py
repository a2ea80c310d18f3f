"""Writes the files that the server of the benchmark takes: one per test set, from the best seed on the dev sets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from stacking.glue.results import SUBMISSION, Results, SeedResult, predictions_file, read_predictions
from stacking.glue.source import Source, hidden_sets
from stacking.glue.tasks import GlueTask
from stacking.storage.files import disk_errors, write_atomically


def write_submission(results: Results, task: GlueTask, source: Source, seeds: Collection[int]) -> list[Path]:
    """Writes the files of one task; returns them, none if there are no test sets.

    Args:
        seeds: the runs to choose from.

    Raises:
        DamagedFile: the predictions do not belong to the test set.
    """
    runs = [run for run in results.of(task) if run.seed in seeds]
    folder = results.folder / SUBMISSION
    written = []
    for name, examples in hidden_sets(source, task).items() if runs else ():
        values = read_predictions(predictions_file(results.place(task), best(runs).seed, name), len(examples))
        lines = [f"{number}\t{answer(task, value)}" for number, value in zip(examples.ids, values, strict=True)]
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.tsv"
        write_atomically(path, "\n".join(["index\tprediction", *lines]) + "\n")
        written.append(path)
    return written


def best(runs: Sequence[SeedResult]) -> SeedResult:
    """Returns the run with the highest mean score on the development sets; of equal ones the first."""
    return max(runs, key=lambda run: run.mean)


def answer(task: GlueTask, value: float) -> str:
    """Returns a prediction as the server expects it: a label's spelling, or a score from 0 to 5."""
    if task.is_regression:
        return f"{min(max(value, 0.0), 5.0) if np.isfinite(value) else 0.0:.3f}"
    return task.labels[int(value)]
