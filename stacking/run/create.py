"""From a recipe to a run folder that a controller can work on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stacking.config.recipe import Recipe, load_recipe
from stacking.data.corpus import Corpus, load_manifest
from stacking.data.samples import SampleIndex
from stacking.deepspeed_config.own_check import Final, check_finals
from stacking.errors import DamagedFile, UserError
from stacking.hardware.machine import find_machine
from stacking.planning.plan import Plan, check_machine, load_plan, make_plan
from stacking.planning.resolve import user_config
from stacking.run.folder import RunFolder
from stacking.storage.files import checksum, disk_errors, verify_folder, write_atomically

SPLITS = ("train", "held_out")


def plan_recipe(recipe: Recipe, fast: bool = False) -> tuple[Plan, dict[str, SampleIndex]]:
    """The plan of ``recipe`` on this machine, and the sample index of each split; without data, a plan alone.

    Args:
        fast: leave out what DeepSpeed itself says about the stages' configurations, which takes seconds.

    Raises:
        UserError: the recipe or the data is wrong, or DeepSpeed refuses a configuration.
    """
    plan, samples = _plan_and_samples(recipe)
    if not fast:
        wheres = [user_config(recipe, stage.index).where for stage in plan.stages]
        check_finals([Final(w, s.name, s.ds_config, s.ranks) for w, s in zip(wheres, plan.stages, strict=True)])
    return plan, samples


def _plan_and_samples(recipe: Recipe) -> tuple[Plan, dict[str, SampleIndex]]:
    if recipe.data.path is None:
        return make_plan(recipe, None, None, find_machine()), {}
    folder = Path(recipe.data.path)
    manifest = load_manifest(folder)
    samples = {
        split: SampleIndex(Corpus(folder, split=split), recipe.data.samples, recipe.data.sequence_length)
        for split in SPLITS
    }
    return make_plan(recipe, manifest, len(samples["train"]), find_machine()), samples


def create_run(
    name: str, run: RunFolder, overrides: Sequence[str] = (), data: Path | None = None, elsewhere: bool = False
) -> Plan:
    """Resolve a recipe into a plan and write both, and the sample indices, into ``run``.

    The journal's first event is written last: a folder without it is not a run yet, and is made again.

    Args:
        elsewhere: the ranks will run on other machines than this one.

    Raises:
        UserError: the recipe or the data is wrong, or the folder holds a run or something else already.
    """
    _refuse_foreign_folder(run)
    recipe = load_recipe(name, list(overrides), data)
    plan, samples = plan_recipe(recipe)
    check_machine(plan, None if elsewhere else find_machine())
    verify_folder(Path(str(plan.data.path)))
    with disk_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        for split, index in samples.items():
            index.write(run.samples(split))
        write_atomically(run.recipe, recipe.to_yaml())
        write_atomically(run.plan, plan.to_json())
        checksums = {split: checksum(run.samples(split)) for split in samples}
        run.journal.append("created", plan=checksum(run.plan), samples=checksums, name=plan.name)
    return plan


def open_run(run: RunFolder) -> Plan:
    """The plan of a run that was created, after making sure that it and its data are what they were.

    Raises:
        UserError: there is no run, or its plan or its data were changed since.
    """
    created = next((e for e in run.journal.events() if e["event"] == "created"), None)
    if created is None:
        raise UserError(run.path, "is not a run", "start one with `stacking run RECIPE --run-dir DIR`")
    if not run.plan.is_file() or checksum(run.plan) != created.get("plan"):
        raise UserError(run.plan, "was changed since the run was created", "restore it, or start another run")
    for split, expected in created.get("samples", {}).items():
        if not run.samples(split).is_file() or checksum(run.samples(split)) != expected:
            raise DamagedFile(run.samples(split), "is missing or was changed since the run was created")
    plan = load_plan(run.plan)
    data = Path(str(plan.data.path))
    if load_manifest(data)["digest"] != plan.data.digest:
        raise UserError(data, "holds other data than when the run was created", "restore it, or start anew")
    verify_folder(data)
    return plan


def _refuse_foreign_folder(run: RunFolder) -> None:
    if run.journal.events():
        raise UserError(run.path, "holds a run already", f"go on with `stacking resume {run.path}`, or choose another")
    samples = [run.samples(split) for split in SPLITS]
    ours = {path.name for path in (run.recipe, run.plan, run.lock, run.scripts, *samples)}
    if run.path.is_dir() and (foreign := [n for n in os.listdir(run.path) if n not in ours and not n.startswith(".")]):
        raise UserError(run.path, f"is not empty (it holds {foreign[0]!r})", "choose a folder that is new or empty")
