"""Counts the cores that this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Returns the cores that the scheduler, a container or taskset leave to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
