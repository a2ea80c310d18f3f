"""Exports a checkpoint of a run, even while the run continues."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from stacking.errors import UserError
from stacking.huggingface.described import DescribedCheckpoint
from stacking.huggingface.export import export
from stacking.planning.plan import Plan, Stage
from stacking.run.checkpoints import checkpoints, step_of, tag
from stacking.run.decisions import settled_plan
from stacking.run.folder import RunFolder
from stacking.state.consolidate import consolidate
from stacking.state.format import Progress


def export_checkpoint(
    path: Path,
    step: int,
    out: Path,
    data: Path | None = None,
    allow_non_finite: bool = False,
    on_progress: Progress | None = None,
) -> str:
    """Writes the checkpoint after update ``step`` of the stage that the run trains, or trained last, to ``out``.

    The run is only read. An intermediate state lies beside ``out`` until the export is complete.

    Args:
        data: the prepared data folder with the tokenizer; None: the run's own.

    Returns:
        The checkpoint's name in the run, for instance ``1-L6-step-500``: each stage counts its updates from one.

    Raises:
        UserError: ``path`` is not a run or has no such checkpoint, or `stacking.huggingface.export.export` raises it.
        DamagedFile: a file of the checkpoint is truncated or altered, or the run has removed it meanwhile.
    """
    run = RunFolder(path)
    if not run.plan.is_file():
        raise UserError(path, "is not a run directory (no plan.json)", "omit --step to export a state")
    plan = settled_plan(run)
    stage = _last_trained(run, plan)
    checkpoint = run.stage(stage.name).checkpoints / tag(step)
    there = [step_of(found) for found in checkpoints(checkpoint.parent)]
    if step not in there:
        listed = ", ".join(map(str, there))
        raise UserError(f"--step {step}", f"stage {stage.name} has no such checkpoint", f"give one of {listed}")
    describe = partial(DescribedCheckpoint, model=plan.model.with_layers(stage.layers))
    tokenizer = data or (Path(plan.data.path) if plan.data.path else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent) as scratch:
        state = Path(scratch) / "state"
        consolidate(checkpoint, state, on_progress, describe, allow_non_finite)
        export(state, out, tokenizer, allow_non_finite)
    return f"{stage.name}-step-{step}"


def _last_trained(run: RunFolder, plan: Plan) -> Stage:
    for stage in reversed(plan.stages):
        if checkpoints(run.stage(stage.name).checkpoints):
            return stage
    raise UserError(run.path, "has no checkpoint yet", "wait for the first one")
