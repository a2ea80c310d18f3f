"""Divides GLUE into SLURM jobs: one per task."""

from __future__ import annotations

from collections.abc import Sequence

from stacking.glue.request import Request
from stacking.glue.tasks import FROM_MNLI, GlueTask


def jobs_of(request: Request, tasks: Sequence[GlueTask]) -> dict[str, list[GlueTask]]:
    """Returns the tasks of each job, by the job's name.

    With ``--from-mnli``, the tasks that start from the model of MNLI are in its job, for they must come after it.
    """
    after = [task for task in tasks if request.from_mnli and task.name in FROM_MNLI]
    return {task.name: [task, *(after if task.name == "MNLI" else [])] for task in tasks if task not in after}


def arguments(request: Request, tasks: Sequence[GlueTask]) -> list[str]:
    """Returns the arguments of `stacking` that train only ``tasks``, from any folder."""
    options = ["--data", request.source, "--out", str(request.out.absolute()), "--recipe", request.recipe]
    options += ["--tasks", ",".join(task.name for task in tasks)]
    options += [word for change in request.changes for word in ("--set", change)]
    options += ["--seeds", str(request.seeds)] if request.seeds is not None else []
    options += ["--tokenizer", str(request.tokenizer.absolute())] if request.tokenizer is not None else []
    return ["glue", str(request.model.absolute()), *options, *(["--from-mnli"] if len(tasks) > 1 else [])]
