"""Finds the locks of builds of DeepSpeed's kernels: a killed build leaves one, and every later start waits for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

_QUIET = 120.0
"""Seconds without a change after which no other machine that shares the folder is assumed to build there."""
_BUILDERS = ("ninja", "nvcc", "cicc", "ptxas", "cc1plus")


def build_locks() -> list[Path]:
    """Returns the locks of all builds, running or killed."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return sorted(Path(given).glob("*/lock"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return sorted((cache / "torch_extensions").glob("*/*/lock"))


def stale_locks() -> list[Path]:
    """Returns the locks of builds that were killed: no compiler runs here, and nothing has changed for two minutes."""
    locks = build_locks()
    if not locks or any(_name(process) in _BUILDERS for process in Path("/proc").glob("[0-9]*")):
        return []
    return [lock for lock in locks if time.time() - _changed(lock.parent) > _QUIET]


def _changed(folder: Path) -> float:
    """Returns the time of the latest change in a folder."""
    times = [0.0]
    for path in (folder, *folder.iterdir()):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # the build has just removed it
            continue
    return max(times)


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:  # it has ended
        return ""
