"""Which files all ranks go on from: rank 0 decides, and every rank makes sure that it sees what rank 0 sees.

A network file system may show a node an older content of a folder for a while. Ranks that decided for themselves could
then load different steps.
"""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

from stacking.errors import StackingError
from stacking.run.checkpoints import checkpoints, latest
from stacking.storage.blocks import digest
from stacking.storage.files import MANIFEST
from stacking.train.rank_sync import Agreement

_PATIENCE = 90.0
"""Seconds that a rank waits for a cache to catch up; NFS keeps attributes of folders for 60 unless told otherwise."""


def agreed_checkpoint(agreement: Agreement, folder: Path, patience: float = _PATIENCE) -> Path | None:
    """The checkpoint in ``folder`` that all ranks go on from, or None where there is none.

    Rank 0 also removes what an interrupted save has left.

    Raises:
        StackingError: some rank does not see it as rank 0 does.
    """
    name = agreement.decided(lambda: _chosen(folder))
    if name is None:
        return None
    require_same_view(agreement, folder / name, patience)
    return folder / name


def require_same_view(agreement: Agreement, folder: Path, patience: float = _PATIENCE) -> None:
    """Make sure that the sealed ``folder`` has the same manifest on all ranks; whoever reads the files verifies them.

    Raises:
        StackingError: after ``patience`` seconds a rank still sees another one; all ranks raise it.
    """
    expected = agreement.decided(lambda: _seal(folder))
    deadline = time.monotonic() + patience
    while (seen := _seal(folder)) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    others = {host for host, its in agreement.gathered((socket.gethostname(), seen)) if its != expected}
    if others:
        raise StackingError(
            f"{folder}: {', '.join(sorted(others))} sees another content than rank 0, so nothing was loaded: a file "
            "cache is stale, or the nodes do not share the folder"
        )


def _chosen(folder: Path) -> str | None:
    shutil.rmtree(folder / ".saving", ignore_errors=True)
    found = latest(folder) or next(reversed(checkpoints(folder)), None)
    return None if found is None else found.name


def _seal(folder: Path) -> str | None:
    try:
        return digest((folder / MANIFEST).read_bytes())
    except OSError:  # missing, or a stale file handle
        return None
