"""Layers that come from other layers: the form in which growth is described, carried out and remembered.

A grown state may keep the bytes of its source and read each layer from there, so this is part of what a state is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_LAYER = re.compile(r"^layers\.(\d{1,9})\.")
_LONGEST_NUMBER = 9
"""Digits of a layer's number; no model has as many layers."""

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
        if not layer.isdecimal() or len(layer) > _LONGEST_NUMBER:
            raise ValueError("a layer's number is not one")
        if treatment not in TREATMENTS:
            raise ValueError(f"no treatment {treatment!r}; there are {', '.join(TREATMENTS)}")
        return cls(int(layer), treatment)


class Origin(NamedTuple):
    """Where one tensor of a grown model comes from."""

    name: str
    """Of the shallow model's tensor."""
    zero: bool
    """Whether it becomes zero; then only the shape is the same."""


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
