"""Describes layers that are copies of other layers: the representation of growth.

A grown state may share its source's files and read each layer from there, so this is part of the state format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from stacking.model.shapes import INTO_RESIDUAL

_LAYER = re.compile(r"^layers\.(\d{1,9})\.")
_LONGEST_NUMBER = 9
"""Maximum number of digits of a layer's number."""

TREATMENTS: dict[str, tuple[str, ...]] = {
    "copy": (),
    "silent": INTO_RESIDUAL,
}
"""Treatments of a copied layer: the names of its modules whose tensors become zero."""


class LayerSource(NamedTuple):
    """Describes one layer of a grown model: which layer it copies, and how."""

    layer: int
    """Number of the source layer."""
    treatment: str = "copy"
    """A key of `TREATMENTS`."""

    def __str__(self) -> str:
        return f"{self.layer} {self.treatment}"

    @classmethod
    def parse(cls, text: str) -> LayerSource:
        """Parses the result of ``str``.

        Raises:
            ValueError: the text is malformed.
        """
        layer, treatment = text.split(" ")
        if not layer.isdecimal() or len(layer) > _LONGEST_NUMBER:
            raise ValueError("a layer's number is not one")
        if treatment not in TREATMENTS:
            raise ValueError(f"no treatment {treatment!r}; there are {', '.join(TREATMENTS)}")
        return cls(int(layer), treatment)


class Origin(NamedTuple):
    """Describes where a tensor of a grown model comes from."""

    name: str
    """Name of the shallow model's tensor."""
    zero: bool
    """Whether the tensor becomes zero, so that only the shape is copied."""


def layer_of(name: str) -> int | None:
    """Returns the layer that a parameter belongs to; None outside the encoder's layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def with_layer(name: str, layer: int) -> str:
    """Returns the name of the same parameter in another layer."""
    return _LAYER.sub(f"layers.{layer}.", name)


def becomes_zero(name: str, treatment: str) -> bool:
    """Returns whether ``treatment`` zeroes the parameter ``name`` of a layer."""
    return name.split(".")[-2] in TREATMENTS[treatment]


def composed(outer: tuple[LayerSource, ...], inner: tuple[LayerSource, ...]) -> tuple[LayerSource, ...]:
    """Returns the growth equivalent to ``inner`` followed by ``outer``."""
    both = [(inner[source.layer], source.treatment) for source in outer]
    return tuple(LayerSource(below.layer, _stronger(below.treatment, treatment)) for below, treatment in both)


def _stronger(one: str, other: str) -> str:
    """Returns the treatment equivalent to both; each of `TREATMENTS` includes those that zero less."""
    return max(one, other, key=lambda treatment: len(TREATMENTS[treatment]))


def origins(names: Iterable[str], sources: tuple[LayerSource, ...] | None) -> dict[str, Origin]:
    """Returns the source of every tensor of the grown model, in order.

    Args:
        names: the shallow model's tensors, in order.
        sources: the source of each layer of the grown model; None: the model is the shallow one itself.
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
