"""Defines the examples of a task, and what all layouts of GLUE have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from stacking.errors import UserError
from stacking.glue.tasks import GlueTask


@dataclass(frozen=True)
class Examples:
    """N examples of one task."""

    first: list[str]
    second: list[str]
    """Empty for tasks with one sentence."""
    labels: np.ndarray | None
    """float64 [N]: scores, or numbers of labels; None: a test set."""
    ids: list[str]
    """What a submission file calls each example; empty for training and development sets."""
    left_out: int
    """Lines that lack columns or a label, and are not among the examples."""

    def __len__(self) -> int:
        return len(self.first)

    def digest(self) -> str:
        """Identifies the texts and labels."""
        hashed = xxhash.xxh3_128()
        for text in (*self.first, *self.second):
            hashed.update(text.encode(errors="surrogatepass"))
            hashed.update(b"\n")
        hashed.update(b"" if self.labels is None else self.labels.tobytes())
        return hashed.hexdigest()


def task_folder(folder: Path, task: GlueTask) -> Path:
    """Returns the subfolder of ``folder`` with the task, spelled in any of the usual ways.

    Raises:
        UserError: there is none.
    """
    found = _folders(folder, task)
    if not found:
        raise UserError(folder / task.name, "does not exist", "add the task's files, or leave it out with --tasks")
    return found[0]


def has_task(folder: Path, task: GlueTask) -> bool:
    """Returns whether ``folder`` has a subfolder for the task."""
    return bool(_folders(folder, task))


def _folders(folder: Path, task: GlueTask) -> list[Path]:
    names = {_plain(task.name), _plain(task.subset)}
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and _plain(path.name) in names]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def require_scorable(task: GlueTask, where: str, examples: Examples) -> Examples:
    """Returns ``examples`` if a model can be trained on them, or scored with them.

    Raises:
        UserError: there are none.
    """
    if not len(examples):
        raise UserError(where, "has no examples", f"restore {task.name}, or leave it out with --tasks")
    return examples
