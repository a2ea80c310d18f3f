"""Growth operators: which layer of the shallow model each layer of the deep one starts from.

Pure mappings of layer numbers. One mapping drives the weights and both moments; `stacking.growth.apply` carries it
out. A new operator is a function and a row in `OPERATORS`. No torch here: plans use this too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from stacking.state.layers import LayerSource


class Operator(NamedTuple):
    """A growth operator: its mapping, and which depths it can reach."""

    sources: Callable[[int, int], tuple[LayerSource, ...]]
    reachable: Callable[[int, int], bool]


class OptimizerStateRule(NamedTuple):
    """What becomes of Adam's state when a model grows."""

    copies_moments: bool
    """Both moments follow the mapping of the weights; otherwise they start at zero."""
    keeps_step: bool
    """The step count, which Adam's bias correction uses, goes on; otherwise it starts at zero."""


def stack(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """The whole stack again on top of itself: layer i is copied to i + L, i + 2L, … (Gong et al., ICML 2019)."""
    return tuple(LayerSource(i % source_layers) for i in range(target_layers))


def interleave(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Each layer k times in a row: 0, 0, 1, 1, … (the order of Chang et al., ICLR 2018)."""
    return tuple(LayerSource(i * source_layers // target_layers) for i in range(target_layers))


def identity(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """The old layers below; above them layers that pass their input on unchanged at the start.

    A new layer takes its tensors from layer i mod L, with both projections into the residual stream at zero. With
    ``pre_ln`` the grown model computes exactly what the shallow one did. With ``post_ln`` only nearly: a LayerNorm
    follows each residual sum, and normalising a normalised vector again applies its scale and bias once more.
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
    """Whether ``operator`` can make ``target_layers`` layers out of ``source_layers``.

    Raises:
        ValueError: there is no such operator.
    """
    return _lookup(operator).reachable(source_layers, target_layers)


def layer_sources(operator: str, source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """The source of every target layer, from the bottom up.

    Raises:
        ValueError: no such operator, or a depth that it cannot reach; the message lists what is possible.
    """
    if not reachable(operator, source_layers, target_layers):
        candidates = range(source_layers, 4 * source_layers + 1)
        depths = ", ".join(str(n) for n in candidates if reachable(operator, source_layers, n))
        raise ValueError(f"{operator} makes {depths}, … layers out of {source_layers}, not {target_layers}")
    return _lookup(operator).sources(source_layers, target_layers)


def optimizer_state_rule(name: str) -> OptimizerStateRule:
    """The rule called ``name``.

    Raises:
        ValueError: there is no such rule; the message lists those there are.
    """
    if name not in OPTIMIZER_STATES:
        raise ValueError(f"no optimizer-state rule {name!r}; there are {', '.join(OPTIMIZER_STATES)}")
    return OPTIMIZER_STATES[name]


def _lookup(operator: str) -> Operator:
    if operator not in OPERATORS:
        raise ValueError(f"no growth operator {operator!r}; there are {', '.join(OPERATORS)}")
    return OPERATORS[operator]
