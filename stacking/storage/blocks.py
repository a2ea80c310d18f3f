"""Computes checksums of files block by block, so that any part of a file can be verified as it is read.

A manifest's entry for a file has its size and its ``checksum``. For a file of at most one block this is the XXH3-128 of
its bytes. For a longer file, ``blocks`` lists the XXH3-128 of every block, in hex and in order, and the checksum is the
XXH3-128 of that list.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
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
    """Returns the manifest entries of files, reading each once with several threads."""
    sizes = [path.stat().st_size for path in paths]
    digests = [[""] * -(-size // BLOCK) for size in sizes]

    def hash_span(file: int, first: int) -> None:
        for index, data in _read_span(paths[file], first, sizes[file]):
            digests[file][index] = digest(data)

    def work(span: tuple[int, int]) -> None:
        with disk_errors(paths[span[0]]):
            patiently(lambda: hash_span(*span))

    each(
        work,
        ((file, first) for file, size in enumerate(sizes) for first in range(0, size, _SPAN * BLOCK)),
    )
    return [entry_of(size, found) for size, found in zip(sizes, digests, strict=True)]


def verify_blocks(files: Mapping[Path, Sequence[str]], done: Mapping[Path, set[int]] | None = None) -> None:
    """Verifies every block of the files except those in ``done``, with several threads.

    Raises:
        DamagedFile: a block does not match its digest.
    """
    skipped = done or {}

    def verify_span(path: Path, first: int, known: set[int]) -> None:
        for index, data in _read_span(path, first, len(files[path]) * BLOCK, known):
            if digest(data) != files[path][index]:
                raise DamagedFile(path, "does not match its checksum")

    def work(span: tuple[Path, int]) -> None:
        path, first = span
        known = skipped.get(path, set())
        if known.issuperset(range(first // BLOCK, min(first // BLOCK + _SPAN, len(files[path])))):
            return
        with disk_errors(path):
            patiently(lambda: verify_span(path, first, known))

    each(
        work,
        ((path, first) for path, blocks in files.items() for first in range(0, len(blocks) * BLOCK, _SPAN * BLOCK)),
    )


def _read_span(path: Path, first: int, end: int, skipped: Any = ()) -> Any:
    """Yields (number, bytes) of up to `_SPAN` blocks from byte ``first``; the bytes are valid until the next."""
    buffer = memoryview(bytearray(BLOCK))
    descriptor = open_file(path)
    try:
        for start in range(first, min(first + _SPAN * BLOCK, end), BLOCK):
            if start // BLOCK not in skipped:
                yield start // BLOCK, buffer[: fill(descriptor, start, buffer)]
    finally:
        os.close(descriptor)


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
