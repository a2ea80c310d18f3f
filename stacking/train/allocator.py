"""Configures the allocators of tensors: memory that every step frees and allocates again stays within the process."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_USUAL_TRIM, _USUAL_MMAP = 64 << 20, 32 << 20
"""The values that the GNU C library's dynamic thresholds reach in a process with large tensors (mallopt(3))."""
_USERS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables with which users configure PyTorch's allocator; the second is the name before torch 2.9."""


def keep_freed_memory() -> None:
    """Makes the GNU C library keep freed tensor memory instead of returning it to the kernel.

    Otherwise each step gets its large tensors in new pages, which the kernel must clear. Has no effect on other C
    libraries.
    """
    _set(_LARGEST, _LARGEST)


def return_freed_memory() -> None:
    """Restores the library's default behaviour."""
    _set(_USUAL_TRIM, _USUAL_MMAP)


def let_segments_grow() -> None:
    """Lets PyTorch's segments of GPU memory grow in place, unless the user has configured its allocator.

    Ragged micro-batches have ever new sizes, for which fixed segments leave gaps: up to half more than the peak. Some
    virtual GPUs cannot map memory later, which shows at the first allocation; there, segments stay fixed.

    Source: ``expandable_segments`` in https://docs.pytorch.org/docs/stable/notes/cuda.html
    """
    if any(os.environ.get(name) for name in _USERS):
        return
    _configure("expandable_segments:True")
    try:
        torch.empty(1, device="cuda")
    except RuntimeError as error:
        _configure("expandable_segments:False")
        print(f"GPU memory: fixed segments, since growing ones fail ({error})", file=sys.stderr, flush=True)


def _configure(settings: str) -> None:
    """Changes the settings of PyTorch's allocator, by a function that has had two names and no public one."""
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (change or torch.cuda.memory._set_allocator_settings)(settings)


def _set(trim: int, mmap: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, trim)
        mallopt(_M_MMAP_THRESHOLD, mmap)
