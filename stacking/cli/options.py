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

COMMAND: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "no_args_is_help": True}
LAUNCHER = click.option(
    "--launcher",
    type=click.Choice(["local", "slurm", "mpi"]),
    help="How to start the ranks. Default: the recipe's.",
)
ALLOW_NON_FINITE = click.option("--allow-non-finite", is_flag=True, help="Take NaN and infinity as they are.")
HOSTFILE = click.option("--hostfile", type=FOLDER, help="With --launcher mpi: the hosts, as mpirun takes them.")
