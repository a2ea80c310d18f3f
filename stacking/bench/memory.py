"""How much memory a contender takes beside whatever else lives in the process."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryMeter:
    """The most bytes of one contender on this rank: what it keeps, and what a window adds to that at its worst.

    On a GPU it is what torch has allocated there, on a CPU the resident memory of the process beyond what it was
    before the contender was made, so libraries and the other contenders are not in it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._return_free_memory()
        self._before = self._now()
        self._kept = self._most = 0
        self._at_start = 0

    def ready(self) -> None:
        """The contender is warm: what it has now it keeps."""
        self._return_free_memory()
        self._kept = max(0, self._now() - self._before)
        self._most = max(self._most, self._kept)

    def start(self, exact: bool) -> None:
        """A window begins.

        Args:
            exact: give what the allocator holds for later use back first, so that the window is seen to take it. That
                makes the next step slower.
        """
        if exact:
            self._return_free_memory()
        self._reset_peak()
        self._at_start = self._now()

    def stop(self) -> None:
        """The window is over."""
        self._most = max(self._most, self._kept + self._peak() - self._at_start)

    @property
    def most(self) -> int:
        return self._most

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._on_gpu else _status("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._on_gpu else _status("VmHWM")

    def _return_free_memory(self) -> None:
        """On a CPU: torch's tensors come from the C library, which keeps freed ones resident."""
        if not self._on_gpu and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)

    def _reset_peak(self) -> None:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            _RESET.write_text("5")  # VmHWM starts again at VmRSS
        except OSError:
            return  # then the peak of the whole process stands for that of the window

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))
