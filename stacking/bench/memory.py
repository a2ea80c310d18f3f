"""Measures the memory of a contender, apart from everything else in the process."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryMeter:
    """Peak bytes of one contender on this rank: what it keeps, plus the largest increase within a window.

    On a GPU this is what torch has allocated; on a CPU it is the resident memory beyond that before the contender was
    created, so libraries and other contenders do not count.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._return_free_memory()
        self._before = self._now()
        self._kept = self._most = 0
        self._at_start = 0

    def ready(self) -> None:
        """Mark the contender as warm: what it holds now is permanent."""
        self._return_free_memory()
        self._kept = max(0, self._now() - self._before)
        self._most = max(self._most, self._kept)

    def start(self, exact: bool) -> None:
        """Begin a window.

        Args:
            exact: first release the allocator's cached memory, so that the window's own allocations show. That slows
                down the next step.
        """
        if exact:
            self._return_free_memory()
        self._reset_peak()
        self._at_start = self._now()

    def stop(self) -> None:
        """End the window."""
        self._most = max(self._most, self._kept + self._peak() - self._at_start)

    @property
    def most(self) -> int:
        return self._most

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._on_gpu else _status("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._on_gpu else _status("VmHWM")

    def _return_free_memory(self) -> None:
        """Return freed memory to the system: on a CPU, the C library keeps freed tensors resident."""
        if not self._on_gpu and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)

    def _reset_peak(self) -> None:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            _RESET.write_text("5")  # resets VmHWM to VmRSS
        except OSError:
            return  # the peak of the whole process is used for the window

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"


def _status(key: str) -> int:
    """Read a line of /proc/self/status, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))
