"""Registers the launchers that a recipe or `--launcher` can name."""

from __future__ import annotations

from pathlib import Path

from stacking.errors import UserError
from stacking.launch.job import Launcher
from stacking.launch.local import Local
from stacking.launch.mpi import Mpi
from stacking.launch.slurm import Slurm

LAUNCHERS: dict[str, type[Local] | type[Mpi] | type[Slurm]] = {"local": Local, "slurm": Slurm, "mpi": Mpi}


def open_launcher(name: str, hostfile: Path | None = None) -> Launcher:
    """Returns the launcher called ``name``.

    Raises:
        UserError: the launcher does not work here, or takes no hostfile.
    """
    if hostfile is None:
        return LAUNCHERS[name]()
    if name != "mpi":
        raise UserError("--hostfile", f"is for mpirun, and the launcher is {name}", "add --launcher mpi")
    return Mpi(hostfile)
