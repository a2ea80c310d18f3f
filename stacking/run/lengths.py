"""Finds how long the stages of a run became that end automatically: what the journal says or, before that, the files.

The worker marks the checkpoint with which such a stage ends; the controller then records the length. It stands, so a
stage that is repeated ends at the same update.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stacking.errors import DamagedFile
from stacking.planning.plan import Plan, StagePlan, load_plan
from stacking.planning.plateau import with_lengths
from stacking.run.checkpoints import checkpoints
from stacking.run.folder import RunFolder
from stacking.storage.files import MANIFEST, read_sealed

ENDED = "ended"
"""Key of a checkpoint's progress: the stage ended with it."""


def settled_plan(run: RunFolder) -> Plan:
    """Returns the plan with the lengths that are decided by now.

    Raises:
        UserError: there is none.
        DamagedFile: it was changed since it was written.
    """
    plan = load_plan(run.plan)
    return with_lengths(plan, decided_lengths(run, plan))


def decided_lengths(run: RunFolder, plan: Plan) -> dict[int, int]:
    """Returns the updates of the stages that have ended automatically, by their index."""
    automatic = [stage for stage in plan.stages if stage.until is not None]
    if not automatic:
        return {}
    journalled = {event["stage"]: event.get("steps") for event in run.journal.events() if event["event"] == "decided"}
    found = {stage.index: journalled.get(stage.index) or _length(run, stage) for stage in automatic}
    return {index: length for index, length in found.items() if length is not None}


def _length(run: RunFolder, stage: StagePlan) -> int | None:
    """Returns the update of the last checkpoint of a stage, or of its consolidated state, if the stage ended there."""
    folder = run.stage(stage.name)
    recorded = [_sealed(checkpoint / "progress.json") for checkpoint in reversed(checkpoints(folder.checkpoints))]
    recorded.append(_sealed(folder.state / MANIFEST).get("progress") or {})
    return next((int(progress["step"]) for progress in recorded if progress.get(ENDED) is True), None)


def _sealed(file: Path) -> dict[str, Any]:
    """Reads a file; one that is missing or damaged decides nothing, and is reported by whoever needs it."""
    try:
        return read_sealed(file) if file.is_file() else {}
    except DamagedFile:
        return {}
