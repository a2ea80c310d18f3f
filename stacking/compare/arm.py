"""Defines the arms of a comparison: recipes that train on the same samples, and what they must have in common."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.config.recipe import Recipe, find_recipe, load_recipe
from stacking.errors import UserError
from stacking.planning.plan import Plan
from stacking.run.create import plan_recipe

_NAME = re.compile(r"[\w.+-]+")
_ANNEALED = 1e-3
"""A final learning rate up to this share of the peak counts as zero."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One schedule of a comparison."""

    name: str
    """The recipe file's name without its ending; also the name of the arm's folder."""
    source: str
    """The recipe as the user gave it: a file, or the name of a shipped one."""
    data: Path
    overrides: tuple[str, ...]
    """``KEY=VALUE`` each, applied to the recipe; without the seed."""
    plan: Plan
    """The plan for the first seed."""
    held_out: int
    """Number of held-out samples in the data."""

    @property
    def where(self) -> str:
        """The path of the recipe, for messages."""
        return str(find_recipe(self.source))

    @property
    def peak(self) -> float:
        """The highest learning rate of all stages."""
        return max(value for stage in self.plan.stages for _, value in stage.learning_rate)

    def settings(self, seed: int) -> list[str]:
        """Returns the ``KEY=VALUE`` changes to the recipe for one seed."""
        return [*self.overrides, f"seed={seed}"]

    def recipe(self, seed: int) -> Recipe:
        """Returns the recipe with the changes for one seed."""
        return load_recipe(self.source, self.settings(seed), self.data)

    def command(self, seed: int, run_dir: Path) -> str:
        """Returns the shell command that trains this arm with one seed."""
        settings = [word for setting in self.settings(seed) for word in ("--set", setting)]
        parts = ["stacking", "run", self.source, "--data", str(self.data), *settings, "--run-dir", str(run_dir)]
        return shlex.join(parts)


def read_arm(source: str, data: Path, overrides: Sequence[str] = ()) -> Arm:
    """Reads a recipe and plans it for the first seed.

    Raises:
        UserError: the recipe or the data is invalid, or the recipe's file has a name that no folder should have.
    """
    name = find_recipe(source).stem
    if not _NAME.fullmatch(name):
        problem = "names the arm's folder, which may only have letters, digits and . + - _"
        raise UserError(source, problem, "rename the file")
    data = data.absolute()
    recipe = load_recipe(source, [*overrides, "seed=0"], data)
    plan, samples = plan_recipe(recipe, fast=True)
    return Arm(
        name=name, source=source, data=data, overrides=tuple(overrides), plan=plan, held_out=len(samples["held_out"])
    )


def check_arms(arms: Sequence[Arm], any_model: bool = False) -> None:
    """Checks that a comparison of ``arms``, the baseline first, is fair.

    Args:
        any_model: the final models may differ; `model_differences` tells how.

    Raises:
        UserError: two arms have one name, the baseline grows, or an arm differs from it in something other than the
            schedule.
    """
    baseline = arms[0]
    names = [arm.name for arm in arms]
    for arm in arms:
        if names.count(arm.name) > 1:
            raise UserError(arm.source, f"is the second arm called {arm.name}", "rename one of the two files")
    if len({stage.layers for stage in baseline.plan.stages}) > 1:
        depths = " → ".join(str(stage.layers) for stage in baseline.plan.stages)
        problem = f"grows ({depths} layers), but the baseline trains the final architecture from the start"
        raise UserError(f"{baseline.where}: stages", problem, "give a recipe of one depth as the first argument")
    if not baseline.held_out:
        raise UserError(baseline.data, "has no held-out samples", "prepare the data with --held-out 0.01 or more")
    for arm in arms:
        _check_alone(arm)
        if not any_model:
            _check_same(baseline, arm, model_differences(baseline, arm), "give every arm the same, or --any-model")
        conditions = _differences(dict(_conditions(baseline.plan)), dict(_conditions(arm.plan)))
        _check_same(baseline, arm, conditions, "give every arm the same")


Difference = tuple[str, Any, Any]
"""A key of a recipe, its value in the baseline, and in an arm."""


def model_differences(baseline: Arm, arm: Arm) -> list[Difference]:
    """Returns how an arm's final model differs from the baseline's: in its depth, or in keys of ``model``."""
    return _differences(dict(_model(baseline.plan)), dict(_model(arm.plan)))


def _check_alone(arm: Arm) -> None:
    if arm.plan.start is not None:
        problem = f"is {arm.plan.start}, whose training would be free"
        raise UserError(f"{arm.where}: start", problem, "start every arm from random weights")
    final = arm.plan.stages[-1].learning_rate[-1][1]
    if final > _ANNEALED * arm.peak:
        problem = f"ends at a learning rate of {final:.3g}, {final / arm.peak:.0%} of its peak"
        raise UserError(arm.where, problem, "let the schedule of every arm end at 0")


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[Difference]:
    return [(key, theirs.get(key), value) for key, value in mine.items() if value != theirs.get(key)]


def _check_same(baseline: Arm, arm: Arm, differences: Sequence[Difference], remedy: str) -> None:
    if differences:
        key, theirs, mine = differences[0]
        problem = f"is {_shown(mine)}, but {_shown(theirs)} in the baseline {baseline.where}"
        raise UserError(f"{arm.where}: {key}", problem, remedy)


def _model(plan: Plan) -> Iterator[tuple[str, Any]]:
    yield "stages[-1].layers", plan.stages[-1].layers
    yield from _flat("model", plan.model.model_dump(mode="json", exclude={"layers"}))


def _conditions(plan: Plan) -> Iterator[tuple[str, Any]]:
    """Yields what all arms must share besides the model, under the keys of a recipe."""
    last = plan.stages[-1]
    data = plan.data.model_dump(mode="json", include={"digest", "samples", "sequence_length", "mask_probability"})
    yield from _flat("data", data)
    yield "evaluation.samples", plan.evaluation.samples
    yield from _flat("optimizer", plan.optimizer.model_dump(mode="json"))
    yield "ds_config.optimizer.type", last.ds_config.get("optimizer", {}).get("type")
    yield "precision", sorted({stage.precision for stage in plan.stages})
    yield "launch.accelerator", plan.launch.accelerator
    yield "launch.ranks", max(stage.ranks for stage in plan.stages)


def _flat(place: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        yield f"{place}.{key}", value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
