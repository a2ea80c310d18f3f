"""Reads the null GPU's counters inside the program that runs on it."""

from __future__ import annotations

import ctypes

_PROGRAM = ctypes.CDLL(None)
"""This program, with the functions of the preloaded library."""
_MOST = 1 << 20
"""Bytes of all counters as text."""


def reset() -> None:
    """Sets all counters to zero."""
    _PROGRAM.null_gpu_reset()


def counts() -> dict[str, int]:
    """Returns all counters above zero, by name."""
    text = ctypes.create_string_buffer(_MOST)
    _PROGRAM.null_gpu_read(text, _MOST)
    pairs = (line.split(" ", 1) for line in text.value.decode().splitlines())
    return {name: int(count) for count, name in pairs}
