"""Memory that is freed and wanted again in every step stays with the process."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_USUAL_TRIM, _USUAL_MMAP = 64 << 20, 32 << 20
"""Where the GNU C library's own thresholds settle in a process that allocates large tensors (mallopt(3))."""


def keep_freed_memory() -> None:
    """Let the GNU C library keep what tensors on the CPU free, instead of handing it to the kernel and back.

    Without this each step gets its large tensors as new pages, which the kernel clears one by one. Other C libraries
    are left as they are.
    """
    _set(_LARGEST, _LARGEST)


def return_freed_memory() -> None:
    """What the library does by itself."""
    _set(_USUAL_TRIM, _USUAL_MMAP)


def _set(trim: int, mmap: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, trim)
        mallopt(_M_MMAP_THRESHOLD, mmap)
