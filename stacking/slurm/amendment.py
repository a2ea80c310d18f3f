"""Changes what the jobs of an existing run request; resources are not part of a run's identity."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stacking.config.recipe import Recipe
from stacking.config.resources import Resources
from stacking.errors import UserError
from stacking.planning.plan import Plan
from stacking.planning.stage import decide_resources
from stacking.run.folder import RunFolder
from stacking.run.kept import kept_recipe
from stacking.storage.files import write_sealed_text

_OF_RESOURCES = re.compile(r"\s*(launch|stages\[\d+\])\.resources\b")


def is_same_run(one: Recipe, other: Recipe) -> bool:
    """Returns whether both recipes describe the same run; they may request different resources."""
    return _identity(one) == _identity(other)


def current_recipe(run: RunFolder, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the run's recipe with the resources that its jobs request now, changed by ``overrides``.

    Raises:
        UserError: an override changes anything else, or is invalid.
    """
    for override in overrides:
        if not _OF_RESOURCES.match(override):
            problem = "changes the run itself, which --resume continues as it is"
            remedy = "give launch.resources.KEY or stages[i].resources.KEY, or start another run"
            raise UserError(f"--set {override}", problem, remedy)
    file = run.amended if run.amended.is_file() else run.recipe
    return kept_recipe(file, overrides)


def chosen_recipe(run: RunFolder, given: Recipe) -> Recipe:
    """Returns the recipe whose resources count: the current one, unless ``given`` differs from the run's own."""
    own = kept_recipe(run.recipe)
    return current_recipe(run) if resources_of(given) == resources_of(own) else given


def with_resources(plan: Plan, recipe: Recipe) -> Plan:
    """Returns ``plan`` with the resources that ``recipe`` requests.

    Raises:
        UserError: the ranks of a stage cannot be spread over the nodes.
    """
    stages = (
        stage.model_copy(update={"resources": decide_resources(recipe, stage.index, stage.ranks)})
        for stage in plan.stages
    )
    launch = plan.launch.model_copy(update={"resources": recipe.launch.resources})
    return plan.model_copy(update={"stages": tuple(stages), "launch": launch})


def resources_of(recipe: Recipe) -> tuple[Resources, ...]:
    """Returns what the recipe requests: ``launch.resources``, then the ``resources`` of each stage."""
    return (recipe.launch.resources, *(stage.resources for stage in recipe.stages))


def write_amendment(run: RunFolder, recipe: Recipe) -> None:
    """Makes the resources of ``recipe`` those of the jobs that are submitted from now on."""
    write_sealed_text(run.amended, recipe.to_yaml())


def _identity(recipe: Recipe) -> str:
    bare: dict[str, Any] = {"resources": Resources()}
    stages = tuple(stage.model_copy(update=bare) for stage in recipe.stages)
    return recipe.model_copy(update={"stages": stages, "launch": recipe.launch.model_copy(update=bare)}).to_yaml()
