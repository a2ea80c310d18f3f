"""Reads GLUE in the layout of the `datasets` library: saved to disk, as Parquet files, or from the Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from stacking.config.reading import shown
from stacking.data.hub import require_on_hub
from stacking.errors import UserError, first_line
from stacking.glue.examples import Examples, has_task, require_scorable, task_folder
from stacking.glue.tasks import DIAGNOSTIC, GlueTask, Held

_LOUD = ("datasets", "huggingface_hub", "fsspec", "httpx", "urllib3")


def is_saved(folder: Path) -> bool:
    """Returns whether a subfolder was written by ``save_to_disk``, or holds Parquet files."""
    return any(any(folder.glob(f"*/{name}")) for name in ("dataset_dict.json", "*.parquet"))


class _Datasets:
    """Reads from a `datasets.DatasetDict` per task."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._read: dict[str, Any] = {}

    def train(self, task: GlueTask) -> Examples:
        return self._examples(task, "train", labelled=True)

    def dev(self, task: GlueTask, held: Held) -> Examples:
        return self._examples(task, held.dev_split, labelled=True)

    def test(self, task: GlueTask, held: Held) -> Examples | None:
        return self._examples(task, held.test_split, labelled=False) if held.test_split in self._of(task) else None

    def diagnostic(self) -> Examples | None:
        return self._examples(DIAGNOSTIC, "test", labelled=False) if self._has(DIAGNOSTIC) else None

    def _has(self, task: GlueTask) -> bool:
        raise NotImplementedError

    def _of(self, task: GlueTask) -> Any:
        if task.name not in self._read:
            logging.getLogger("datasets").setLevel(logging.CRITICAL)
            self._read[task.name] = self._load(task)
        return self._read[task.name]

    def _load(self, task: GlueTask) -> Any:
        raise NotImplementedError

    def _examples(self, task: GlueTask, split: str, labelled: bool) -> Examples:
        splits, where = self._of(task), f"{self._name}: {task.subset}/{split}"
        if split not in splits:
            raise UserError(where, f"does not exist (there are {shown(', '.join(splits))})", "give the GLUE dataset")
        rows = splits[split]
        for name in (*task.fields, *(["label"] if labelled else [])):
            if name not in rows.column_names:
                problem = f"has no column {name!r} (it has {shown(', '.join(rows.column_names))})"
                raise UserError(where, problem, "give the GLUE dataset")
        texts = [[str(text) for text in rows[name]] for name in task.fields]
        labels = self._labels(task, where, rows["label"]) if labelled else None
        names = rows["idx"] if "idx" in rows.column_names else range(len(rows))
        ids = [] if labelled else [str(name) for name in names]
        examples = Examples(texts[0], texts[1] if task.is_pair else [], labels, ids, 0)
        return require_scorable(task, where, examples) if labelled else examples

    @staticmethod
    def _labels(task: GlueTask, where: str, values: Any) -> np.ndarray:
        labels = np.array([-1 if value is None else value for value in values], dtype=np.float64)
        highest = 5 if task.is_regression else len(task.labels) - 1
        bad = np.flatnonzero(~((labels >= 0) & (labels <= highest)))
        if bad.size:
            place = f"{where}: example {bad[0]}"
            raise UserError(place, f"has the label {values[int(bad[0])]}", f"labels are numbers from 0 to {highest}")
        return labels


class SavedDatasets(_Datasets):
    """A folder with a subfolder for each task, written by ``save_to_disk`` or downloaded from the Hub."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    def _has(self, task: GlueTask) -> bool:
        return has_task(self.folder, task)

    def _load(self, task: GlueTask) -> Any:
        import datasets

        datasets.disable_progress_bars()
        folder = task_folder(self.folder, task)
        try:
            if (folder / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(folder))
            files = {path.name.split("-")[0]: str(path) for path in sorted(folder.glob("*.parquet"))}
            grouped = {split: sorted(map(str, folder.glob(f"{split}-*.parquet"))) or [files[split]] for split in files}
            return {split: datasets.Dataset.from_parquet(paths) for split, paths in grouped.items()}
        except Exception as error:  # the library raises types of its own, and Arrow's
            reason = first_line(error)[:160]
            raise UserError(folder, f"cannot be read as a dataset ({reason})", "save it again") from None


class HubDataset(_Datasets):
    """A dataset of the Hub with a configuration for each task, such as ``nyu-mll/glue``."""

    def _has(self, task: GlueTask) -> bool:
        import datasets

        return task.subset in datasets.get_dataset_config_names(self._name)

    def _load(self, task: GlueTask) -> Any:
        import datasets

        datasets.disable_progress_bars()
        for logger in _LOUD:
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        try:
            require_on_hub(self._name)
            return datasets.load_dataset(self._name, task.subset)
        except Exception as error:  # no network, no such dataset, or no such configuration
            reason = first_line(error)[:160]
            problem = f"is neither a folder here nor a dataset that can be read ({type(error).__name__}: {reason})"
            raise UserError(f"--data {self._name}", problem, "check the name, or the network") from None
