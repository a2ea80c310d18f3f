"""Implements `stacking tune`, from a recipe to the files it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from stacking.bench.targets import save_rows
from stacking.config.recipe import Recipe
from stacking.data.corpus import load_manifest
from stacking.errors import StackingError, UserError
from stacking.hardware.machine import find_machine
from stacking.launch.job import Launcher
from stacking.launch.registry import open_launcher
from stacking.launch.slurm import Allocation
from stacking.planning.plan import Plan, StagePlan
from stacking.report.tables import Table
from stacking.run.create import plan_recipe
from stacking.run.folder import RunFolder
from stacking.storage.files import write_atomically, write_json
from stacking.terminal.units import UNKNOWN, counted
from stacking.tune.candidate import Candidate
from stacking.tune.explain import gain
from stacking.tune.measure import Budget, StageTrials, Tell
from stacking.tune.picture import picture
from stacking.tune.runoff import decide
from stacking.tune.search import Search
from stacking.tune.space import facts_of, memory_limit, memory_needed, space_of
from stacking.tune.store import Records, open_folder
from stacking.tune.variant import Variants
from stacking.tune.write import PAGE, PICTURE, TunedStage, page, tuned_configs, write_recipe

_SAMPLES = "samples.train.npy"


@dataclass(frozen=True)
class TuneRequest:
    """What the user asks `stacking tune` for."""

    recipe: Recipe
    out: Path
    stages: Sequence[int] | None
    launcher: str | None
    trials: int | None
    minutes: float | None


@dataclass(frozen=True)
class Report:
    """What a tuning found, and the files that it wrote."""

    tuned: Sequence[TunedStage]
    configs: dict[int, str]
    """The name of each tuned configuration, by the index of its stage."""
    recipe: Path
    page: Path


def tune(request: TuneRequest, tell: Tell) -> Report:
    """Searches, measures and writes the results; an interrupted tuning reuses its finished trials.

    Raises:
        UserError: the recipe, the folder or an option is wrong.
        StackingError: nothing could be measured in any stage.
    """
    _check(request)
    machine = find_machine()
    base, rows = plan_recipe(request.recipe)
    stages = _chosen(base, request.stages)
    name = request.launcher or base.launch.launcher
    launcher = open_launcher(name)
    for stage in stages:
        _check_room(base, stage, launcher)
    manifest = load_manifest(Path(base.data.path)) if base.data.path else None
    variants = Variants(request.recipe, manifest, base.data.samples_per_epoch, machine)
    folder = open_folder(request.out, base, machine, name)
    with RunFolder(folder).locked():
        samples = save_rows(rows.get("train"), folder / _SAMPLES)  # all trials share it
        budget = Budget(request.trials, request.minutes * 60 if request.minutes else None, len(stages))
        tuned = []
        try:
            for stage in stages:
                budget.next_stage()
                records, under = Records(folder, stage.name), _under(stage, tell)
                trials = StageTrials(variants, stage.index, records, launcher, budget, samples, under)
                tuned.append(_tune_stage(variants, stage, trials, _ranks_on_host(stage, base, name)))
        except KeyboardInterrupt:
            tell("interrupted; run the same command again to continue")
            raise
        return _write(folder, variants, tuned)


def _tune_stage(variants: Variants, stage: StagePlan, trials: StageTrials, ranks_on_host: int) -> TunedStage:
    plan = variants.base

    def needed(candidate: Candidate) -> int:
        changed = variants.plan(stage.index, candidate)
        return memory_needed(changed, changed.stages[stage.index])

    limit = memory_limit(plan, variants.machine, ranks_on_host)
    found = Search(space_of(stage, facts_of(plan, stage)), trials, needed, limit).run()
    return TunedStage(stage, found, decide(found, trials.again) if found.measured else None)


def _write(folder: Path, variants: Variants, tuned: Sequence[TunedStage]) -> Report:
    configs = tuned_configs(variants, tuned)
    if not configs:
        last = next((tried.message for tried in reversed(tuned[-1].found.tried) if tried.message), "no trial was run")
        raise StackingError(f"{folder}: nothing could be measured: {last}")
    names = {index: f"{variants.base.stages[index].name}.json" for index in configs}
    for index, config in configs.items():
        write_json(folder / names[index], config)
    recipe = write_recipe(folder, variants, names)
    write_atomically(folder / PICTURE, picture(variants.base, tuned))
    write_atomically(folder / PAGE, page(variants.base, tuned, names, configs))
    return Report(tuned, names, recipe, folder / PAGE)


def _check(request: TuneRequest) -> None:
    if request.minutes is not None and not 0 < request.minutes < inf:
        raise UserError("--budget-minutes", f"is {request.minutes:g}", "give a number greater than 0")
    if request.trials is not None and request.trials < 1:
        raise UserError("--trials", f"is {request.trials}", "give at least 1")


def _chosen(plan: Plan, indices: Sequence[int] | None) -> list[StagePlan]:
    """Returns the stages with these indices.

    Raises:
        UserError: there is no such stage.
    """
    last = len(plan.stages) - 1
    if indices is not None and (wrong := [index for index in indices if not 0 <= index <= last]):
        raise UserError("--stages", f"there is no stage {wrong[0]}", f"give numbers from 0 to {last}, such as 0,{last}")
    return [stage for stage in plan.stages if indices is None or stage.index in indices]


def _check_room(plan: Plan, stage: StagePlan, launcher: Launcher) -> None:
    room = launcher.capacity(plan.launch.accelerator)
    if room is not None and room < stage.ranks:
        problem = f"{stage.name} is planned for {counted(stage.ranks, 'rank')}, but there is room for {room}"
        raise UserError(plan.recipe, problem, "tune where the stage will run, or set launch.ranks")


def _ranks_on_host(stage: StagePlan, plan: Plan, launcher: str) -> int:
    if launcher != "slurm":
        return stage.ranks
    return Allocation.of(os.environ).tasks_per_node(stage.ranks, plan.launch.accelerator)


def _under(stage: StagePlan, tell: Tell) -> Tell:
    return lambda line: tell(f"{stage.name}: {line}")


def as_table(report: Report) -> Table:
    """Returns a table with the winner of each stage, for the terminal."""
    head = ("stage", "micro-batch", "accumulation", "setting", "tokens/s", "× recipe", "trials", "configuration")
    rows = []
    for stage, found, final in report.tuned:
        if final is None:
            rows.append((stage.name, *[UNKNOWN] * 5, str(len(found.measured)), UNKNOWN))
            continue
        own, faster = final.winner.candidate, gain(found, final)
        accumulation = stage.global_batch // (own.micro_batch * stage.ranks)
        rows.append(
            (
                stage.name,
                str(own.micro_batch),
                str(accumulation),
                own.setting.words,
                f"{final.winner.tokens_per_second:,.0f}",
                UNKNOWN if faster is None else f"{faster:.2f}",
                str(sum(tried.result != "pruned" for tried in found.tried)),
                report.configs[stage.index],
            )
        )
    return Table(head, rows)


def as_dict(report: Report) -> dict[str, Any]:
    """Returns the winner and all trials of each stage, for JSON."""
    stages = []
    for stage, found, final in report.tuned:
        stages.append(
            {
                "name": stage.name,
                "global_batch": stage.global_batch,
                "ranks": stage.ranks,
                "config": report.configs.get(stage.index),
                "chosen": final.winner.candidate.model_dump() if final else None,
                "tokens_per_second": final.winner.tokens_per_second if final else None,
                "gain": gain(found, final) if final else None,
                "reason": final.reason if final else "nothing could be measured",
                "final_ratios": list(final.ratios) if final else [],
                "complete": not found.stopped,
                "tried": [tried.model_dump() for tried in found.tried],
            }
        )
    return {"format": 1, "kind": "tune", "recipe": str(report.recipe), "stages": stages}
