"""Decides how a stage's model grows out of the previous one, and how its layers are trained afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stacking.config.recipe import NewLayers, OperatorTrial, Recipe, StageGrowth
from stacking.errors import UserError
from stacking.growth.operators import (
    LISTED,
    OPERATORS,
    TRIAL,
    added_layers,
    check_listed,
    layer_sources,
    listed_sources,
    reachable,
)
from stacking.state.layers import LayerSource
from stacking.storage.frozen import Frozen


class Rates(NamedTuple):
    """Holds the learning rates of one update."""

    added: float
    """That of the layers that the stage has added."""
    rest: float


class PlannedTrial(Frozen):
    """A trial of several operators."""

    steps: int
    """Updates of each candidate."""
    sources: Mapping[str, tuple[str, ...]]
    """The candidates, and the source of each layer by each of them."""

    @property
    def updates(self) -> int:
        """Returns the updates of all candidates."""
        return self.steps * len(self.sources)


class PlannedGrowth(Frozen):
    """A growth whose layers' sources are resolved."""

    operator: str
    """A key of `OPERATORS`, or ``layers_from``. With a trial: the first candidate, until the best one is known."""
    optimizer_state: str
    sources: tuple[str, ...]
    """The source of each layer, such as ``1 copy``."""
    new_layers: NewLayers = NewLayers()
    trial: PlannedTrial | None = None

    def by(self, candidate: str) -> PlannedGrowth:
        """Returns the growth by one candidate of the trial."""
        assert self.trial is not None
        return self.model_copy(update={"operator": candidate, "sources": self.trial.sources[candidate]})

    @property
    def added(self) -> frozenset[int]:
        """Returns the numbers of the added layers."""
        return frozenset(added_layers([LayerSource.parse(source) for source in self.sources]))

    @property
    def apart(self) -> frozenset[int]:
        """Returns the numbers of the layers that have a learning rate of their own."""
        return frozenset() if self.new_layers == NewLayers() else self.added

    def rates(self, step: int, steps: int, rate: float) -> Rates:
        """Returns the learning rates of update ``step`` (from 0) of a stage of ``steps``, given its schedule's."""
        new, rise = self.new_layers, self.new_layers.rewarmup_steps
        if step < rise:
            factor = new.peak_factor * step / rise
        else:
            factor = new.peak_factor + (1 - new.peak_factor) * (step - rise) / (steps - rise)
        return Rates(rate * factor, 0.0 if step < new.alone_steps else rate)


def decide_growth(recipe: Recipe, index: int, before: int | None, steps: int | None) -> PlannedGrowth | None:
    """Decides how a stage grows out of ``before`` layers; None: its weights are random, or the previous stage's.

    Args:
        steps: updates of the stage, if known.

    Raises:
        UserError: the number of layers shrinks, the operator cannot produce it, a list names other layers, or the
            treatment of the new layers is longer than the stage.
    """
    stage, own = recipe.stages[index], recipe.stages[index].growth or StageGrowth()
    where = recipe.key("stages", index, "growth")
    if before is None or (stage.layers == before and own.layers_from is None):
        if own.layers_from or own.new_layers:
            key = "layers_from" if own.layers_from else "new_layers"
            problem = "there is no model to grow" if before is None else f"the stage keeps its {before} layers"
            raise UserError(f"{where}.{key}", f"has no effect: {problem}", "remove it, or give more layers")
        return None
    if stage.layers < before:
        raise UserError(
            recipe.key("stages", index, "layers"), f"is {stage.layers} after {before}", "layers can only grow"
        )
    trial = _trial(recipe, index, before, steps)
    if own.layers_from is not None:
        operator, sources = LISTED, _listed(f"{where}.layers_from", own.layers_from, before, stage.layers)
    elif trial is not None:
        operator, sources = next(iter(trial.sources.items()))
    else:
        operator = own.operator or recipe.growth.operator
        sources = _produced(recipe, index, operator, before)
    growth = PlannedGrowth(
        operator=operator,
        optimizer_state=own.optimizer_state or recipe.growth.optimizer_state,
        sources=sources,
        new_layers=own.new_layers or recipe.growth.new_layers,
        trial=trial,
    )
    _check_length(f"{where if own.new_layers else recipe.key('growth')}.new_layers", growth.new_layers, index, steps)
    return growth


def _trial(recipe: Recipe, index: int, before: int, steps: int | None) -> PlannedTrial | None:
    """Returns the trial that decides the stage's operator, if there is one.

    Raises:
        UserError: there is a trial without its settings or the reverse, fewer than two candidates, one that cannot
            reach the depth, or more updates than the stage has.
    """
    own, common = recipe.stages[index].growth or StageGrowth(), recipe.growth
    asked = own.layers_from is None and (own.operator or common.operator) == TRIAL
    settings = own.trial or (common.trial if asked else None)
    where = recipe.key(*(("stages", index) if own.trial or own.operator else ()), "growth")
    if settings is None and asked:
        raise UserError(f"{where}.trial", "is missing", "give trial: {steps: N}, about 1 % of the run's updates")
    if settings is None:
        return None
    if not asked:
        raise UserError(
            f"{where}.trial", "is given, but the operator is not trial", "set operator: trial, or remove it"
        )
    if steps is not None and settings.steps > steps:
        raise UserError(
            f"{where}.trial.steps", f"is {settings.steps:,}, but stages[{index}] has {steps:,}", "give fewer"
        )
    candidates = _candidates(where, settings, before, recipe.stages[index].layers)
    return PlannedTrial(
        steps=settings.steps, sources={name: _produced(recipe, index, name, before) for name in candidates}
    )


def _candidates(where: str, settings: OperatorTrial, before: int, layers: int) -> list[str]:
    """Returns the names of the operators in a trial, each once and in order; those that do the same count as one."""
    names = settings.operators or [name for name in OPERATORS if reachable(name, before, layers)]
    different = {
        layer_sources(name, before, layers): name for name in reversed(names) if reachable(name, before, layers)
    }
    candidates = [name for name in names if settings.operators or name in different.values()]
    if len(candidates) < 2 or len(set(candidates)) < len(candidates):
        problem = f"leaves {', '.join(candidates) or 'no operator'} to grow {before} layers to {layers}"
        raise UserError(f"{where}.trial.operators", problem, "give at least two different ones that reach the depth")
    return candidates


def _produced(recipe: Recipe, index: int, operator: str, before: int) -> tuple[str, ...]:
    layers = recipe.stages[index].layers
    if reachable(operator, before, layers):
        return tuple(map(str, layer_sources(operator, before, layers)))
    depths = [n for n in range(before, layers + before + 1) if reachable(operator, before, n)]
    near = min(depths, key=lambda n: abs(n - layers))
    remedy = "growth.operator: identity"
    remedy = f"give {near}, or {remedy}" if near > before else f"give {remedy}"
    problem = f"is {layers}, which {operator} cannot grow from {before}"
    raise UserError(recipe.key("stages", index, "layers"), problem, remedy)


def _listed(where: str, items: Sequence[int | str], before: int, layers: int) -> tuple[str, ...]:
    if len(items) != layers:
        raise UserError(where, f"lists {len(items)} layers, but the stage has {layers}", f"list {layers}")
    try:
        sources = listed_sources(items)
        check_listed(sources, before)
    except ValueError as error:
        raise UserError(where, str(error), f"give numbers from 0 to {before - 1}") from None
    return tuple(map(str, sources))


def _check_length(where: str, new: NewLayers, index: int, steps: int | None) -> None:
    for key, count in (("alone_steps", new.alone_steps), ("rewarmup_steps", new.rewarmup_steps)):
        if steps is not None and count > steps:
            raise UserError(f"{where}.{key}", f"is {count:,}, but stages[{index}] has {steps:,} steps", "give fewer")
