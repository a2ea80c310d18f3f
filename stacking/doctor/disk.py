"""Measures the run folder's speed and checks what runs need of it: `python -m stacking.doctor.disk FOLDER`.

It is a separate process because a dead file server blocks its caller, and no signal interrupts that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_BLOCK = 4 << 20
_MOST = 256 << 20
"""Bytes to write; they are removed at once."""
_LONGEST = 4.0
"""Seconds after which writing stops."""
_SPARE = 1 << 30
"""Bytes that always stay free."""


def folder(path: Path) -> dict[str, Any]:
    """Returns the fields of `facts.Folder`; if ``path`` does not exist, its nearest existing parent is examined."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())
    found = os.statvfs(there)
    free = found.f_frsize * found.f_bavail
    return {
        "path": str(path.absolute()),
        "filesystem": filesystem(there, Path("/proc/self/mountinfo").read_text(errors="replace")),
        "free": free,
        "used": _used(path),
        **_measure(there, min(_MOST, max(0, free - _SPARE))),
    }


def filesystem(path: Path, mounts: str) -> str:
    """Returns the type of the file system that holds ``path``, from /proc/self/mountinfo; the last mount wins."""
    best, kind = -1, "unknown"
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4].encode().decode("unicode_escape")
        inside = str(path) == point or str(path).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind


def _measure(there: Path, most: int) -> dict[str, Any]:
    """Measures write and read rates with an unlinked temporary file, and whether it can be locked."""
    name = there / f".stacking-doctor.{os.getpid()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)  # at once, so that it is removed however this process ends
    try:
        lock_error = _lock(descriptor)
        if most < _BLOCK:
            return {"lock_error": lock_error}
        written, seconds = _write(descriptor, most)
        cached = _forget(descriptor)
        return {
            "lock_error": lock_error,
            "write": written / seconds,
            "read": _read(descriptor),
            "cached": cached,
        }
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> str:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "") or str(error)
    return ""


def _write(descriptor: int, most: int) -> tuple[int, float]:
    """Returns bytes written and seconds until they are on the disk."""
    block = os.urandom(_BLOCK)  # random, so that a compressing file system does not look faster than it is
    written, started = 0, time.perf_counter()
    while written < most and time.perf_counter() - started < _LONGEST:
        written += os.write(descriptor, block)
    os.fsync(descriptor)
    return written, max(time.perf_counter() - started, 1e-9)


def _forget(descriptor: int) -> bool:
    """Asks the kernel to drop the file from the page cache; returns whether it may still be cached."""
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return True
    return False


def _read(descriptor: int) -> float:
    os.lseek(descriptor, 0, os.SEEK_SET)
    total, started = 0, time.perf_counter()
    while (block := os.read(descriptor, _BLOCK)) and time.perf_counter() - started < _LONGEST:
        total += len(block)
    return total / max(time.perf_counter() - started, 1e-9)


def _used(path: Path) -> int:
    """Returns the bytes that a run in ``path`` already uses."""
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:  # a live run removes old checkpoints meanwhile
                continue
    return total


if __name__ == "__main__":
    try:
        print(json.dumps(folder(Path(sys.argv[1]))))
    except OSError as error:
        sys.exit(f"{error.strerror}: {error.filename or sys.argv[1]}")
