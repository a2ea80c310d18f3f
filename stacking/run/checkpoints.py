"""The checkpoints of a stage as files: which there are, which is whole, which is the one to go on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stacking.errors import DamagedFile
from stacking.storage.files import set_aside, verify_folder, write_atomically

_PREFIX = "global_step"


def tag(step: int) -> str:
    """DeepSpeed's name for the checkpoint after ``step`` updates of the stage."""
    return f"{_PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in ``folder``, oldest first; whether they are undamaged is not looked at."""
    found = [p for p in folder.glob(f"{_PREFIX}*") if p.is_dir() and p.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """The checkpoint that ``folder/latest`` names; None where there is no such file or it names none."""
    try:
        name = (folder / "latest").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        return None
    return next((checkpoint for checkpoint in checkpoints(folder) if checkpoint.name == name), None)


def point_latest(folder: Path, checkpoint: Path | None) -> None:
    """Let ``folder/latest`` name ``checkpoint``, atomically; ``None`` removes it."""
    if checkpoint is not None:
        write_atomically(folder / "latest", checkpoint.name)
    else:
        (folder / "latest").unlink(missing_ok=True)


def newest_good(folder: Path, on_damage: Callable[[DamagedFile], None]) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; ``latest`` names it from now on.

    A damaged one is reported through ``on_damage`` and set aside as ``*.damaged``, so that nothing uses it and
    nothing is lost.
    """
    for checkpoint in reversed(checkpoints(folder)):
        try:
            verify_folder(checkpoint)
        except DamagedFile as damage:
            on_damage(damage)
            set_aside(checkpoint)
            continue
        if latest(folder) != checkpoint:
            point_latest(folder, checkpoint)
        return checkpoint
    if folder.is_dir():
        point_latest(folder, None)
    return None
