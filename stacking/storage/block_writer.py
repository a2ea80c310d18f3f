"""Writes a safetensors file from a training state block by block, in any order and with any number of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from stacking.storage.blocks import BLOCK, Entry, digest, entry_of
from stacking.storage.safetensors_file import FileLayout

SPAN = 8 * BLOCK
"""Bytes per write of a thread."""


class _Source(Protocol):
    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None: ...


class BlockWriter:
    """Writes a file of float32 tensors: fills spans from ``source``, hashes them by block and writes them in place.

    Use as a context manager; every span must be written exactly once.
    """

    def __init__(self, path: Path, layout: FileLayout, kind: str, source: _Source) -> None:
        self.path, self.layout, self.kind = path, layout, kind
        self._source = source
        self._digests = [""] * -(-layout.size // BLOCK)

    def __enter__(self) -> BlockWriter:
        self._file = open(self.path, "wb", 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    @property
    def spans(self) -> int:
        return -(-self.layout.size // SPAN)

    @property
    def entry(self) -> Entry:
        """The file's entry in a manifest."""
        return entry_of(self.layout.size, self._digests)

    def write(self, index: int) -> int:
        """Fills and writes one span; returns the number of tensor bytes in it."""
        first = index * SPAN
        last = min(first + SPAN, self.layout.size)
        span = _buffer()[: last - first]
        header = np.frombuffer(self.layout.header, np.uint8)[first:last]
        span[: header.size] = header
        for part in self.layout.parts(first, last):
            into = span[part.offset : part.offset + part.nbytes].view(np.float32)
            self._source.fill(self.kind, part.name, part.start // into.itemsize, into)
        for start in range(0, span.size, BLOCK):
            self._digests[(first + start) // BLOCK] = digest(span[start : start + BLOCK])
        self._write(span.data, first)
        return span.size - header.size

    def _write(self, data: memoryview, offset: int) -> None:
        start, size = offset, len(data)
        while len(data):
            count = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[count:], offset + count
        if hasattr(os, "posix_fadvise"):  # starts writeback now, so that fsync has less to wait for
            os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_DONTNEED)


_own = threading.local()


def _buffer() -> np.ndarray:
    """Returns this thread's buffer for a span; reusing memory is faster than allocating it."""
    if not hasattr(_own, "span"):
        _own.span = np.empty(SPAN, np.uint8)
    span: np.ndarray = _own.span
    return span


class Meter:
    """Sums the progress of several threads for a progress bar."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._report:
                self._report(self._done, self._total)
