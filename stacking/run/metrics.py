"""Writes and reads a stage's metrics: one JSON record per line, appended by rank 0 while others read.

Every line ends with ``"check"``, the XXH3-64 of the record without it, so that alterations are detected. A killed
process can leave a truncated last line, which readers ignore and the next writer removes. Other damaged lines are
skipped, and reported to readers that ask for them. A loss that is not a number is written as ``NaN``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import xxhash

from stacking.storage.files import disk_errors, set_aside_unless_file, write_atomically

Record = dict[str, Any]
"""One line of ``metrics.jsonl``; its ``kind`` is ``train`` or ``evaluation``."""
_CHECK = re.compile(rb', "check": "([0-9a-f]{16})"\}$')


class MetricsContent(NamedTuple):
    """Holds what a metrics file contains."""

    records: list[Record]
    """Oldest first."""
    damage: list[str]
    """Descriptions of damaged lines: ``line 3 was altered``."""


class _NotARecord(Exception):
    """Describes why a line is not a valid record."""


def _sealed(record: Mapping[str, Any]) -> bytes:
    content = json.dumps(record, ensure_ascii=False).encode()
    return content[:-1] + b', "check": "%s"}\n' % xxhash.xxh3_64_hexdigest(content).encode()


def _opened(line: bytes) -> Record:
    """Parses a line.

    Raises:
        _NotARecord: the line is damaged, or is not a metrics record.
    """
    check = _CHECK.search(line)
    if check is None:
        raise _NotARecord("has no checksum" if line.endswith(b"}") else "is torn")
    content = line[: check.start()] + b"}"
    if xxhash.xxh3_64_hexdigest(content).encode() != check[1]:
        raise _NotARecord("was altered")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or "kind" not in record or type(record.get("step")) is not int:
        raise _NotARecord("is not a metrics record")
    return record


class MetricsWriter:
    """Appends records to one file; each is complete in the file when ``append`` returns.

    Raises:
        NoSpace: the disk is full; earlier records stay intact.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
            self._size = _whole_lines_end(path)
            self._file.truncate(self._size)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; after a failed write, the file is as it was before."""
        line = memoryview(_sealed(record))
        written = 0
        try:
            with disk_errors(self.path):
                while written < len(line):
                    written += self._file.write(line[written:])
        finally:
            if written < len(line):
                self._file.truncate(self._size)
        self._size += len(line)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Follower:
    """Reads a metrics file while another process writes it.

    ``poll`` returns the records added since the last call. The file may not exist yet, and may be replaced by a
    shorter one when training goes back to a checkpoint; no record is returned twice. ``damage`` lists the damaged lines
    that were skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._line = 0
        """Number of complete lines read from the open file."""
        self.damage: list[str] = []
        self._returned: list[int] = []
        """Hashes of the lines already returned."""

    def poll(self) -> list[Record]:
        """Returns the records that were added since the last call."""
        if self._file is None or self._replaced(self._file):
            self.close()
            if not self.path.is_file():
                self.damage = ["is not a file"] if self.path.exists() else self.damage
                return []
            self._file = open(self.path, "rb")  # noqa: SIM115 (kept open, so that its inode is not reused)
            self._line = 0
        return [record for line in self._new_lines(self._file) if (record := self._parse(line)) is not None]

    def close(self) -> None:
        """Closes the file; the next `poll` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _replaced(self, file: BinaryIO) -> bool:
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return True
        return now.st_ino != os.fstat(file.fileno()).st_ino or now.st_size < file.tell()

    def _new_lines(self, file: BinaryIO) -> Iterator[bytes]:
        start = file.tell()
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.seek(start + whole)
        for line in content[:whole].split(b"\n")[:-1]:
            self._line += 1
            if self._returned[self._line - 1 : self._line] != [hash(line)]:
                self._returned[self._line - 1 :] = [hash(line)]
                yield line

    def _parse(self, line: bytes) -> Record | None:
        try:
            return _opened(line)
        except _NotARecord as problem:
            self.damage.append(f"line {self._line} {problem}")
            return None


def inspect_metrics(path: Path) -> MetricsContent:
    """Returns the records in ``path`` and its damage; both are empty if the file does not exist yet."""
    follower = Follower(path)
    try:
        return MetricsContent(follower.poll(), follower.damage)
    finally:
        follower.close()


def read_metrics(path: Path) -> list[Record]:
    """Returns the undamaged records in ``path``, oldest first."""
    return inspect_metrics(path).records


def is_torn(path: Path) -> bool:
    """Returns whether the last line is incomplete: it is being written, or was cut."""
    return path.is_file() and path.stat().st_size > _whole_lines_end(path)


def truncate_after(path: Path, step: int) -> int:
    """Drops every record after update ``step`` of the stage, atomically; returns the number of lines dropped.

    A damaged line stays, so that reports mention it, unless a record before it is dropped; anything but a file is set
    aside. Must be called before the file is opened for writing, because an open file keeps the old content.

    Raises:
        NoSpace: the disk is full; the file is unchanged.
    """
    set_aside_unless_file(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    kept: list[bytes] = []
    for number, line in enumerate(lines):
        try:
            late = _opened(line)["step"] > step
        except _NotARecord:
            late = len(kept) < number
        if not late:
            kept.append(line)
    if len(kept) < len(lines):
        write_atomically(path, b"".join(line + b"\n" for line in kept))
    return len(lines) - len(kept)


def _whole_lines_end(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
