"""Checksums of files block by block: any part of a file can be verified when it is read, by any thread, once.

A manifest's entry for a file has its size and its ``checksum``. That of a file of at most one block is the XXH3-128 of
its bytes. A longer file has under ``blocks`` the XXH3-128 of every block, in hex and in order, and its checksum is the
XXH3-128 of theirs. Manifests without ``blocks`` for such files, of earlier versions, have that of the whole file.
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
    """Compare every block of the files with its digest, by several threads, but for those that are ``done``.

    Raises:
        DamagedFile: one differs.
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
    """(number, bytes) of the blocks from byte ``first`` on, `_SPAN` at most; the bytes hold until the next ones."""
    buffer = memoryview(bytearray(BLOCK))
    descriptor = open_file(path)
    try:
        for start in range(first, min(first + _SPAN * BLOCK, end), BLOCK):
            if start // BLOCK not in skipped:
                yield start // BLOCK, buffer[: fill(descriptor, start, buffer)]
    finally:
        os.close(descriptor)


def open_file(path: Path) -> int:
    """A descriptor to read from; pipes and devices, which might block or never end, are refused.

    Raises:
        DamagedFile: the file is missing, or is no regular file.
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
    """Read until ``buffer`` is full or the file ends; returns the bytes read."""
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], offset + done)):
        done += count
    return done
