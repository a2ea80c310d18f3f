"""Keeps memory that every step frees and allocates again within the process."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_USUAL_TRIM, _USUAL_MMAP = 64 << 20, 32 << 20
"""The values that the GNU C library's dynamic thresholds reach in a process with large tensors (mallopt(3))."""


def keep_freed_memory() -> None:
    """Makes the GNU C library keep freed tensor memory instead of returning it to the kernel.

    Otherwise each step gets its large tensors in new pages, which the kernel must clear. Has no effect on other C
    libraries.
    """
    _set(_LARGEST, _LARGEST)


def return_freed_memory() -> None:
    """Restores the library's default behaviour."""
    _set(_USUAL_TRIM, _USUAL_MMAP)


def _set(trim: int, mmap: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, trim)
        mallopt(_M_MMAP_THRESHOLD, mmap)
