"""Lists and verifies the checkpoint folders of a stage, and selects the one to resume from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from stacking.errors import DamagedFile
from stacking.storage.files import set_aside, verify_folder, write_atomically

_LOG = logging.getLogger(__name__)
SAVING = ".saving"
"""The folder in which the next checkpoint is being written."""
_PREFIX = "global_step"


def tag(step: int) -> str:
    """Returns DeepSpeed's name for the checkpoint after ``step`` updates of the stage."""
    return f"{_PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    """Returns the number of updates of the stage after which ``checkpoint`` was written: the inverse of `tag`."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in ``folder``, oldest first, without verifying their content."""
    found = [p for p in folder.glob(f"{_PREFIX}*") if p.is_dir() and p.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """Returns the checkpoint that ``folder/latest`` names; None if there is no such file or checkpoint."""
    try:
        name = (folder / "latest").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        return None
    return next((checkpoint for checkpoint in checkpoints(folder) if checkpoint.name == name), None)


def point_latest(folder: Path, checkpoint: Path | None) -> None:
    """Points ``folder/latest`` to ``checkpoint`` atomically; None removes it."""
    if checkpoint is not None:
        write_atomically(folder / "latest", checkpoint.name)
    elif (folder / "latest").is_file():
        (folder / "latest").unlink()


def newest_good(folder: Path, on_damage: Callable[[DamagedFile], None]) -> Path | None:
    """Returns the newest checkpoint that is undamaged, and points ``latest`` to it.

    A damaged checkpoint is reported through ``on_damage`` and set aside as ``*.damaged``, so that nothing uses it and
    nothing is lost. An unfinished checkpoint is removed. Must not be called while the stage trains.
    """
    if folder.exists() and not folder.is_dir():
        on_damage(DamagedFile(folder, "is not a folder"))
        set_aside(folder)
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    for checkpoint in reversed(checkpoints(folder)):
        try:
            verify_folder(checkpoint)
        except DamagedFile as damage:
            on_damage(damage)
            set_aside(checkpoint)
            continue
        if latest(folder) != checkpoint:
            point_latest(folder, checkpoint)
        _LOG.debug("%s is the newest undamaged checkpoint", checkpoint)
        return checkpoint
    if folder.is_dir():
        point_latest(folder, None)
    return None
