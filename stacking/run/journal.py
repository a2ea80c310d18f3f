"""What has happened in a run: an append-only file of phase events, one JSON object a line."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Literal, get_args

from stacking.errors import DamagedFile
from stacking.storage.files import disk_errors

Event = Literal[
    "created", "started", "finished", "failed", "preempted", "damaged", "resumed", "rewound", "submitted", "cancelled"
]

_OF_A_RUN = ("created", "resumed", "submitted", "cancelled")
"""Events that concern no single phase."""


class Journal:
    """The journal of one run.

    The controller that holds the run's lock appends, and so does who submits or cancels jobs meanwhile: one line at
    a time. A line that a crash cut short is dropped when the next one is written; damage anywhere else is an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event, **facts: Any) -> dict[str, Any]:
        """Write one event durably and return it."""
        record = {"time": time.time(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **facts}
        with disk_errors(self.path), open(self.path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._drop_torn_line(file.fileno())
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return record

    def events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first.

        Raises:
            DamagedFile: a line other than a torn last one is not an event.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        events = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not _is_event(event):
                raise DamagedFile(self.path, f"line {number} is not an event", "restore the file from a copy")
            events.append(event)
        return events

    def attempts(self, phase: str, stage: int) -> int:
        """How often this phase of this stage was started."""
        return sum(e["event"] == "started" and e["phase"] == phase and e["stage"] == stage for e in self.events())

    def _drop_torn_line(self, descriptor: int) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.ftruncate(descriptor, content.rfind(b"\n") + 1)


def _is_event(value: Any) -> bool:
    """Whether a line says when something happened, and to which phase of which stage where one is concerned."""
    if not isinstance(value, dict) or value.get("event") not in get_args(Event):
        return False
    where = (value.get("phase", "run"), value.get("stage", 0))
    of_a_run = value["event"] in _OF_A_RUN
    timed = isinstance(value.get("time"), (int, float)) and isinstance(value.get("seconds", 0), (int, float))
    return timed and isinstance(where[0], str) and type(where[1]) is int and (of_a_run or "phase" in value)
