"""Computes checksums of files block by block, so that any part of a file can be verified as it is read.

A manifest's entry for a file has its size and its ``checksum``. For a file of at most one block this is the XXH3-128 of
its bytes. For a longer file, ``blocks`` lists the XXH3-128 of every block, in hex and in order, and the checksum is the
XXH3-128 of that list.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from stacking.errors import DamagedFile
from stacking.storage.os_errors import disk_errors, patiently
from stacking.storage.threads import each

BLOCK = 1 << 20
"""Bytes."""
_SPAN = 32
"""Blocks that a thread processes at a time."""
_HEX = 32
"""Length of a digest in characters."""

Entry = dict[str, Any]


def digest(data: Any) -> str:
    """Returns the XXH3-128 in hex; it detects damage at memory speed, but not forgery."""
    return xxhash.xxh3_128_hexdigest(data)


def entry_of(size: int, digests: Sequence[str]) -> Entry:
    """Returns the manifest entry of a file of ``size`` bytes, given the digest of each of its blocks."""
    if size <= BLOCK:
        return {"bytes": size, "checksum": digests[0] if digests else digest(b"")}
    blocks = "".join(digests)
    return {"bytes": size, "checksum": digest(blocks.encode()), "blocks": blocks}


def digests_of(entry: Mapping[str, Any]) -> list[str]:
    """Returns the digests of a file's blocks.

    Raises:
        ValueError: the entry is inconsistent.
    """
    if entry["bytes"] <= BLOCK:
        return [entry["checksum"]] if entry["bytes"] else []
    blocks = str(entry.get("blocks", ""))
    if len(blocks) != _HEX * -(-entry["bytes"] // BLOCK) or digest(blocks.encode()) != entry["checksum"]:
        raise ValueError("the blocks' checksums do not belong to the file's")
    return [blocks[i : i + _HEX] for i in range(0, len(blocks), _HEX)]


class BlockHasher:
    """Computes the manifest entry of a file that is written as a stream."""

    def __init__(self) -> None:
        self._digests: list[str] = []
        self._block, self._size = xxhash.xxh3_128(), 0

    def update(self, data: memoryview) -> None:
        """Adds the next bytes of the file."""
        while len(data):
            part = data[: BLOCK - self._size % BLOCK]
            self._block.update(part)
            self._size += len(part)
            data = data[len(part) :]
            if self._size % BLOCK == 0:
                self._digests.append(self._block.hexdigest())
                self._block.reset()

    def entry(self) -> Entry:
        """Returns the entry of all bytes so far."""
        rest = [self._block.hexdigest()] if self._size % BLOCK else []
        return entry_of(self._size, [*self._digests, *rest])


def hash_files(paths: Sequence[Path]) -> list[Entry]:
    """Returns the manifest entries of files, reading each once with several threads."""
    sizes = {path: path.stat().st_size for path in paths}
    digests = {path: [""] * -(-size // BLOCK) for path, size in sizes.items()}

    def keep(path: Path, number: int, data: memoryview) -> None:
        digests[path][number] = digest(data)

    _each_block({path: len(found) for path, found in digests.items()}, keep, {})
    return [entry_of(sizes[path], digests[path]) for path in paths]


def verify_blocks(files: Mapping[Path, Sequence[str]], done: Mapping[Path, set[int]] | None = None) -> None:
    """Verifies every block of the files except those in ``done``, with several threads.

    Raises:
        DamagedFile: a block does not match its digest.
    """

    def check(path: Path, number: int, data: memoryview) -> None:
        if digest(data) != files[path][number]:
            raise DamagedFile(path, "does not match its checksum")

    _each_block({path: len(blocks) for path, blocks in files.items()}, check, done or {})


def _each_block(
    counts: Mapping[Path, int], use: Callable[[Path, int, memoryview], None], skipped: Mapping[Path, set[int]]
) -> None:
    """Calls ``use`` with the number and the bytes, valid during the call, of every block that is not ``skipped``."""

    def read(path: Path, numbers: Iterable[int]) -> None:
        buffer = memoryview(bytearray(BLOCK))
        descriptor = open_file(path)
        try:
            for number in numbers:
                use(path, number, buffer[: fill(descriptor, number * BLOCK, buffer)])
        finally:
            os.close(descriptor)

    def work(span: tuple[Path, int]) -> None:
        path, first = span
        span_end = min(first + _SPAN, counts[path])
        numbers = [number for number in range(first, span_end) if number not in skipped.get(path, ())]
        if numbers:
            with disk_errors(path):
                patiently(lambda: read(path, numbers))

    each(work, ((path, first) for path, count in counts.items() for first in range(0, count, _SPAN)))


def open_file(path: Path) -> int:
    """Opens a regular file for reading; rejects pipes and devices, which could block or never end.

    Raises:
        DamagedFile: the file is missing, or is not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DamagedFile(path, "is missing") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedFile(path, "is not a regular file")
    return descriptor


def fill(descriptor: int, offset: int, buffer: memoryview) -> int:
    """Reads until ``buffer`` is full or the file ends; returns the number of bytes read."""
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], offset + done)):
        done += count
    return done
