"""Measures the duration, peak memory and peak disk use of a running program from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stacking.errors import StackingError
from stacking.launch.job import Outcome, RunningJob

_POLL_SECONDS = 0.02
_DISK_POLLS = 10
"""Number of polls between disk measurements."""
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Observation:
    """Holds the measurements of a program."""

    seconds: float
    memory: int
    """Peak resident bytes of all of its processes together."""
    disk: int
    """Peak bytes of the files below the watched folder; hard links count once."""


def observe(argv: Sequence[str], watched: Path, log: Path) -> Observation:
    """Runs ``argv`` to its end, its output in ``log``.

    Raises:
        StackingError: it failed.
    """
    with open(log, "wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
        with _Watch(process.pid, watched) as watch:
            code = process.wait()
            seconds = time.monotonic() - started
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise StackingError(f"{' '.join(argv[:4])} … ended with {code}: {' '.join(last)} (all of it: {log})")
    return Observation(seconds, watch.memory, watch.disk)


def observe_job(job: RunningJob, watched: Path | None) -> tuple[Observation, Outcome]:
    """Waits for a job that was started by this process; its memory is not looked at."""
    started = time.monotonic()
    try:
        while (outcome := job.poll()) is None:
            time.sleep(_POLL_SECONDS)
    finally:
        job.kill()
    return Observation(time.monotonic() - started, 0, bytes_below(watched) if watched else 0), outcome


class _Watch:
    """Polls a process and its descendants, and a folder, from a thread."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.memory = self.disk = 0
        self._pid, self._folder = pid, folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.disk = max(self.disk, bytes_below(self._folder))

    def _poll(self) -> None:
        polls = 0
        while not self._ended.wait(_POLL_SECONDS):
            family = _family(self._pid)
            peak = _resident(self._pid, "VmHWM")
            self.memory = max(self.memory, peak, sum(_resident(pid, "VmRSS") for pid in family))
            if polls % _DISK_POLLS == 0:
                self.disk = max(self.disk, bytes_below(self._folder))
            polls += 1


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(descendant for child in children for descendant in _family(int(child)))]


def _resident(pid: int, field: str) -> int:
    """VmRSS or VmHWM of a process in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)


def peak_memory() -> int:
    """Returns this process's peak resident memory in bytes."""
    return _resident(os.getpid(), "VmHWM")


def resident_memory() -> int:
    """Returns this process's current resident memory in bytes."""
    return _resident(os.getpid(), "VmRSS")


def forget_peak() -> None:
    """Resets the peak of `peak_memory`."""
    Path("/proc/self/clear_refs").write_text("5")


def bytes_below(folder: Path) -> int:
    """The sizes of all files below ``folder``."""
    sizes: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.stat(os.path.join(place, name))
            except FileNotFoundError:
                continue  # temporary, and gone meanwhile
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def remember(files: Iterable[Path]) -> None:
    """Reads files, so that the page cache holds as much of them as it has room for."""
    buffer = bytearray(_BLOCK)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def back_memory(count: int, sharing: int = 1) -> None:
    """Uses ``count`` bytes of memory and gives them back; fewer where that would take any from the page cache.

    A virtual machine's host lends memory when it is first used, and takes it back some seconds after it was freed: that
    is slower than anything measured here, and would meet one contender and spare the next.

    Args:
        sharing: processes that do this at the same time.
    """
    count = min(count, int(0.8 * _meminfo("MemFree")) // sharing)
    with contextlib.suppress(MemoryError):
        np.empty(count, np.uint8)[:: os.sysconf("SC_PAGE_SIZE")] = 1


def available_memory() -> int:
    """Returns the bytes of memory still available to programs."""
    return _meminfo("MemAvailable")


def _meminfo(field: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def forget(files: Iterable[Path]) -> None:
    """Drops clean files from the page cache."""
    for path in files:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
