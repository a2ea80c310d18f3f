"""Decides how a stage's model grows out of the previous one, and which layers are trained how afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stacking.config.recipe import NewLayers, Recipe, StageGrowth
from stacking.errors import UserError
from stacking.growth.operators import LISTED, added_layers, check_listed, layer_sources, listed_sources, reachable
from stacking.state.layers import LayerSource
from stacking.storage.frozen import Frozen


class Rates(NamedTuple):
    """Holds the learning rates of one update."""

    added: float
    """That of the layers that the stage has added."""
    rest: float


class PlannedGrowth(Frozen):
    """A growth whose layers' sources are resolved."""

    operator: str
    """A key of `OPERATORS`, or ``layers_from``."""
    optimizer_state: str
    sources: tuple[str, ...]
    """The source of each layer, such as ``1 copy``."""
    new_layers: NewLayers = NewLayers()

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
    """Decide how a stage grows out of ``before`` layers; None: its weights are random, or the previous stage's.

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
    if own.layers_from is not None:
        operator, sources = LISTED, _listed(f"{where}.layers_from", own.layers_from, before, stage.layers)
    else:
        operator = own.operator or recipe.growth.operator
        sources = _produced(recipe, index, operator, before)
    growth = PlannedGrowth(
        operator=operator,
        optimizer_state=own.optimizer_state or recipe.growth.optimizer_state,
        sources=tuple(map(str, sources)),
        new_layers=own.new_layers or recipe.growth.new_layers,
    )
    _check_length(f"{where if own.new_layers else recipe.key('growth')}.new_layers", growth.new_layers, index, steps)
    return growth


def _produced(recipe: Recipe, index: int, operator: str, before: int) -> tuple[LayerSource, ...]:
    layers = recipe.stages[index].layers
    if reachable(operator, before, layers):
        return layer_sources(operator, before, layers)
    depths = [n for n in range(before, layers + before + 1) if reachable(operator, before, n)]
    near = min(depths, key=lambda n: abs(n - layers))
    remedy = "growth.operator: identity"
    remedy = f"give {near}, or {remedy}" if near > before else f"give {remedy}"
    problem = f"is {layers}, which {operator} cannot grow from {before}"
    raise UserError(recipe.key("stages", index, "layers"), problem, remedy)


def _listed(where: str, items: Sequence[int | str], before: int, layers: int) -> tuple[LayerSource, ...]:
    if len(items) != layers:
        raise UserError(where, f"lists {len(items)} layers, but the stage has {layers}", f"list {layers}")
    try:
        sources = listed_sources(items)
        check_listed(sources, before)
    except ValueError as error:
        raise UserError(where, str(error), f"give numbers from 0 to {before - 1}") from None
    return sources


def _check_length(where: str, new: NewLayers, index: int, steps: int | None) -> None:
    for key, count in (("alone_steps", new.alone_steps), ("rewarmup_steps", new.rewarmup_steps)):
        if steps is not None and count > steps:
            raise UserError(f"{where}.{key}", f"is {count:,}, but stages[{index}] has {steps:,} steps", "give fewer")
