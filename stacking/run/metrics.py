"""What training measures: one JSON line a record, appended by the worker, read by whoever watches.

Every line ends with ``"check"``, the XXH3-64 of the record without it, so that an altered digit is noticed. A process
that is killed can leave the last line torn: readers ignore it and the next writer removes it. A line that is damaged
anywhere else is named by those who ask for it, and stops nobody. A loss that is not a number is written as ``NaN``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import xxhash

from stacking.storage.files import disk_errors, write_atomically

Record = dict[str, Any]
"""One line of ``metrics.jsonl``; its ``kind`` is ``train`` or ``evaluation``."""
_CHECK = re.compile(rb', "check": "([0-9a-f]{16})"\}$')


class Reading(NamedTuple):
    """What a metrics file holds."""

    records: list[Record]
    """Oldest first."""
    damage: list[str]
    """What is wrong with other lines: ``line 3 was altered``."""


class _NotARecord(Exception):
    """What is wrong with a line."""


def _sealed(record: Mapping[str, Any]) -> bytes:
    """The record as a line."""
    content = json.dumps(record, ensure_ascii=False).encode()
    return content[:-1] + b', "check": "%s"}\n' % xxhash.xxh3_64_hexdigest(content).encode()


def _opened(line: bytes) -> Record:
    """The record in a line.

    Raises:
        _NotARecord: it is damaged, or was not written here.
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
    """Appends records to one file; a record is in the file, whole, when ``append`` returns.

    Raises:
        NoSpace: the disk is full; the records so far stay whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
            self._size = _whole_lines_end(path)
            self._file.truncate(self._size)

    def append(self, record: Mapping[str, Any]) -> None:
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
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Follower:
    """Reads a metrics file while another process writes it.

    ``poll`` returns the records that are new since the last call. The file may not exist yet, and it may be replaced
    by a shorter one (training went back to a checkpoint): records that were returned before do not come again.
    ``damage`` says which lines were passed over because they are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._line = 0
        """Whole lines read of the open file."""
        self.damage: list[str] = []
        self._returned: list[int] = []
        """Hashes of the lines that were returned."""

    def poll(self) -> list[Record]:
        """The records that were added since the last call."""
        if self._file is None or self._replaced(self._file):
            self.close()
            if not self.path.exists():
                return []
            self._file = open(self.path, "rb")  # noqa: SIM115 (kept open, so that its inode is not given away)
            self._line = 0
        return [record for line in self._new_lines(self._file) if (record := self._parse(line)) is not None]

    def close(self) -> None:
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


def inspect_metrics(path: Path) -> Reading:
    """All records in ``path`` and what is wrong with it; nothing when it does not exist: its stage has not begun."""
    follower = Follower(path)
    try:
        return Reading(follower.poll(), follower.damage)
    finally:
        follower.close()


def read_metrics(path: Path) -> list[Record]:
    """All records in ``path`` that are as they were written, oldest first."""
    return inspect_metrics(path).records


def truncate_after(path: Path, step: int) -> int:
    """Drop every record after update ``step`` of the stage, atomically; returns how many lines.

    A damaged line stays, so that reports name it, unless a record before it is dropped. To be called before the file is
    opened for writing: what was open stays with the old file.

    Raises:
        NoSpace: the disk is full; the old content stays.
    """
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
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1
