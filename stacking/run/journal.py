"""What has happened in a run: an append-only file of phase events, one sealed JSON object a line."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from stacking.storage.files import disk_errors, set_aside, write_atomically
from stacking.storage.os_errors import patiently
from stacking.storage.seal import BrokenSeal, sealed, unsealed

Event = Literal[
    "created", "started", "finished", "failed", "preempted", "damaged", "resumed", "rewound", "submitted", "cancelled"
]

_OF_A_RUN = ("created", "resumed", "submitted", "cancelled")
"""Events that concern no single phase."""


class Journal:
    """The journal of one run.

    The controller that holds the run's lock appends, and so does who submits or cancels jobs meanwhile: one line at
    a time. A line that a crash cut short is dropped when the next one is written. A line that was altered since counts
    for nothing: the verified files say what is done, and `mend` takes it out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event, **facts: Any) -> dict[str, Any]:
        """Write one event durably and return it."""
        record = {"time": time.time(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **facts}
        with disk_errors(self.path), self._locked() as file:
            self._drop_torn_line(file.fileno())
            file.write(json.dumps(sealed(record), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return record

    def events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first, without those whose line was altered."""
        return [event for event in map(_event, self._lines()) if event is not None]

    def damaged_lines(self) -> list[int]:
        """The numbers, from 1, of the lines that are not what was written."""
        return [number for number, line in enumerate(self._lines(), start=1) if _event(line) is None]

    def mend(self) -> str | None:
        """Take altered lines out; to be called by whoever holds the run.

        Returns:
            What was wrong, for people; None: nothing was.
        """
        if self.path.exists() and not self.path.is_file():
            return f"{self.path}: is not a file; set aside as {set_aside(self.path).name}"
        damaged = self.damaged_lines()
        if not damaged:
            return None
        with disk_errors(self.path), self._locked():
            lines = self._lines()
            whole = b"".join(line + b"\n" for line in lines if _event(line) is not None)
            write_atomically(self.path, whole)
        which = f"line {damaged[0]} was" if len(damaged) == 1 else f"{len(damaged)} lines, the first {damaged[0]}, were"
        return f"{self.path}: {which} altered and removed"

    def attempts(self, phase: str, stage: int) -> int:
        """How often this phase of this stage was started."""
        return sum(e["event"] == "started" and e["phase"] == phase and e["stage"] == stage for e in self.events())

    def _lines(self) -> list[bytes]:
        """All whole lines."""
        with disk_errors(self.path):
            return patiently(self.path.read_bytes).split(b"\n")[:-1] if self.path.is_file() else []

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The file, open for appending, while nobody else appends or mends."""
        while True:
            with open(self.path, "ab") as file:
                patiently(partial(fcntl.flock, file, fcntl.LOCK_EX))
                if self.path.exists() and self.path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    yield file
                    return

    def _drop_torn_line(self, descriptor: int) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.ftruncate(descriptor, content.rfind(b"\n") + 1)


def _event(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None: it is not as it was written."""
    try:
        event = unsealed(json.loads(line))
    except (BrokenSeal, ValueError, RecursionError):
        return None
    return event if _is_event(event) else None


def _is_event(value: Any) -> bool:
    """Whether a line says when something happened, and to which phase of which stage where one is concerned."""
    if not isinstance(value, dict) or value.get("event") not in get_args(Event):
        return False
    where = (value.get("phase", "run"), value.get("stage", 0))
    of_a_run = value["event"] in _OF_A_RUN
    timed = isinstance(value.get("time"), (int, float)) and isinstance(value.get("seconds", 0), (int, float))
    return timed and isinstance(where[0], str) and type(where[1]) is int and (of_a_run or "phase" in value)
