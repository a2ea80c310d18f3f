"""Reads the recipes that a run folder keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stacking.config.recipe import Recipe, load_recipe
from stacking.storage.files import read_sealed_text


def kept_recipe(file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe of a run folder, changed by ``overrides``.

    Raises:
        DamagedFile: the file was altered after it was written.
        UserError: an override is invalid.
    """
    read_sealed_text(file)
    return load_recipe(str(file), list(overrides))
