"""Defines command-line options and types that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stacking.errors import UserError
from stacking.launch.registry import LAUNCHERS


class _Folder(click.Path):
    """Converts a path to `pathlib.Path`; rejects an empty one, which is often an unset shell variable."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; give a path, or . for the current folder", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = _Folder()

COMMAND: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "no_args_is_help": True}
LAUNCHER = click.option(
    "--launcher",
    type=click.Choice(list(LAUNCHERS)),
    help="Launcher of the ranks. Default: the recipe's.",
)
ALLOW_NON_FINITE = click.option("--allow-non-finite", is_flag=True, help="Accept NaN and infinity.")
HOSTFILE = click.option("--hostfile", type=FOLDER, help="With --launcher mpi: mpirun's hostfile.")


def source_list(layers: int | None, layers_from: str | None) -> list[str] | None:
    """Returns the items of ``--layers-from``; None: ``--layers`` is given.

    Raises:
        UserError: both are given, or neither.
    """
    if (layers is None) == (layers_from is None):
        raise UserError("--layers", "cannot be used with --layers-from" if layers else "is missing", "give one of them")
    return layers_from.split(",") if layers_from is not None else None
