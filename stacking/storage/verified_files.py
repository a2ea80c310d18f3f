"""Reads parts of files, and verifies them as they are read where their blocks' checksums are known."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stacking.errors import DamagedFile
from stacking.storage.blocks import BLOCK, digest, fill, open_file, verify_blocks
from stacking.storage.files import MANIFEST, block_digests
from stacking.storage.os_errors import disk_errors, patiently


def verified_files(folder: Path, manifest: Mapping[str, Any]) -> VerifiedFiles | None:
    """What verifies the files of a sealed folder as they are read; None where only whole files have checksums."""
    found = block_digests(folder, manifest["files"])
    listed = {path: digests for path, digests in found.items() if digests is not None}
    return VerifiedFiles(listed) if len(listed) == len(found) else None


def read_bytes(path: Path, offset: int, into: np.ndarray) -> None:
    """Fill ``into`` with the bytes of ``path`` from ``offset`` on, unverified.

    Raises:
        DamagedFile: the file is missing or too short.
    """
    if _read_at(path, offset, into.view(np.uint8).data) < into.nbytes:
        raise DamagedFile(path, "ends before the tensors that it describes")


def _read_at(path: Path, offset: int, into: memoryview) -> int:
    """Read from byte ``offset`` on until ``into`` is full or the file ends; returns the bytes read."""

    def read() -> int:
        descriptor = open_file(path)
        try:
            return fill(descriptor, offset, into)
        finally:
            os.close(descriptor)

    with disk_errors(path):
        return patiently(read)


class _Block:
    """A block in memory, or one that a thread is reading; its lock is held while its data are used."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: np.ndarray | None = None


class VerifiedFiles:
    """Reads any bytes of files whose blocks have digests; each block is verified as it comes into memory.

    The blocks that were used last are kept, so that reading in small parts, or in several places by turns, reads every
    block of the disk once.

    Args:
        digests: of each file its blocks' digests.
        kept: blocks in memory at most.
    """

    def __init__(self, digests: Mapping[Path, Sequence[str]], kept: int = 16) -> None:
        self._digests, self.kept = digests, kept
        self._blocks: OrderedDict[tuple[Path, int], _Block] = OrderedDict()
        self._spare: list[np.ndarray] = []
        self._verified: dict[Path, set[int]] = {path: set() for path in digests}
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, into: np.ndarray) -> None:
        """Fill ``into`` with the bytes of ``path`` from ``offset`` on.

        Raises:
            DamagedFile: a block of them is not as it was written, or missing.
        """
        left = into.view(np.uint8)
        while left.size:
            if path not in self._digests:
                raise DamagedFile(path.with_name(MANIFEST), f"does not list {path.name}")
            index, start = divmod(offset, BLOCK)
            if start == 0 and left.size >= BLOCK:
                count = self._read(path, index, left[:BLOCK])  # as a whole, without a detour
            else:
                count = self._copy(path, index, start, left)
            if count <= 0:
                raise DamagedFile(path, "ends before the tensors that it describes")
            left, offset = left[count:], offset + count

    def verify_rest(self) -> None:
        """Verify the blocks that nothing has read.

        Raises:
            DamagedFile: one is not as it was written.
        """
        verify_blocks(self._digests, self._verified)

    def _copy(self, path: Path, index: int, start: int, into: np.ndarray) -> int:
        """Copy from byte ``start`` of a block on as much as there is room for; returns how much that was."""
        block = self._kept_block(path, index)
        with block.lock:
            if block.data is None:
                buffer = self._buffer()
                block.data = buffer[: self._read(path, index, buffer)]
            count = max(0, min(block.data.size - start, into.size))
            np.copyto(into[:count], block.data[start : start + count])
        return count

    def _kept_block(self, path: Path, index: int) -> _Block:
        """The block, which is now the one that was used last; those that were not for the longest time have to go."""
        with self._lock:
            block = self._blocks.setdefault((path, index), _Block())
            self._blocks.move_to_end((path, index))
            while len(self._blocks) > self.kept:
                _, old = self._blocks.popitem(last=False)
                if old.lock.acquire(blocking=False):
                    if old.data is not None and old.data.base is not None:
                        self._spare.append(old.data.base)  # memory that was used before is faster than new
                    old.data = None
                    old.lock.release()
            return block

    def _buffer(self) -> np.ndarray:
        with self._lock:
            return self._spare.pop() if self._spare else np.empty(BLOCK, np.uint8)

    def _read(self, path: Path, index: int, into: np.ndarray) -> int:
        """Read a block and verify it; returns its bytes, which are fewer at the end of the file."""
        count = _read_at(path, index * BLOCK, into.data)
        if index >= len(self._digests[path]):
            raise DamagedFile(path, "ends before the tensors that it describes")
        if digest(into[:count]) != self._digests[path][index]:
            raise DamagedFile(path, "does not match its checksum")
        self._verified[path].add(index)
        return count
