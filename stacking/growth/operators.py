"""Growth operators: which layer of the shallow model each layer of the deep one starts from.

Pure mappings of layer numbers. One mapping drives the weights and both moments; `stacking.growth.apply` carries it
out. A new operator is a function and a row in `OPERATORS`. No torch here: plans use this too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

_LAYER = re.compile(r"^layers\.(\d+)\.")

TREATMENTS: dict[str, tuple[str, ...]] = {
    "copy": (),
    "silent": ("attention.output.", "feed_forward.down."),
}
"""What is done to a copied layer: its tensors whose names (after ``layers.i.``) start so become zero, the rest stay."""


class LayerSource(NamedTuple):
    """Where one target layer comes from."""

    layer: int
    """Number of the source layer."""
    treatment: str = "copy"
    """A key of `TREATMENTS`."""

    def __str__(self) -> str:
        return f"{self.layer} {self.treatment}"

    @classmethod
    def parse(cls, text: str) -> LayerSource:
        """The inverse of ``str``.

        Raises:
            ValueError: it is not such a text.
        """
        layer, treatment = text.split(" ")
        if treatment not in TREATMENTS:
            raise ValueError(f"no treatment {treatment!r}; there are {', '.join(TREATMENTS)}")
        return cls(int(layer), treatment)


class Origin(NamedTuple):
    """Where one tensor of a grown model comes from."""

    name: str
    """Of the shallow model's tensor."""
    zero: bool
    """Whether it becomes zero; then only the shape is the same."""


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


def layer_of(name: str) -> int | None:
    """The layer that a parameter belongs to; ``None`` outside the encoder's layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def with_layer(name: str, layer: int) -> str:
    """The name of the same parameter in another layer."""
    return _LAYER.sub(f"layers.{layer}.", name)


def becomes_zero(name: str, treatment: str) -> bool:
    """Whether ``treatment`` zeroes the parameter ``name`` of a layer."""
    return _LAYER.sub("", name).startswith(TREATMENTS[treatment])


def composed(outer: tuple[LayerSource, ...], inner: tuple[LayerSource, ...]) -> tuple[LayerSource, ...]:
    """One growth that does what ``inner`` and then ``outer`` do."""
    both = [(inner[source.layer], source.treatment) for source in outer]
    return tuple(LayerSource(below.layer, _stronger(below.treatment, treatment)) for below, treatment in both)


def _stronger(one: str, other: str) -> str:
    """The treatment that does what both do; each of `TREATMENTS` includes all that zero less."""
    return max(one, other, key=lambda treatment: len(TREATMENTS[treatment]))


def origins(names: Iterable[str], sources: tuple[LayerSource, ...] | None) -> dict[str, Origin]:
    """Of every tensor of the grown model, in order: the tensor of the shallow one that it comes from.

    Args:
        names: the shallow model's tensors, in order.
        sources: of each layer of the grown model; None: it is the shallow one itself.
    """
    if sources is None:
        return {name: Origin(name, False) for name in names}
    of_layer: dict[int | None, list[str]] = {}
    for name in names:
        of_layer.setdefault(layer_of(name), []).append(name)
    found: dict[str, Origin] = {}
    grown = False
    for name in names:
        if layer_of(name) is None:
            found[name] = Origin(name, False)
        elif not grown:
            grown = True
            for target, (layer, treatment) in enumerate(sources):
                for origin in of_layer.get(layer, ()):
                    found[with_layer(origin, target)] = Origin(origin, becomes_zero(origin, treatment))
    return found


def _lookup(operator: str) -> Operator:
    if operator not in OPERATORS:
        raise ValueError(f"no growth operator {operator!r}; there are {', '.join(OPERATORS)}")
    return OPERATORS[operator]
