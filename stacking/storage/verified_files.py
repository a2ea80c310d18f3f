"""Reads parts of files and verifies them as they are read, if their blocks' checksums are known."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stacking.errors import DamagedFile
from stacking.storage.blocks import BLOCK, digest, fill, open_file, verify_blocks
from stacking.storage.files import MANIFEST
from stacking.storage.os_errors import disk_errors, patiently


def read_bytes(path: Path, offset: int, into: np.ndarray) -> None:
    """Fills ``into`` with bytes of ``path`` beginning at ``offset``, without verifying them.

    Raises:
        DamagedFile: the file is missing or too short.
    """
    if _read_at(path, offset, into.view(np.uint8).data) < into.nbytes:
        raise DamagedFile(path, "ends before the tensors that it describes")


def _read_at(path: Path, offset: int, into: memoryview) -> int:
    def read() -> int:
        descriptor = open_file(path)
        try:
            return fill(descriptor, offset, into)
        finally:
            os.close(descriptor)

    with disk_errors(path):
        return patiently(read)


class _Block:
    """Holds a block that is in memory or being read; its lock is held while the data is in use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: np.ndarray | None = None


class VerifiedFiles:
    """Reads any bytes of files whose blocks have digests, verifying each block as it is loaded.

    Recently used blocks are cached, so that small reads, or interleaved reads at several places, load every block from
    disk only once.

    Args:
        digests: the block digests of each file.
        kept: the maximum number of cached blocks.
    """

    def __init__(self, digests: Mapping[Path, Sequence[str]], kept: int = 16) -> None:
        self._digests, self.kept = digests, kept
        self._blocks: OrderedDict[tuple[Path, int], _Block] = OrderedDict()
        self._spare: list[np.ndarray] = []
        self._verified: dict[Path, set[int]] = {path: set() for path in digests}
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, into: np.ndarray) -> None:
        """Fills ``into`` with bytes of ``path`` beginning at ``offset``.

        Raises:
            DamagedFile: a block is altered or missing.
        """
        left = into.view(np.uint8)
        while left.size:
            if path not in self._digests:
                raise DamagedFile(path.with_name(MANIFEST), f"does not list {path.name}")
            index, start = divmod(offset, BLOCK)
            if start == 0 and left.size >= BLOCK:
                count = self._read(path, index, left[:BLOCK])  # a whole block, read directly into place
            else:
                count = self._copy(path, index, start, left)
            if count <= 0:
                raise DamagedFile(path, "ends before the tensors that it describes")
            left, offset = left[count:], offset + count

    def verify_rest(self) -> None:
        """Verifies the blocks that have not been read.

        Raises:
            DamagedFile: a block is altered.
        """
        verify_blocks(self._digests, self._verified)

    def _copy(self, path: Path, index: int, start: int, into: np.ndarray) -> int:
        """Copies bytes of a block, beginning at ``start``, until ``into`` is full; returns the number of bytes."""
        block = self._kept_block(path, index)
        with block.lock:
            if block.data is None:
                buffer = self._buffer()
                block.data = buffer[: self._read(path, index, buffer)]
            count = max(0, min(block.data.size - start, into.size))
            np.copyto(into[:count], block.data[start : start + count])
        return count

    def _kept_block(self, path: Path, index: int) -> _Block:
        """Returns the block from the LRU cache, evicting the least recently used ones."""
        with self._lock:
            block = self._blocks.setdefault((path, index), _Block())
            self._blocks.move_to_end((path, index))
            while len(self._blocks) > self.kept:
                _, old = self._blocks.popitem(last=False)
                if old.lock.acquire(blocking=False):
                    if old.data is not None and old.data.base is not None:
                        self._spare.append(old.data.base)  # reusing memory is faster than allocating it
                    old.data = None
                    old.lock.release()
            return block

    def _buffer(self) -> np.ndarray:
        with self._lock:
            return self._spare.pop() if self._spare else np.empty(BLOCK, np.uint8)

    def _read(self, path: Path, index: int, into: np.ndarray) -> int:
        """Reads a block and verifies it; returns the number of bytes, which is smaller at the end of the file."""
        count = _read_at(path, index * BLOCK, into.data)
        if index >= len(self._digests[path]):
            raise DamagedFile(path, "ends before the tensors that it describes")
        if digest(into[:count]) != self._digests[path][index]:
            raise DamagedFile(path, "does not match its checksum")
        self._verified[path].add(index)
        return count
