"""Runs a unit of work: one task, for several seeds, in a process of its own. Does not import torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from stacking.errors import UserError
from stacking.glue.model_source import ModelSource
from stacking.glue.recipes import FineTuning
from stacking.glue.results import SeedResult
from stacking.hardware.machine import find_machine
from stacking.launch.job import Accelerator, Job
from stacking.launch.local import Local
from stacking.launch.outcome import raise_for
from stacking.storage.files import disk_errors, read_json, write_json
from stacking.storage.frozen import Frozen, record_of

UNIT, PROGRESS = "unit.json", "progress.json"
_POLL_SECONDS = 0.1


class Unit(Frozen):
    """The content of the file that the worker reads."""

    model: ModelSource
    data: str
    """A folder, as an absolute path, or the name of a dataset."""
    task: str
    recipe: FineTuning
    data_digest: str
    """Identifies training and development sets."""
    seeds: tuple[int, ...]
    start: str | None = None
    """Digest of the encoder, fine-tuned on MNLI, that training starts from; None: the model itself."""
    keep_encoder: int | None = None
    """Keep the encoder that this seed trains; None: keep none."""


def read_unit(folder: Path) -> Unit:
    """Reads the unit that `run_unit` wrote.

    Raises:
        DamagedFile: it cannot be read.
    """
    return record_of(Unit, read_json(folder / UNIT), folder / UNIT, "a unit of work", "start again")


def run_unit(unit: Unit, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Runs the worker in ``folder`` and waits for its end. No process is left running in any case.

    Args:
        progress: called with the updates done and their total, over all seeds.

    Raises:
        StackingError: the worker failed; the message names its log.
        UserError: model or data cannot be used.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRESS).unlink(missing_ok=True)
    write_json(folder / UNIT, unit.model_dump(mode="json"))
    accelerator: Accelerator = "cuda" if find_machine().accelerators else "cpu"
    argv = [sys.executable, "-m", "stacking.glue.worker", str(folder)]
    job = Job(name="glue", argv=argv, ranks=1, logs=folder / "logs", accelerator=accelerator)
    job.log(0).unlink(missing_ok=True)
    running = Local().start(job)
    try:
        while (outcome := running.poll()) is None:
            _report(folder / PROGRESS, progress)
            time.sleep(_POLL_SECONDS)
    finally:
        running.kill()
    raise_for(outcome)


def _report(path: Path, progress: Callable[[int, int], None]) -> None:
    if path.is_file():
        found = read_json(path)
        progress(found["done"], found["total"])


def check_same(result: SeedResult, unit: Unit, path: Path) -> None:
    """Checks that a finished run was made with the same model, data and settings.

    Raises:
        UserError: it was not; the message names the first difference.
    """
    theirs, ours = result.recipe.model_dump(), unit.recipe.model_dump()
    changed = [f"{key} {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key]]
    for what, before, now in (
        ("another model", result.model, unit.model.digest),
        ("other data", result.data, unit.data_digest),
        ("another model fine-tuned on MNLI", result.start, unit.start),
    ):
        changed += [what] if before != now else []
    if changed:
        raise UserError(path, f"was made with {changed[0]}", "choose another --out, or remove it to train again")
