"""Defines growth operators, which map each layer of the deep model to a layer of the shallow one.

Operators are pure functions of layer numbers. The same mapping applies to weights and moments; `stacking.growth.apply`
executes it. A new operator is a function and a row in `OPERATORS`. This module does not import torch, since plans use
it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from stacking.state.layers import LayerSource


class Operator(NamedTuple):
    """Defines a growth operator: its mapping and the depths that it can reach."""

    sources: Callable[[int, int], tuple[LayerSource, ...]]
    reachable: Callable[[int, int], bool]


class OptimizerStateRule(NamedTuple):
    """Defines the treatment of Adam's state when a model grows."""

    copies_moments: bool
    """Whether both moments follow the weights' mapping; otherwise they start at zero."""
    keeps_step: bool
    """Whether the step count of Adam's bias correction continues; otherwise it starts at zero."""


def stack(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Repeats the whole stack on top of itself: layer i is copied to i + L, i + 2L, … (Gong et al., ICML 2019)."""
    return tuple(LayerSource(i % source_layers) for i in range(target_layers))


def interleave(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Repeats each layer k times: 0, 0, 1, 1, … (the order of Chang et al., ICLR 2018)."""
    return tuple(LayerSource(i * source_layers // target_layers) for i in range(target_layers))


def identity(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Keeps the old layers at the bottom and adds layers that initially compute the identity on top.

    A new layer i copies layer i mod L, with both projections into the residual stream set to zero. With ``pre_ln`` the
    grown model computes exactly the same function. With ``post_ln`` it does so only approximately, because a LayerNorm
    follows each residual sum and applies its scale and bias again.
    """
    return tuple(
        LayerSource(i % source_layers, "copy" if i < source_layers else "silent") for i in range(target_layers)
    )


def _multiple(source_layers: int, target_layers: int) -> bool:
    return 0 < source_layers <= target_layers and target_layers % source_layers == 0


def _at_least(source_layers: int, target_layers: int) -> bool:
    return 0 < source_layers <= target_layers


OPERATORS: dict[str, Operator] = {
    "stack": Operator(stack, _multiple),
    "interleave": Operator(interleave, _multiple),
    "identity": Operator(identity, _at_least),
}

OPTIMIZER_STATES: dict[str, OptimizerStateRule] = {
    "reset": OptimizerStateRule(copies_moments=False, keeps_step=False),
    "reset-keep-step": OptimizerStateRule(copies_moments=False, keeps_step=True),
    "copy": OptimizerStateRule(copies_moments=True, keeps_step=False),
    "copy-keep-step": OptimizerStateRule(copies_moments=True, keeps_step=True),
}


def reachable(operator: str, source_layers: int, target_layers: int) -> bool:
    """Returns whether ``operator`` can grow ``source_layers`` layers to ``target_layers``.

    Raises:
        ValueError: there is no such operator.
    """
    return _lookup(operator).reachable(source_layers, target_layers)


def layer_sources(operator: str, source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Returns the source of every target layer, from the bottom up.

    Raises:
        ValueError: there is no such operator, or it cannot reach the depth; the message lists the alternatives.
    """
    if not reachable(operator, source_layers, target_layers):
        candidates = range(source_layers, 4 * source_layers + 1)
        depths = ", ".join(str(n) for n in candidates if reachable(operator, source_layers, n))
        raise ValueError(f"{operator} makes {depths}, … layers out of {source_layers}, not {target_layers}")
    return _lookup(operator).sources(source_layers, target_layers)


def optimizer_state_rule(name: str) -> OptimizerStateRule:
    """Returns the rule called ``name``.

    Raises:
        ValueError: there is no such rule; the message lists the known ones.
    """
    if name not in OPTIMIZER_STATES:
        raise ValueError(f"no optimizer-state rule {name!r}; there are {', '.join(OPTIMIZER_STATES)}")
    return OPTIMIZER_STATES[name]


def _lookup(operator: str) -> Operator:
    if operator not in OPERATORS:
        raise ValueError(f"no growth operator {operator!r}; there are {', '.join(OPERATORS)}")
    return OPERATORS[operator]
