"""Registers the launchers that a recipe or `--launcher` can name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stacking.errors import UserError
from stacking.launch.job import Launcher
from stacking.launch.local import Local
from stacking.launch.mpi import Mpi
from stacking.launch.slurm import Slurm


class LauncherEntry(NamedTuple):
    """How a launcher is opened, and where its ranks run."""

    open: Callable[..., Launcher]
    """Called with the hostfile if there is one."""
    takes_hosts: bool = False
    """Whether it takes a hostfile."""
    elsewhere: bool = False
    """Whether ranks may run on other machines than this one."""


LAUNCHERS: dict[str, LauncherEntry] = {
    "local": LauncherEntry(Local),
    "slurm": LauncherEntry(Slurm, elsewhere=True),
    "mpi": LauncherEntry(Mpi, takes_hosts=True, elsewhere=True),
}


def open_launcher(name: str, hostfile: Path | None = None) -> Launcher:
    """Returns the launcher called ``name``.

    Raises:
        UserError: the launcher does not work here, or takes no hostfile.
    """
    check_hostfile(name, hostfile)
    return LAUNCHERS[name].open(*([hostfile] if hostfile else []))


def runs_elsewhere(name: str | None) -> bool:
    """Returns whether the launcher may start ranks on other machines; None is the recipe's launcher, here."""
    return name is not None and LAUNCHERS[name].elsewhere


def check_hostfile(name: str, hostfile: Path | None) -> None:
    """Rejects a hostfile for a launcher that takes none.

    Raises:
        UserError: names the launchers that take one.
    """
    if hostfile is not None and not LAUNCHERS[name].takes_hosts:
        able = " or ".join(other for other, entry in LAUNCHERS.items() if entry.takes_hosts)
        raise UserError("--hostfile", f"is for mpirun, and the launcher is {name}", f"add --launcher {able}")
