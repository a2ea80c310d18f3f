"""Types of command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class _Folder(click.Path):
    """A path as `pathlib.Path`; an empty one, often a shell variable that is not set, is not the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; give a path, or . for the current folder", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = _Folder()
