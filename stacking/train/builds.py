"""Waits for builds of DeepSpeed's kernels; DeepSpeed itself would wait silently, and for ever."""

from __future__ import annotations

import sys
import time

from stacking.errors import UserError
from stacking.hardware.extension_locks import build_locks, stale_locks


def wait_for_builds() -> None:
    """Waits until no build is running, and says for which one.

    Raises:
        UserError: a build was killed and left its lock.
    """
    told = False
    while locks := build_locks():
        for lock in stale_locks():
            problem = "is the lock of a build of a DeepSpeed kernel that was killed; every start would wait for it"
            raise UserError(lock, problem, f"run `rm {lock}`")
        if not told:
            print(f"waiting for the build that holds {locks[0]}", file=sys.stderr, flush=True)
            told = True
        time.sleep(1)
