"""Rewinds a run to an earlier checkpoint at the user's request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stacking.errors import Diverged, UserError
from stacking.planning.plan import Plan, StagePlan
from stacking.run.checkpoints import checkpoints, point_latest, step_of, tag
from stacking.run.folder import RunFolder, StageFolder
from stacking.run.metrics import truncate_after
from stacking.run.phases import phases
from stacking.storage.files import set_aside, verify_folder

_OF_A_PHASE = ("started", "finished", "failed", "preempted", "rewound")


def refuse_repetition(run: RunFolder) -> None:
    """Refuses to resume a run from where its training diverged, since it would diverge again.

    Raises:
        Diverged: the run diverged and was not rewound since; the message is that of the divergence.
    """
    if message := divergence(run.journal.events()):
        raise Diverged(f"not resumed: {message}")


def divergence(events: Sequence[dict[str, Any]]) -> str | None:
    """Returns the message of the divergence that resuming would repeat; None if the run can be resumed."""
    last: dict[str, Any] = next((e for e in reversed(events) if e["event"] in _OF_A_PHASE), {})
    return last.get("message", "training diverged") if last.get("diverged") else None


def rewind(run: RunFolder, plan: Plan, step: int) -> str:
    """Rewinds the current stage to its checkpoint after update ``step``; 0 is the beginning of the stage.

    Later checkpoints and everything derived from them are set aside as ``*.superseded``, and the metrics after ``step``
    are dropped. The journal entry is written last: after an interruption, repeating the call completes the work.

    Returns:
        The name of the stage.

    Raises:
        UserError: the stage has no such checkpoint.
        DamagedFile: the checkpoint is damaged.
    """
    stage = _stage_at_work(run, plan)
    folder = run.stage(stage.name)
    target = folder.checkpoints / tag(step) if step else None
    if target is not None:
        _require(folder, stage, step)
        verify_folder(target)
    chain = phases(plan, run)
    training = next(i for i, phase in enumerate(chain) if (phase.name, phase.stage) == ("train", stage.index))
    for phase in reversed(chain[training + 1 :]):
        if phase.output.exists():
            set_aside(phase.output, "superseded")
    for checkpoint in reversed(checkpoints(folder.checkpoints)):
        if step_of(checkpoint) > step:
            set_aside(checkpoint, "superseded")
    if folder.checkpoints.is_dir():
        point_latest(folder.checkpoints, target)
    truncate_after(folder.metrics, step)
    run.journal.append("rewound", phase="train", stage=stage.index, step=step, message=f"back to update {step}")
    return stage.name


def _stage_at_work(run: RunFolder, plan: Plan) -> StagePlan:
    for stage in reversed(plan.stages):
        folder = run.stage(stage.name)
        if folder.metrics.exists() or checkpoints(folder.checkpoints):
            return stage
    raise UserError("--from-step", "the run has not started training", "resume it without this option")


def _require(folder: StageFolder, stage: StagePlan, step: int) -> None:
    there = [step_of(checkpoint) for checkpoint in checkpoints(folder.checkpoints)]
    if step not in there:
        problem = f"{stage.name} has no checkpoint after update {step}"
        raise UserError(f"--from-step {step}", problem, f"give one of {', '.join(map(str, [0, *there]))}")
