"""Defines growth operators, which map each layer of the deep model to a layer of the shallow one.

Operators are pure functions of layer numbers. The same mapping applies to weights and moments; `stacking.growth.apply`
executes it. A new operator is a function and a row in `OPERATORS`. This module does not import torch, since plans use
it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from stacking.state.layers import LayerSource


class Operator(NamedTuple):
    """Defines a growth operator: its mapping and the depths that it can reach."""

    sources: Callable[[int, int], tuple[LayerSource, ...]]
    reachable: Callable[[int, int], bool]


Kept = Literal["none", "old", "all"]
"""Which layers keep a part of Adam's state: none, all but the added ones, or all.

The rest of the model keeps it unless none do.
"""


class OptimizerStateRule(NamedTuple):
    """Defines the treatment of Adam's state when a model grows."""

    moments: Kept
    """Whose moments follow the weights' mapping; the others start at zero."""
    steps: Kept
    """Whose step count, for Adam's bias correction, continues; the others start at zero."""


def stack(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Repeats the whole stack on top of itself: layer i is copied to i + L, i + 2L, … (Gong et al., ICML 2019)."""
    return tuple(LayerSource(i % source_layers) for i in range(target_layers))


def interleave(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Repeats each layer k times: 0, 0, 1, 1, … (the order of Chang et al., ICLR 2018)."""
    return tuple(LayerSource(i * source_layers // target_layers) for i in range(target_layers))


def identity(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Keeps the old layers at the bottom and adds layers that initially compute the identity on top.

    A new layer i copies layer i mod L, with all projections into the residual stream set to zero. The grown model
    computes exactly the same function; with ``post_ln`` only approximately, because a LayerNorm follows each residual
    sum and applies its scale and bias again.
    """
    return tuple(
        LayerSource(i % source_layers, "copy" if i < source_layers else "silent") for i in range(target_layers)
    )


def block_expansion(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Splits the stack into equal groups and adds a layer that initially computes the identity on top of each.

    The new layer copies the one below it, silenced as by `identity` (LLaMA Pro, Wu et al., ACL 2024).
    """
    new = target_layers - source_layers
    found: list[LayerSource] = []
    for layer in range(source_layers):
        copies = (layer + 1) * new // source_layers - layer * new // source_layers
        found += [LayerSource(layer), *[LayerSource(layer, "silent")] * copies]
    return tuple(found)


def middle(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """Repeats the middle block: of n blocks of as many layers as are added, the ⌈n/2⌉-th, on top of itself.

    This is MIDAS (Saunshi et al., NeurIPS 2024). Blocks count from the bottom; layers left over at the top stay there.
    """
    added = target_layers - source_layers
    blocks = source_layers // added if added else 0
    end = (blocks + 1) // 2 * added
    order = [*range(end), *range(end - added, source_layers)]
    return tuple(map(LayerSource, order))


def _up_to_double(source_layers: int, target_layers: int) -> bool:
    return 0 < source_layers <= target_layers <= 2 * source_layers


def _multiple(source_layers: int, target_layers: int) -> bool:
    return 0 < source_layers <= target_layers and target_layers % source_layers == 0


def _at_least(source_layers: int, target_layers: int) -> bool:
    return 0 < source_layers <= target_layers


LISTED = "layers_from"
"""What stands for an explicit list where an operator is named."""
TRIAL = "trial"
"""What stands for the best of several operators where one is named."""

OPERATORS: dict[str, Operator] = {
    "stack": Operator(stack, _multiple),
    "interleave": Operator(interleave, _multiple),
    "identity": Operator(identity, _at_least),
    "block-expansion": Operator(block_expansion, _at_least),
    "middle": Operator(middle, _up_to_double),
}

OPTIMIZER_STATES: dict[str, OptimizerStateRule] = {
    "reset": OptimizerStateRule(moments="none", steps="none"),
    "reset-keep-step": OptimizerStateRule(moments="none", steps="all"),
    "copy": OptimizerStateRule(moments="all", steps="none"),
    "copy-keep-step": OptimizerStateRule(moments="all", steps="all"),
    "keep-old": OptimizerStateRule(moments="old", steps="old"),
}
"""How Adam continues. Its update is m̂/√v̂, with m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) for the step count t. Let
r(k) = (1 − β₁ᵏ)/√(1 − β₂ᵏ): at 0.9 and 0.999 it is 3.2 for k = 1, at most 6.6 for k = 12, and 1.0 from k = 5,000 on.

* ``reset`` begins like a new training.
* ``reset-keep-step`` takes zero moments for converged ones: the k-th update is r(k) times as large. Warm up again.
* ``copy`` takes converged moments for new ones: the k-th update is 1/r(k) times as large.
* ``copy-keep-step`` continues: every copy's first update is its source's next one.
* ``keep-old`` is ``copy-keep-step`` for the old layers and the rest of the model and ``reset`` for the added layers,
  each with its own t, so that copies differ from their sources from the first update on (SPARKLING, Yu et al., 2026).
"""


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
        further = ", …" if reachable(operator, source_layers, 5 * source_layers) else ""
        raise ValueError(f"{operator} makes {depths}{further} layers out of {source_layers}, not {target_layers}")
    return _lookup(operator).sources(source_layers, target_layers)


def listed_sources(layers_from: Sequence[int | str]) -> tuple[LayerSource, ...]:
    """Parses an explicit list, the source of each target layer from the bottom up.

    This generalises depth up-scaling (Kim et al., NAACL 2024). An item is a layer number, or ``"3 silent"`` for a copy
    that initially computes the identity.

    Raises:
        ValueError: an item is neither.
    """
    return tuple(map(_listed, layers_from))


def _listed(item: int | str) -> LayerSource:
    words = str(item).split()
    try:
        return LayerSource.parse(" ".join([*words, "copy"] if len(words) == 1 else words))
    except ValueError:
        raise ValueError(f"{item!r} is neither a layer number nor one followed by 'silent'") from None


def check_listed(sources: Sequence[LayerSource], source_layers: int) -> None:
    """Checks that the sources exist.

    Raises:
        ValueError: one does not.
    """
    if missing := [source.layer for source in sources if source.layer >= source_layers]:
        raise ValueError(f"layer {missing[0]} does not exist: the model has the layers 0 to {source_layers - 1}")


def added_layers(sources: Sequence[LayerSource]) -> tuple[int, ...]:
    """Returns the numbers of the added layers: all but the lowest plain copy of each source layer."""
    old = {source.layer: target for target, source in reversed(list(enumerate(sources))) if source.treatment == "copy"}
    return tuple(target for target in range(len(sources)) if target not in old.values())


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
