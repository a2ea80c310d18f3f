"""Creates and opens run folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.config.recipe import Recipe, load_recipe
from stacking.data.corpus import Corpus, load_manifest
from stacking.data.samples import SampleIndex
from stacking.deepspeed_config.findings import ConfigConflict, FinalConfig
from stacking.deepspeed_config.own_check import check_finals, with_complaints
from stacking.errors import DamagedFile, UserError
from stacking.hardware.machine import find_machine
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import Plan, check_machine, write_plan
from stacking.planning.stage import user_config
from stacking.run.branch import BranchPoint, begin_as
from stacking.run.decisions import settled_plan
from stacking.run.folder import RunFolder, continuation, is_locked
from stacking.run.lease import Lease
from stacking.storage.files import checksum, disk_errors, set_aside_unless_file, verify_folder, write_sealed_text

SPLITS = ("train", "held_out")


def plan_recipe(recipe: Recipe, fast: bool = False) -> tuple[Plan, dict[str, SampleIndex]]:
    """Returns the plan of ``recipe`` on this machine, and the sample index of each split if there is data.

    Args:
        fast: skip DeepSpeed's own check of the stages' configurations, which takes seconds.

    Raises:
        UserError: the recipe or the data is invalid, or DeepSpeed rejects a configuration.
    """
    try:
        plan, samples = _plan_and_samples(recipe)
    except ConfigConflict as conflict:
        raise (conflict if fast else with_complaints(conflict)) from None
    if not fast:
        wheres = [user_config(recipe, stage.index).where for stage in plan.stages]
        check_finals([FinalConfig(w, s.name, s.ds_config, s.ranks) for w, s in zip(wheres, plan.stages, strict=True)])
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


@dataclass(frozen=True)
class Design:
    """Holds a checked recipe and everything derived from it that a new run folder needs."""

    recipe: Recipe
    plan: Plan
    samples: Mapping[str, SampleIndex]
    """The sample index of each split."""


def design_of(recipe: Recipe, run: RunFolder, elsewhere: bool = False) -> Design:
    """Resolves a recipe into a plan and checks everything; writes nothing.

    Args:
        elsewhere: the ranks will run on other machines.

    Raises:
        UserError: the recipe or the data is invalid, or the folder is not empty.
    """
    _refuse_foreign_folder(run)
    plan, samples = plan_recipe(recipe)
    check_machine(plan, None if elsewhere else find_machine())
    verify_folder(Path(str(plan.data.path)))
    return Design(recipe, plan, samples)


def require_idle(run: RunFolder) -> None:
    """Waits until the ranks of a killed controller have ended.

    Raises:
        UserError: a controller is running.
    """
    if is_locked(run.lock):
        with run.locked():
            pass


@contextmanager
def holding_new(run: RunFolder) -> Iterator[Lease]:
    """Creates the folder of a new run and holds its lock.

    If the block raises before it has written anything, the folder is removed.
    """
    is_new = not run.path.exists()
    try:
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        with run.locked() as lease:
            yield lease
    except BaseException:
        if is_new and run.path.is_dir() and set(os.listdir(run.path)) <= {run.lock.name}:
            shutil.rmtree(run.path)
        raise


def write_run(design: Design, run: RunFolder, begins: BranchPoint | None = None) -> None:
    """Writes the plan, the recipe and the sample indices of a new run; the caller must hold its lock.

    The event ``created`` is written last: a folder without any event is not a run yet, and is written again.

    Raises:
        UserError: the folder is no longer empty.
        DamagedFile: the checkpoint that it begins with is damaged.
    """
    _refuse_foreign_folder(run)
    with disk_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        for split, index in design.samples.items():
            index.write(run.samples(split))
        write_sealed_text(run.recipe, design.recipe.to_yaml())
        write_plan(run.plan, design.plan)
        if begins is not None:
            begin_as(begins, run)
        _record_creation(run, design.plan)


def create_run(
    name: str, run: RunFolder, overrides: Sequence[str] = (), data: Path | None = None, elsewhere: bool = False
) -> Plan:
    """Creates a run of the recipe called ``name`` with `design_of` and `write_run`; returns its plan.

    Raises:
        UserError: the recipe or the data is invalid, or the folder is not empty.
    """
    design = design_of(load_recipe(name, list(overrides), data), run, elsewhere)
    write_run(design, run)
    return design.plan


def open_run(run: RunFolder, note: Callable[[str], None] = lambda text: None) -> Plan:
    """Verifies a run's plan and data and returns the plan; the caller must hold the run's lock.

    A damaged journal is restored from the plan, damaged sample indices from the data.

    Args:
        note: called with a message for each file that was restored.

    Raises:
        UserError: there is no run, or its plan or data were changed since it was created.
    """
    require_run(run)
    run.remove_unfinished()
    damage = run.journal.mend()
    plan = _own_plan(run)
    data = Path(str(plan.data.path))
    if load_manifest(data)["digest"] != plan.data.digest:
        raise UserError(data, "does not hold the data that the run was created with", "restore it, or start a new run")
    verify_folder(data)
    created = _created(run)
    for problem in ([damage] if damage else []) + _mend_samples(run, plan, created):
        run.journal.append("damaged", phase="verify", stage=-1, message=problem)
        note(problem)
    if created is None:
        note(f"{run.journal.path}: lacks the run's creation; rebuilt from plan.json and verified files")
        _record_creation(run, plan)
    return plan


def require_run(run: RunFolder) -> None:
    """Checks that ``run`` is a run folder.

    Raises:
        UserError: there is no run, or its identifying files are lost.
    """
    if not run.plan.is_file():
        if run.journal.events():
            raise DamagedFile(run.plan, "is missing", "restore it from a copy, or start another run")
        raise UserError(run.path, "is not a run", "start one with `stacking run RECIPE --run-dir DIR`")


def _created(run: RunFolder) -> dict[str, Any] | None:
    return next((event for event in run.journal.events() if event["event"] == "created"), None)


def _record_creation(run: RunFolder, plan: Plan) -> None:
    samples = {split: checksum(run.samples(split)) for split in SPLITS}
    run.journal.append("created", plan=checksum(run.plan), samples=samples, name=plan.name)


def _own_plan(run: RunFolder) -> Plan:
    """Returns the plan, which must be the one that the run was created with."""
    created = _created(run)
    try:
        plan = settled_plan(run)
    except DamagedFile as damage:
        raise DamagedFile(run.plan, damage.problem, "restore it from a copy, or start another run") from None
    if created is not None and created.get("plan") != checksum(run.plan):
        raise UserError(run.plan, "has changed since the run was created", "restore it, or start another run")
    return plan


def _mend_samples(run: RunFolder, plan: Plan, created: dict[str, Any] | None) -> list[str]:
    """Recreates damaged sample indices from the data; returns a description of each.

    Raises:
        UserError: the data now yield other samples.
    """
    expected, mended = (created or {}).get("samples", {}), []
    for split in SPLITS:
        path = run.samples(split)
        if path.is_file() and split in expected and checksum(path) == expected[split]:
            continue
        set_aside_unless_file(path)
        was_there = path.is_file()
        data = plan.data
        SampleIndex(Corpus(Path(str(data.path)), split=split), data.samples, data.sequence_length).write(path)
        if split in expected and checksum(path) != expected[split]:
            problem = "cannot be recreated: this version draws other samples from the data"
            raise DamagedFile(path, problem, "restore it from a copy, or start another run")
        if split in expected:
            mended.append(f"{path}: was {'altered' if was_there else 'missing'}; recreated from the data")
    return mended


def _refuse_foreign_folder(run: RunFolder) -> None:
    if not next(place for place in (run.path, *run.path.parents) if place.exists()).is_dir():
        raise UserError(run.path, "is a file, or is inside one", "choose a folder")
    names = os.listdir(run.path) if run.path.is_dir() else []
    samples = [run.samples(split) for split in SPLITS]
    ours = {path.name for path in (run.recipe, run.plan, run.lock, run.scripts, *samples)}
    foreign = [name for name in names if name not in ours and not name.startswith(".")]
    if run.journal.events() or (run.plan.is_file() and foreign):
        remedy = f"run `{continuation(run)}` to continue it, or choose another folder"
        raise UserError(run.path, "already holds a run", remedy)
    if foreign:
        raise UserError(run.path, f"is not empty (it holds {foreign[0]!r})", "choose a new or empty folder")
