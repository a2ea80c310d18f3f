"""Opens the source of examples: a folder of TSV files, or a dataset of the `datasets` library."""

from __future__ import annotations

from pathlib import Path

from stacking.data.hub import is_dataset
from stacking.errors import UserError
from stacking.glue.examples import Examples
from stacking.glue.saved_datasets import HubDataset, SavedDatasets, is_saved
from stacking.glue.tasks import DIAGNOSTIC, GlueTask
from stacking.glue.tsv import TsvFolder

Source = TsvFolder | SavedDatasets | HubDataset
"""GLUE in one layout. A set that is missing or not in the task's layout raises a `UserError`."""


def open_source(data: str) -> Source:
    """Opens a folder of TSV files or of saved datasets, or a dataset of the Hugging Face Hub.

    Raises:
        UserError: ``data`` is none of these.
    """
    folder = Path(data)
    if folder.is_dir():
        return SavedDatasets(folder) if is_saved(folder) else TsvFolder(folder)
    if is_dataset(data):
        return HubDataset(data)
    problem = "is a file" if folder.is_file() else "does not exist"
    raise UserError(
        f"--data {data}", problem, "give a folder with a subfolder per task, or a dataset like nyu-mll/glue"
    )


def hidden_sets(source: Source, task: GlueTask) -> dict[str, Examples]:
    """Returns the test sets that a model of ``task`` answers, MNLI's with AX, by the names of their submission files.

    Raises:
        UserError: one is not in its layout.
    """
    found = {held.name: source.test(task, held) for held in task.held}
    if task.name == "MNLI":
        found[DIAGNOSTIC.name] = source.diagnostic()
    return {name: examples for name, examples in found.items() if examples is not None and len(examples)}
