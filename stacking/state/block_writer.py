"""Writes a safetensors file from a training state block by block, in any order and by any number of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from stacking.blocks import BLOCK, Entry, digest, entry_of
from stacking.state.safetensors_file import Layout


class _Source(Protocol):
    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None: ...


class BlockWriter:
    """A file of float32 tensors; its blocks are filled from ``source``, hashed, and written where they belong.

    Use as a context manager; every block must be written once.
    """

    def __init__(self, path: Path, layout: Layout, kind: str, source: _Source) -> None:
        self.path, self.layout, self.kind = path, layout, kind
        self._source = source
        self._digests = [""] * -(-layout.size // BLOCK)

    def __enter__(self) -> BlockWriter:
        self._file = open(self.path, "wb", 0)  # noqa: SIM115 (closed by __exit__)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    @property
    def blocks(self) -> int:
        return len(self._digests)

    @property
    def entry(self) -> Entry:
        """The file's entry in a manifest."""
        return entry_of(self.layout.size, self._digests)

    def write(self, index: int) -> int:
        """Fill and write one block; returns the bytes of tensors in it."""
        first = index * BLOCK
        last = min(first + BLOCK, self.layout.size)
        block = np.empty(last - first, np.uint8)
        header = np.frombuffer(self.layout.header, np.uint8)[first:last]
        block[: header.size] = header
        for part in self.layout.parts(first, last):
            into = block[part.offset : part.offset + part.nbytes].view(np.float32)
            self._source.fill(self.kind, part.name, part.start // into.itemsize, into)
        self._digests[index] = digest(block)
        self._write(block.data, first)
        return block.size - header.size

    def _write(self, data: memoryview, offset: int) -> None:
        while len(data):
            count = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[count:], offset + count


class Meter:
    """Adds up what several threads have done, for a progress bar."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._report:
                self._report(self._done, self._total)
