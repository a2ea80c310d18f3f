"""What training measures: one JSON line a record, appended by the worker, read by whoever watches.

A process that is killed can leave the last line torn. Readers ignore such a line and the next writer removes it;
a line that is damaged anywhere else is an error. A loss that is not a number is written as ``NaN``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from stacking.errors import DamagedFile
from stacking.storage.files import disk_errors, write_atomically

Record = dict[str, Any]
"""One line of ``metrics.jsonl``; its ``kind`` is ``train`` or ``evaluation``."""


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
        line = memoryview(json.dumps(record, ensure_ascii=False).encode() + b"\n")
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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._line = 0
        """Whole lines read of the open file."""
        self._returned: list[int] = []
        """Hashes of the lines that were returned."""

    def poll(self) -> list[Record]:
        """The records that were added since the last call.

        Raises:
            DamagedFile: a whole line is not a record.
        """
        if self._file is None or self._replaced(self._file):
            self.close()
            if not self.path.exists():
                return []
            self._file = open(self.path, "rb")  # noqa: SIM115 (kept open, so that its inode is not given away)
            self._line = 0
        return [self._parse(line) for line in self._new_lines(self._file)]

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

    def _parse(self, line: bytes) -> Record:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "kind" not in record or "step" not in record:
            raise DamagedFile(self.path, f"line {self._line} is not a metrics record", "remove that line")
        return record


def read_metrics(path: Path) -> list[Record]:
    """All records in ``path``, oldest first; none when the file does not exist, because its stage has not begun.

    Raises:
        DamagedFile: a line other than a torn last one is not a record.
    """
    follower = Follower(path)
    try:
        return follower.poll()
    finally:
        follower.close()


def truncate_after(path: Path, step: int) -> int:
    """Drop every record after update ``step`` of the stage, atomically; returns how many.

    To be called before the file is opened for writing: what was open stays with the old file.

    Raises:
        DamagedFile: a line other than a torn last one is not a record.
        NoSpace: the disk is full; the old content stays.
    """
    records = read_metrics(path)
    kept = [record for record in records if record["step"] <= step]
    if len(kept) < len(records):
        write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    return len(records) - len(kept)


def _whole_lines_end(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1
