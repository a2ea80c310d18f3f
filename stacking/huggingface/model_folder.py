"""Recognises model folders: runs, Hugging Face folders, DeepSpeed checkpoints and states. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stacking.huggingface.folder import CONFIGS
from stacking.storage.files import MANIFEST, read_sealed

ModelKind = Literal["run", "huggingface", "checkpoint", "state"]
"""An export of this project is a Hugging Face folder like any other."""


def kind_of(folder: Path) -> ModelKind | None:
    """Returns what kind of model ``folder`` holds, from its file names; None: none, or it is not a folder.

    What transformers' Trainer saves under DeepSpeed is both a Hugging Face folder and a checkpoint, and counts as the
    former.

    Raises:
        DamagedFile: its manifest is damaged.
    """
    if (folder / "plan.json").is_file():
        return "run"
    if any((folder / name).exists() for name in CONFIGS):
        return "huggingface"
    if (folder / "latest").is_file() or any(folder.glob("*_states.pt")):
        return "checkpoint"
    if (folder / MANIFEST).is_file() and read_sealed(folder / MANIFEST).get("kind") == "state":
        return "state"
    return None
