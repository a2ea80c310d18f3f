"""Finds what a run has decided on the way: how long its automatic stages became, and by which operators it has grown.

The worker marks the checkpoint with which an automatic stage ends; the controller then records the length in the
journal. It stands, so a stage that is repeated ends at the same update. The best operator of a trial is in the manifest
of the state that it has grown, and, like the length, in the journal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stacking.errors import DamagedFile
from stacking.planning.plan import Plan, StagePlan, load_plan
from stacking.planning.plateau import with_lengths
from stacking.run.checkpoints import checkpoints
from stacking.run.folder import RunFolder
from stacking.run.metrics import read_metrics
from stacking.storage.files import MANIFEST, read_sealed

_T = TypeVar("_T")
ENDED = "ended"
"""Key of a checkpoint's progress: the stage ended with it."""


class Decisions(NamedTuple):
    lengths: dict[int, int]
    """Updates of the stages that have ended automatically."""
    operators: dict[int, str]
    """The best operators of trials."""

    def applied_to(self, plan: Plan) -> Plan:
        plan = with_lengths(plan, self.lengths)
        stages = [s.grown_by(self.operators[s.index]) if s.index in self.operators else s for s in plan.stages]
        return plan.model_copy(update={"stages": tuple(stages)})


def settled_plan(run: RunFolder) -> Plan:
    """Returns the plan with what is decided by now.

    Raises:
        UserError: there is none.
        DamagedFile: it was changed since it was written.
    """
    plan = load_plan(run.plan)
    return decisions(run, plan).applied_to(plan)


def decisions(run: RunFolder, plan: Plan) -> Decisions:
    """Returns what is decided by now.

    Args:
        plan: as it was made.
    """
    return Decisions(decided_lengths(run, plan), decided_operators(run, plan))


def decided_operators(run: RunFolder, plan: Plan) -> dict[int, str]:
    """Returns the operators of the stages that a trial has begun, by their index."""
    return _decided(run, [stage for stage in plan.stages if stage.trial_updates], "operator", _operator)


def _operator(run: RunFolder, stage: StagePlan) -> str | None:
    provenance = _sealed(run.stage(stage.name).start / MANIFEST).get("provenance") or {}
    return provenance.get("operator")


def trial_losses(run: RunFolder, stage: StagePlan) -> dict[str, float]:
    """Returns the held-out losses of the candidates that have finished their trial; infinite: it diverged."""
    assert stage.growth is not None
    assert stage.growth.trial is not None
    losses: dict[str, float] = {}
    for operator in stage.growth.trial.sources:
        for record in read_metrics(run.stage(stage.name).trial(operator)):
            if record["kind"] == "evaluation" and record["step"] == stage.growth.trial.steps:
                losses[operator] = record["loss"] if math.isfinite(record["loss"]) else math.inf
    return losses


def decided_lengths(run: RunFolder, plan: Plan) -> dict[int, int]:
    return _decided(run, [stage for stage in plan.stages if stage.until is not None], "steps", _length)


def _decided(
    run: RunFolder, stages: Sequence[StagePlan], key: str, of_files: Callable[[RunFolder, StagePlan], _T | None]
) -> dict[int, _T]:
    """Returns what is decided about ``stages``, by their index: what the journal says or, before that, the files."""
    if not stages:
        return {}
    journalled = {e["stage"]: e[key] for e in run.journal.events() if e["event"] == "decided" and key in e}
    found = {stage.index: journalled.get(stage.index) or of_files(run, stage) for stage in stages}
    return {index: decision for index, decision in found.items() if decision is not None}


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
