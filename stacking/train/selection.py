"""Selects the files from which all ranks resume: rank 0 decides, and every rank checks that it sees the same content.

A network file system may show stale folder content on some nodes for a while, so ranks that decided on their own could
load different steps.
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
"""Seconds that a rank waits for a stale cache; NFS caches folder attributes for 60 s by default."""


def agreed_checkpoint(agreement: Agreement, folder: Path, patience: float = _PATIENCE) -> Path | None:
    """Returns the checkpoint in ``folder`` from which all ranks resume, or None.

    Rank 0 also removes the files of an interrupted save.

    Raises:
        StackingError: a rank sees other content than rank 0.
    """
    name = agreement.decided(lambda: _chosen(folder))
    if name is None:
        return None
    require_same_view(agreement, folder / name, patience)
    return folder / name


def require_same_view(agreement: Agreement, folder: Path, patience: float = _PATIENCE) -> None:
    """Checks that the sealed ``folder`` has the same manifest on all ranks; its files are verified when they are read.

    Raises:
        StackingError: after ``patience`` seconds a rank still sees another manifest; raised on all ranks.
    """
    expected = agreement.decided(lambda: _seal(folder))
    deadline = time.monotonic() + patience
    while (seen := _seal(folder)) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    others = {host for host, its in agreement.gathered((socket.gethostname(), seen)) if its != expected}
    if others:
        raise StackingError(
            f"{folder}: {', '.join(sorted(others))} sees other content than rank 0, so nothing was loaded: a file "
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
