"""Trains one run of a comparison through the ordinary chain, from wherever it was left."""

from __future__ import annotations

from collections.abc import Callable

from stacking.config.recipe import Recipe
from stacking.errors import UserError
from stacking.launch.job import Launcher
from stacking.planning.plan import Plan
from stacking.run.controller import Controller
from stacking.run.create import design_of, holding_new, open_run, require_idle, write_run
from stacking.run.folder import RunFolder
from stacking.run.lease import Lease
from stacking.run.phases import is_over
from stacking.run.progress import Progress
from stacking.run.rewind import divergence, refuse_repetition


def is_settled(run: RunFolder) -> bool:
    """Returns whether a run needs no more training: it is finished, or has diverged and would diverge again."""
    return is_over(run) or divergence(run.journal.events()) is not None


def check_recipe_of(run: RunFolder, recipe: Recipe) -> None:
    """Checks that an existing run was created from ``recipe``.

    Raises:
        UserError: it was created from another one.
    """
    if run.journal.events() and run.recipe.is_file() and run.recipe.read_bytes() != recipe.to_yaml().encode():
        problem = f"was trained with other settings than {recipe.file} has now"
        raise UserError(run.recipe, problem, "rename the recipe's file, or choose another --out")


def train(run: RunFolder, recipe: Recipe, launcher: Launcher, remote: bool, note: Callable[[str], None]) -> None:
    """Trains a new run, or the rest of an interrupted one.

    Args:
        remote: the ranks run on other machines.
        note: called with a message for each damaged file that was restored.

    Raises:
        Preempted: a signal stopped it after a checkpoint.
        Diverged: training produced a loss that is not finite.
        StackingError: a phase failed.
    """
    require_idle(run)
    if not run.journal.events():
        design = design_of(recipe, run, elsewhere=remote)
        with holding_new(run) as lease:
            write_run(design, run)
            _control(run, design.plan, launcher, lease)
        return
    with run.locked() as lease:
        plan = open_run(run, note)
        refuse_repetition(run)
        run.journal.append("resumed")
        _control(run, plan, launcher, lease)


def _control(run: RunFolder, plan: Plan, launcher: Launcher, lease: Lease) -> None:
    with Progress(plan) as progress:
        Controller(run, plan, launcher, progress, lease).run()
