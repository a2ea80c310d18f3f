"""Reads the null GPU's counters inside the program that runs on it."""

from __future__ import annotations

import ctypes
from functools import cache

_MOST = 1 << 20
"""Bytes of all counters as text."""


@cache
def _library() -> ctypes.CDLL:
    """The preloaded library, whose functions are among the program's own."""
    library = ctypes.CDLL(None)
    library.null_gpu_peak.restype = ctypes.c_size_t
    return library


def reset() -> None:
    """Sets all counters to zero, and the peak of the allocated memory to what is allocated now."""
    _library().null_gpu_reset()
    _library().null_gpu_peak(1)


def counts() -> dict[str, int]:
    """Returns all counters above zero, by name."""
    text = ctypes.create_string_buffer(_MOST)
    _library().null_gpu_read(text, _MOST)
    pairs = (line.split(" ", 1) for line in text.value.decode().splitlines())
    return {name: int(count) for count, name in pairs}


def peak() -> int:
    """Returns the most bytes of device memory that were allocated at once since `reset`."""
    return int(_library().null_gpu_peak(0))


def is_loaded() -> bool:
    """Whether this program runs on the null GPU."""
    return hasattr(ctypes.CDLL(None), "null_gpu_reset")
