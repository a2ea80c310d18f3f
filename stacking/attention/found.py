"""Finds the model to measure in a run, a state, a checkpoint or a Hugging Face folder. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stacking.errors import UserError
from stacking.huggingface.model_folder import kind_of
from stacking.planning.plan import PlannedData
from stacking.report.run import read_run
from stacking.run.checkpoints import checkpoints
from stacking.storage.files import MANIFEST


@dataclass(frozen=True)
class FoundModel:
    """Where a model is."""

    path: Path
    kind: Literal["state", "checkpoint", "huggingface"]
    data: PlannedData | None = None
    """The data on which the model's run trains it; None if the model does not belong to a given run."""


def find_model(path: Path) -> FoundModel:
    """Returns the model in ``path``; for a run, the deepest one that it has so far.

    Raises:
        UserError: there is none.
    """
    kind = kind_of(path)
    if kind is None:
        problem = "holds no model" if path.is_dir() else "is not a folder"
        raise UserError(path, problem, "give a run, a state, a checkpoint or a Hugging Face folder")
    return _of_a_run(path) if kind == "run" else FoundModel(path, kind)


def _of_a_run(path: Path) -> FoundModel:
    run = read_run(path)
    for stage in reversed(run.plan.stages):
        folder = run.folder.stage(stage.name)
        if (folder.state / MANIFEST).is_file():
            return FoundModel(folder.state, "state", run.plan.data)
        if found := checkpoints(folder.checkpoints):
            return FoundModel(found[-1], "checkpoint", run.plan.data)
        if (folder.start / MANIFEST).is_file():
            return FoundModel(folder.start, "state", run.plan.data)
    raise UserError(path, "has no checkpoint yet", "wait for the first one, or give another model")
