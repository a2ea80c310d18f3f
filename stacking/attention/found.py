"""Recognises the model in a folder: run, state, checkpoint or Hugging Face folder. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stacking.errors import UserError
from stacking.planning.plan import PlannedData
from stacking.report.run import read_run
from stacking.run.checkpoints import checkpoints
from stacking.storage.files import MANIFEST, read_sealed

Kind = Literal["state", "checkpoint", "huggingface"]


@dataclass(frozen=True)
class FoundModel:
    """Where a model lies."""

    path: Path
    kind: Kind
    data: PlannedData | None = None
    """The data on which the model's run trains it; None if the model does not belong to a given run."""


def find_model(path: Path) -> FoundModel:
    """Return the model in ``path``; of a run, the deepest one that it has so far.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        raise UserError(path, "is not a folder", "give a run, a state, a checkpoint or a Hugging Face folder")
    if (path / "plan.json").is_file():
        return _of_a_run(path)
    if (path / "config.json").is_file():
        return FoundModel(path, "huggingface")
    if (path / "latest").is_file() or any(path.glob("*_states.pt")):
        return FoundModel(path, "checkpoint")
    if (path / MANIFEST).is_file() and read_sealed(path / MANIFEST).get("kind") == "state":
        return FoundModel(path, "state")
    raise UserError(path, "holds no model", "give a run, a state, a checkpoint or a Hugging Face folder")


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
