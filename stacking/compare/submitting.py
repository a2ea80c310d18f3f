"""Submits the runs of a comparison to SLURM, each as a chain of jobs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stacking.compare.work import Task, Tell
from stacking.errors import DamagedFile
from stacking.report.run import read_run
from stacking.slurm.command import SubmitRequest, submit


def submit_run(task: Task, site: Path | None, tell: Tell) -> None:
    """Submits the jobs that a run still needs; those in the queue stay as they are.

    Raises:
        UserError: the recipe or the site file is invalid, or SLURM rejects a job.
        StackingError: SLURM does not answer.
    """
    if task.is_settled:
        return
    arm = task.arm
    settings = tuple(arm.settings(task.seed))
    request = SubmitRequest(run=task.run, recipe=arm.source, mode=None, site=site, overrides=settings, data=arm.data)
    for line in submit(request):
        tell(f"{task.name}: {line}")


def progress_of(tasks: Sequence[Task]) -> list[str]:
    """Returns a line about each unsettled run: ``late-2-12, seed 1: 1,200 of 6,000 updates``."""
    return [f"{task.name}: {_updates(task)}" for task in tasks if not task.is_settled]


def _updates(task: Task) -> str:
    total = sum(stage.steps for stage in task.arm.plan.stages)
    try:
        trained = read_run(task.run.path).records("train") if task.run.plan.is_file() else []
    except DamagedFile as damage:
        return str(damage)
    return f"{trained[-1]['global_step'] if trained else 0:,} of {total:,} updates"
