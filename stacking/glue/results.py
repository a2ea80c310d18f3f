"""Keeps the folder of results: one sealed file per task and seed, so that a repeated command continues its work.

OUT/CoLA/seed-0.json             settings and scores of one run
OUT/CoLA/seed-0.CoLA.npy         its predictions for the test set
OUT/CoLA/logs/                   logs of the process that made them
OUT/glue.json                    everything in the table
OUT/submission/CoLA.tsv          the files for the benchmark's server
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from stacking.errors import DamagedFile
from stacking.glue.recipes import FineTuning
from stacking.glue.source import Source, hidden_sets
from stacking.glue.tasks import GlueTask, folder_of
from stacking.storage.files import disk_errors, read_sealed, write_atomically, write_sealed
from stacking.storage.frozen import Frozen, record_of

SUMMARY, SUBMISSION = "glue.json", "submission"
Scores = dict[str, float]
"""Maps names of metrics to scores of at most 1."""


class SeedResult(Frozen):
    """One fine-tuning and its scores."""

    task: str
    seed: int
    model: str
    """Digest of the model."""
    data: str
    """Digest of training and development sets."""
    start: str | None
    recipe: FineTuning
    encoder: str
    """Which implementation computed it."""
    notes: tuple[str, ...]
    max_length: int
    """The limit that held, in tokens."""
    cut: int
    """Training inputs that were longer."""
    left_out: int
    """Lines of the training and development files without all columns and a label."""
    steps: int
    loss: float | None
    """Mean training loss over the last tenth of the updates; null: not a number."""
    seconds: float
    """Of training alone."""
    scores: dict[str, Scores]
    """Per development set."""
    majority: dict[str, Scores]
    """What the most frequent label alone scores, per development set."""
    failed: bool
    """Whether it is no better than that on one of them."""

    @property
    def mean(self) -> float:
        """The mean over all metrics of all development sets."""
        return fmean(value for scores in self.scores.values() for value in scores.values())


class Results:
    """Reads the folder of results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, task: GlueTask, from_mnli: bool = False) -> Path:
        """Returns the folder of a task, or of the task started from MNLI."""
        return self.folder / folder_of(task.name, from_mnli)

    def of(self, task: GlueTask, from_mnli: bool = False) -> list[SeedResult]:
        """Returns the finished runs of a task, by seed.

        Raises:
            DamagedFile: a file was changed.
        """
        found = [read_result(path) for path in self.place(task, from_mnli).glob("seed-*.json")]
        return sorted(found, key=lambda result: result.seed)


def result_file(place: Path, seed: int) -> Path:
    """Returns the file with the settings and scores of one run."""
    return place / f"seed-{seed}.json"


def encoder_file(place: Path) -> Path:
    """Returns the file with the weights of the encoder that was fine-tuned on MNLI."""
    return place / "encoder.safetensors"


def predictions_file(place: Path, seed: int, name: str) -> Path:
    """Returns the file with the predictions of one run for the test set called ``name``."""
    return place / f"seed-{seed}.{name}.npy"


def write_predictions(path: Path, values: np.ndarray) -> None:
    """Writes predictions, float64 [N], as a .npy file, atomically."""
    data = io.BytesIO()
    np.save(data, values)
    write_atomically(path, data.getvalue())


def read_predictions(path: Path, count: int) -> np.ndarray:
    """Returns the predictions for a test set of ``count`` examples.

    Raises:
        DamagedFile: the file is missing or damaged, or belongs to another test set.
    """
    remedy = f"remove {path.name.partition('.')[0]}.json to train again"
    try:
        values: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise DamagedFile(path, "does not hold predictions", remedy) from None
    if values.shape != (count,):
        raise DamagedFile(path, f"has {values.size:,} predictions for {count:,} test examples", remedy)
    return values


def write_result(place: Path, result: SeedResult) -> None:
    """Writes the sealed result of one run; its predictions must be written before it."""
    write_sealed(result_file(place, result.seed), result.model_dump(mode="json"))


def read_result(path: Path) -> SeedResult:
    """Reads the result of one run.

    Raises:
        DamagedFile: the file was changed.
    """
    return record_of(SeedResult, read_sealed(path), path, "a result", "remove it to train again")


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
    """Returns the run with the highest mean score on the development sets; the first of equal ones."""
    return max(runs, key=lambda run: run.mean)


def answer(task: GlueTask, value: float) -> str:
    """Returns a prediction as the server expects it: a label's spelling, or a score from 0 to 5."""
    if task.is_regression:
        return f"{min(max(value, 0.0), 5.0) if np.isfinite(value) else 0.0:.3f}"
    return task.labels[int(value)]
