"""Finds what a run has decided so far: how long its automatic stages were, and which operators have grown it.

The worker marks the checkpoint with which an automatic stage ends; the controller then records the length in the
journal. This length is final, so a repeated stage ends at the same update. The best operator of a trial is recorded in
the manifest of the state that it has grown and, like the length, in the journal.
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
"""Key in a checkpoint's progress: true if the stage ended with this checkpoint."""


class Decisions(NamedTuple):
    """Holds what a run has decided so far, by the index of the stage."""

    lengths: dict[int, int]
    """Updates of the stages that have ended automatically."""
    operators: dict[int, str]
    """The best operators of trials."""

    def applied_to(self, plan: Plan) -> Plan:
        """Returns ``plan`` with the decided lengths and operators."""
        plan = with_lengths(plan, self.lengths)
        stages = [s.grown_by(self.operators[s.index]) if s.index in self.operators else s for s in plan.stages]
        return plan.model_copy(update={"stages": tuple(stages)})


def settled_plan(run: RunFolder) -> Plan:
    """Returns the run's plan with everything decided so far.

    Raises:
        UserError: there is no plan.
        DamagedFile: the plan was changed after it was written.
    """
    plan = load_plan(run.plan)
    return decisions(run, plan).applied_to(plan)


def decisions(run: RunFolder, plan: Plan) -> Decisions:
    """Returns what the run has decided so far.

    Args:
        plan: the plan as it was made, without decisions.
    """
    return Decisions(decided_lengths(run, plan), decided_operators(run, plan))


def decided_operators(run: RunFolder, plan: Plan) -> dict[int, str]:
    """Returns the operators of the stages that began with a trial, by the index of the stage."""
    return _decided(run, [stage for stage in plan.stages if stage.trial_updates], "operator", _operator)


def _operator(run: RunFolder, stage: StagePlan) -> str | None:
    provenance = _sealed(run.stage(stage.name).start / MANIFEST).get("provenance") or {}
    return provenance.get("operator")


def trial_losses(run: RunFolder, stage: StagePlan) -> dict[str, float]:
    """Returns the held-out losses of the candidates that have finished their trial; infinity if one diverged."""
    assert stage.growth is not None
    assert stage.growth.trial is not None
    losses: dict[str, float] = {}
    for operator in stage.growth.trial.sources:
        for record in read_metrics(run.stage(stage.name).trial(operator)):
            if record["kind"] == "evaluation" and record["step"] == stage.growth.trial.steps:
                losses[operator] = record["loss"] if math.isfinite(record["loss"]) else math.inf
    return losses


def decided_lengths(run: RunFolder, plan: Plan) -> dict[int, int]:
    """Returns the updates of the automatic stages that have ended, by the index of the stage."""
    return _decided(run, [stage for stage in plan.stages if stage.until is not None], "steps", _length)


def _decided(
    run: RunFolder, stages: Sequence[StagePlan], key: str, of_files: Callable[[RunFolder, StagePlan], _T | None]
) -> dict[int, _T]:
    """Returns the decisions about ``stages``, by index: from the journal or, if it has none yet, from the files."""
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
    """Returns a sealed file's content; empty if it is missing or damaged, which those who need it will report."""
    try:
        return read_sealed(file) if file.is_file() else {}
    except DamagedFile:
        return {}
