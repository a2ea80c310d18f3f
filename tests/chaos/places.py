"""The points of a chain at which files are damaged: a finished run is cut back to an earlier state."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """One moment in the life of a run."""

    last_event: tuple[str, str, int]
    """The last event of the journal: its kind, phase and stage."""
    later: tuple[str, ...]
    """What the run does not have yet, as names in its folder."""
    step: int | None = None
    """Of the second stage's newest checkpoint, where its training has not ended."""


_REPORT = ("report.html", "report", "1-L2/logs/report-*")
_EXPORT = ("export", "1-L2/logs/export-*", *_REPORT)
_STATE = ("1-L2/state", "1-L2/logs/consolidate-*", *_EXPORT)
_SECOND = ("1-L2/checkpoints", "1-L2/metrics.jsonl", "1-L2/logs/train-*", *_STATE)
_GROWN = ("1-L2", *_SECOND)
_CONSOLIDATED = ("0-L1/state", "0-L1/logs/consolidate-*", *_GROWN)

PLACES: Mapping[str, Place] = {
    "first stage trained": Place(("finished", "train", 0), _CONSOLIDATED),
    "first stage consolidated": Place(("finished", "consolidate", 0), _GROWN),
    "grown": Place(("finished", "grow", 1), _SECOND),
    "within the second stage": Place(("started", "train", 1), _STATE, step=2),
    "second stage trained": Place(("finished", "train", 1), _STATE),
    "second stage consolidated": Place(("finished", "consolidate", 1), _EXPORT),
    "exported": Place(("finished", "export", 1), _REPORT),
}


def cut_back(run: Path, place: Place) -> None:
    """Turn a finished ``run`` back into what it was at ``place``."""
    for pattern in place.later:
        for path in list(run.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if place.step is not None:
        _without_later_checkpoints(run / "1-L2" / "checkpoints", place.step)
    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    events = [json.loads(line) for line in lines]
    where = [(event["event"], event.get("phase"), event.get("stage")) for event in events]
    journal.write_text("".join(lines[: where.index(place.last_event) + 1]))


def _without_later_checkpoints(folder: Path, step: int) -> None:
    for checkpoint in folder.glob("global_step*"):
        if int(checkpoint.name.removeprefix("global_step")) > step:
            shutil.rmtree(checkpoint)
    (folder / "latest").write_text(f"global_step{step}")
