"""Shifts Python's clock by the number of seconds in a file; for machines without libfaketime.

Found by the interpreter through PYTHONPATH. Covers `time.time` and `time.time_ns`, not the operating system's calls.
"""

import os
import time

_TRUE = time.time


def _offset() -> float:
    try:
        with open(os.environ["CHAOS_CLOCK"]) as file:
            return float(file.read() or 0)
    except (KeyError, OSError, ValueError):
        return 0.0


time.time = lambda: _TRUE() + _offset()
time.time_ns = lambda: int(time.time() * 1e9)
