"""Where examples come from: a folder of TSV files, or a dataset of the `datasets` library."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from stacking.data.hub import is_dataset
from stacking.errors import UserError
from stacking.glue.examples import Examples
from stacking.glue.saved_datasets import HubDataset, SavedDatasets, is_saved
from stacking.glue.tasks import GlueTask, Held
from stacking.glue.tsv import TsvFolder


class Source(Protocol):
    """Reads GLUE in one layout."""

    def train(self, task: GlueTask) -> Examples:
        """Returns the training set.

        Raises:
            UserError: it is missing, or not in the task's layout.
        """

    def dev(self, task: GlueTask, held: Held) -> Examples:
        """Returns a development set.

        Raises:
            UserError: it is missing, or not in the task's layout.
        """

    def test(self, task: GlueTask, held: Held) -> Examples | None:
        """Returns a test set; None: there is none.

        Raises:
            UserError: it is not in the task's layout.
        """


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
