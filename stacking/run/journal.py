"""Implements a run's journal: an append-only file of events, one checksummed JSON object per line."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from stacking.storage.files import disk_errors, set_aside_unless_file, write_atomically
from stacking.storage.os_errors import patiently
from stacking.storage.seal import BrokenSeal, sealed, unsealed

Event = Literal[
    "created",
    "started",
    "finished",
    "failed",
    "skipped",
    "preempted",
    "decided",
    "damaged",
    "resumed",
    "rewound",
    "submitted",
    "released",
    "cancelled",
]

_OF_A_RUN = ("created", "resumed", "submitted", "released", "cancelled")
"""Events that do not belong to a phase."""


class Journal:
    """Reads and appends the journal of one run.

    The controller appends, and so do commands that submit or cancel jobs in the meantime, one line at a time. A line
    truncated by a crash is dropped before the next one is written. An altered line is ignored, since the verified
    files show what is done, and `mend` removes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event, **facts: Any) -> dict[str, Any]:
        """Writes one event durably and returns it."""
        record = {"time": time.time(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **facts}
        with disk_errors(self.path), self._locked() as file:
            self._drop_torn_line(file.fileno())
            file.write(json.dumps(sealed(record), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return record

    def adopt(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Replaces the journal by ``events`` of another one, atomically."""
        lines = [json.dumps(sealed(event), ensure_ascii=False) + "\n" for event in events]
        write_atomically(self.path, "".join(lines))

    def events(self) -> list[dict[str, Any]]:
        """Returns all events, oldest first, except altered lines."""
        return [event for event in map(_event, self._lines()) if event is not None]

    def damaged_lines(self) -> list[int]:
        """Returns the numbers of the altered lines, from 1."""
        return [number for number, line in enumerate(self._lines(), start=1) if _event(line) is None]

    def mend(self) -> str | None:
        """Removes altered lines; the caller must hold the run's lock.

        Returns:
            A message that describes the damage; None without damage.
        """
        if aside := set_aside_unless_file(self.path):
            return f"{self.path}: is not a file; set aside as {aside.name}"
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
        """Returns how often ``phase`` of ``stage`` was started."""
        return sum(e["event"] == "started" and e["phase"] == phase and e["stage"] == stage for e in self.events())

    def has_finished(self, phase: str, stage: int, attempt: int) -> bool:
        """Returns whether this attempt of ``phase`` has ended successfully."""
        wanted = ("finished", phase, stage, attempt)
        return any((e["event"], e.get("phase"), e.get("stage"), e.get("attempt")) == wanted for e in self.events())

    def _lines(self) -> list[bytes]:
        with disk_errors(self.path):
            return patiently(self.path.read_bytes).split(b"\n")[:-1] if self.path.is_file() else []

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Opens the file for appending and locks it against other writers."""
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
    """Returns the event in a line; None if the line was altered."""
    try:
        event = unsealed(json.loads(line))
    except (BrokenSeal, ValueError, RecursionError):
        return None
    return event if _is_event(event) else None


def _is_event(value: Any) -> bool:
    """Returns whether a line has a time and, for an event of a phase, the phase and its stage."""
    if not isinstance(value, dict) or value.get("event") not in get_args(Event):
        return False
    where = (value.get("phase", "run"), value.get("stage", 0))
    of_a_run = value["event"] in _OF_A_RUN
    timed = isinstance(value.get("time"), (int, float)) and isinstance(value.get("seconds", 0), (int, float))
    return timed and isinstance(where[0], str) and type(where[1]) is int and (of_a_run or "phase" in value)
