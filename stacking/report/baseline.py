"""Builds the baseline of a stacked run: its deepest model, trained at full depth for the same wall-clock time.

A duration is not reproducible, so it is converted to a number of steps at the speed of the stacked run's last stage,
which trains the same model with the same batches on the same machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stacking.config.recipe import Recipe, recipe_from
from stacking.errors import UserError
from stacking.report.comparison import ChargedClock, charged_seconds
from stacking.report.run import Run
from stacking.report.timeline import transition
from stacking.run.folder import command
from stacking.run.kept import kept_recipe
from stacking.run.rewind import divergence

_LENGTHS = ("total_num_steps", "cycle_first_step_size", "cycle_second_step_size", "decay_step_size")
"""Keys of schedules that count updates up to the end of the run, or of a part of it."""
_WARMUPS = {"warmup_steps": 0, "warmup_num_steps": 1}
"""Keys of schedules that count the updates of the warm-up, with the least that each allows."""


def baseline_recipe(run: Run) -> Recipe:
    """Returns a recipe that trains the deepest model of ``run`` for as long as ``run`` took, with its own schedule.

    Raises:
        UserError: ``run`` has not finished training, started from a trained model, or is too short to measure.
    """
    plan, last = run.plan, run.plan.stages[-1]
    if plan.start is not None:
        raise UserError(run.folder.path, f"started from {plan.start}", "compare runs that start from random weights")
    raw = kept_recipe(run.folder.recipe).model_dump(mode="json")
    steps = baseline_steps(run)
    kernels = {"compile": last.kernels.compile, "activation_checkpointing": last.kernels.activation_checkpointing}
    stage: dict[str, Any] = {
        "layers": last.layers,
        "steps": steps,
        "batch_sequences": last.global_batch,
        "micro_batch": last.micro_batch,
        "ranks": last.ranks,
    }
    if raw["schedule"]["kind"] == "stages":
        stage["learning_rate"] = _learning_rate(run, raw, steps)
    else:
        raw["schedule"] = _schedule(run, raw["schedule"], steps)
    raw |= {
        "name": f"{plan.name}-baseline",
        "precision": last.precision,
        "stages": [stage],
        "ds_config": {**_without_learning_rate(last.ds_config), "stacking": kernels},
    }
    raw["data"]["path"] = plan.data.path
    return recipe_from(raw, Path("baseline.yaml"))


def baseline_steps(run: Run) -> int:
    """Returns how many updates of the deepest model fit into the wall-clock time charged to ``run``.

    Raises:
        UserError: the last stage is not finished, or has too few records to measure its speed.
    """
    last, records = run.plan.stages[-1], run.stage_records(run.plan.stages[-1].index, "train")
    if not records or records[-1]["step"] < last.steps:
        if divergence(run.events):
            raise UserError(run.folder.path, "has diverged", "give a run that has finished training")
        remedy = f"run `{command('resume', run.folder.path)}` first"
        raise UserError(run.folder.path, "has not finished training", remedy)
    clock, first = ChargedClock(run), records[0]
    updates = last.steps - first["step"]
    if not updates:
        raise UserError(run.folder.path, "has only one record of its last stage", "lower log_every in its recipe")
    seconds: float = (clock(records[-1]["time"]) - clock(first["time"])) / updates
    start_up = transition(run, last.index).start_up or 0.0
    return max(1, round((charged_seconds(run) - start_up) / seconds))


def _schedule(run: Run, schedule: dict[str, Any], steps: int) -> dict[str, Any]:
    """Returns the schedule over ``steps`` updates: with lengths in proportion, and the same warm-up if that fits."""
    share = steps / sum(stage.steps for stage in run.plan.stages)
    lengths = {name: max(1, round(schedule[name] * share)) for name in _LENGTHS if schedule.get(name)}
    warmups = {
        name: min(schedule[name], max(steps // 2, least)) for name, least in _WARMUPS.items() if name in schedule
    }
    return {**schedule, **lengths, **warmups}


def _without_learning_rate(config: dict[str, Any]) -> dict[str, Any]:
    """Removes the last stage's peak learning rate, which may differ from that of the whole run."""
    parameters = {name: value for name, value in config["optimizer"]["params"].items() if name != "lr"}
    return {**config, "optimizer": {**config["optimizer"], "params": parameters}}


def _learning_rate(run: Run, raw: dict[str, Any], steps: int) -> dict[str, float]:
    """Returns a schedule with the highest rate of all stages, the first stage's warm-up and the run's final rate."""
    points = [value for stage in run.plan.stages for _, value in stage.learning_rate]
    first = raw["stages"][0].get("learning_rate") or {}
    warmup = min(first.get("warmup_steps", 0), steps // 2)
    return {"peak": max(points), "warmup_steps": warmup, "end": run.plan.stages[-1].learning_rate[-1][1]}
