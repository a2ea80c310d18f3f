"""Checksums of files block by block: any part of a file can be verified when it is read, by any thread, once.

A manifest's entry for a file has its size and its ``checksum``. That of a file of at most one block is the XXH3-128 of
its bytes. A longer file has under ``blocks`` the XXH3-128 of every block, in hex and in order, and its checksum is the
XXH3-128 of theirs. Manifests without ``blocks`` for such files, of earlier versions, have that of the whole file.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from stacking.errors import DamagedFile
from stacking.parallel import each

BLOCK = 1 << 20
"""Bytes."""
_SPAN = 32
"""Blocks that a thread takes at a time."""
_HEX = 32
"""Characters of a digest."""

Entry = dict[str, Any]


def digest(data: Any) -> str:
    """XXH3-128 in hex: made to detect damage at memory speed, not against forgery."""
    return xxhash.xxh3_128_hexdigest(data)


def entry_of(size: int, digests: Sequence[str]) -> Entry:
    """What a manifest says of a file of ``size`` bytes whose blocks have these digests."""
    if size <= BLOCK:
        return {"bytes": size, "checksum": digests[0] if digests else digest(b"")}
    blocks = "".join(digests)
    return {"bytes": size, "checksum": digest(blocks.encode()), "blocks": blocks}


def digests_of(entry: Mapping[str, Any]) -> list[str] | None:
    """The digests of a file's blocks; None where the entry has only that of the whole file.

    Raises:
        ValueError: the entry contradicts itself.
    """
    if entry["bytes"] <= BLOCK:
        return [entry["checksum"]] if entry["bytes"] else []
    if "blocks" not in entry:
        return None
    blocks = str(entry["blocks"])
    if len(blocks) != _HEX * -(-entry["bytes"] // BLOCK) or digest(blocks.encode()) != entry["checksum"]:
        raise ValueError("the blocks' checksums do not belong to the file's")
    return [blocks[i : i + _HEX] for i in range(0, len(blocks), _HEX)]


class BlockHasher:
    """The entry of a file that is written as a stream."""

    def __init__(self) -> None:
        self._digests: list[str] = []
        self._block, self._size = xxhash.xxh3_128(), 0

    def update(self, data: memoryview) -> None:
        """Count the next bytes of the file."""
        while len(data):
            part = data[: BLOCK - self._size % BLOCK]
            self._block.update(part)
            self._size += len(part)
            data = data[len(part) :]
            if self._size % BLOCK == 0:
                self._digests.append(self._block.hexdigest())
                self._block.reset()

    def entry(self) -> Entry:
        rest = [self._block.hexdigest()] if self._size % BLOCK else []
        return entry_of(self._size, [*self._digests, *rest])


def hash_files(paths: Sequence[Path]) -> list[Entry]:
    """The entries of files, read once, by several threads."""
    sizes = [path.stat().st_size for path in paths]
    digests = [[""] * -(-size // BLOCK) for size in sizes]

    def work(span: tuple[int, int]) -> None:
        file, first = span
        for index, data in _read_span(paths[file], first, sizes[file]):
            digests[file][index] = digest(data)

    each(work, ((file, first) for file, size in enumerate(sizes) for first in range(0, size, _SPAN * BLOCK)))
    return [entry_of(size, found) for size, found in zip(sizes, digests, strict=True)]


def verify_blocks(files: Mapping[Path, Sequence[str]], done: Mapping[Path, set[int]] | None = None) -> None:
    """Compare every block of the files with its digest, by several threads, but for those that are ``done``.

    Raises:
        DamagedFile: one differs.
    """
    skipped = done or {}

    def work(span: tuple[Path, int]) -> None:
        path, first = span
        known = skipped.get(path, set())
        if known.issuperset(range(first // BLOCK, min(first // BLOCK + _SPAN, len(files[path])))):
            return
        for index, data in _read_span(path, first, len(files[path]) * BLOCK, known):
            if digest(data) != files[path][index]:
                raise DamagedFile(path, "does not match its checksum")

    each(
        work,
        ((path, first) for path, blocks in files.items() for first in range(0, len(blocks) * BLOCK, _SPAN * BLOCK)),
    )


def _read_span(path: Path, first: int, end: int, skipped: Any = ()) -> Any:
    """(number, bytes) of the blocks from byte ``first`` on, `_SPAN` at most; the bytes hold until the next ones."""
    buffer = np.empty(BLOCK, np.uint8)
    descriptor = _open(path)
    try:
        for start in range(first, min(first + _SPAN * BLOCK, end), BLOCK):
            if start // BLOCK not in skipped:
                yield start // BLOCK, buffer[: _fill(descriptor, start, buffer)]
    finally:
        os.close(descriptor)


def read_bytes(path: Path, offset: int, into: np.ndarray) -> None:
    """Fill ``into`` with the bytes of ``path`` from ``offset`` on, unverified.

    Raises:
        DamagedFile: the file is missing or too short.
    """
    descriptor = _open(path)
    try:
        if _fill(descriptor, offset, into.view(np.uint8)) < into.nbytes:
            raise DamagedFile(path, "ends before the tensors that it describes")
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise DamagedFile(path, "is missing") from None


def _fill(descriptor: int, offset: int, buffer: np.ndarray) -> int:
    """Read until ``buffer`` is full or the file ends; returns the bytes read."""
    view, done = buffer.data, 0
    while done < len(view) and (count := os.preadv(descriptor, [view[done:]], offset + done)):
        done += count
    return done


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
        descriptor = _open(path)
        try:
            count = _fill(descriptor, index * BLOCK, into)
        finally:
            os.close(descriptor)
        if index >= len(self._digests[path]):
            raise DamagedFile(path, "ends before the tensors that it describes")
        if digest(into[:count]) != self._digests[path][index]:
            raise DamagedFile(path, "does not match its checksum")
        self._verified[path].add(index)
        return count
