"""Locates the elements of parameters inside the flat tensors of a partitioned optimizer.

DeepSpeed gives its inner optimizer *masters*: flat fp32 tensors, each made of pieces of parameters. Checkpoints and
live engines use the same layout, so the same arithmetic reads one and fills the other. This module uses neither torch
nor files. All positions and lengths are in elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

PARAMETER_NAMES = "parameter_names"
"""Key of an optimizer's parameter group that lists the names of its parameters, in order.

Adam's state is saved by position. ZeRO 1 to 3 also save the names; ZeRO 0 does not, so the groups should list them:
``{"params": [...], "parameter_names": [...], "weight_decay": 0.01}``. Optimizers keep unknown keys.
"""

Shape = tuple[int, ...]

_MOST_STEPS = 200_000
"""Maximum number of steps in the search for a split into groups."""


class Piece(NamedTuple):
    """Locates the elements ``start … start + numel`` of a flattened parameter at ``offset`` in a master."""

    name: str
    start: int
    offset: int
    numel: int


def numel(shape: Shape) -> int:
    """Returns the number of elements of a tensor."""
    return math.prod(shape)


def whole(name: str, shape: Shape) -> list[Piece]:
    """Returns the layout of a master that is one parameter: ZeRO 0."""
    return [Piece(name, 0, 0, numel(shape))]


def packed(shapes: Iterable[tuple[str, Shape]], paddings: Sequence[int] | None = None) -> list[Piece]:
    """Returns the layout of consecutive parameters in one flat tensor, each followed by its padding."""
    parameters = list(shapes)
    widths = [numel(shape) + pad for (_, shape), pad in zip(parameters, paddings or [0] * len(parameters), strict=True)]
    offsets = accumulate(widths, initial=0)
    return [Piece(name, 0, offset, numel(shape)) for (name, shape), offset in zip(parameters, offsets, strict=False)]


def cut(pieces: Iterable[Piece], first: int, last: int) -> list[Piece]:
    """Returns the parts of ``pieces`` in elements ``first … last`` of a flat tensor: a partition in ZeRO 1 and 2."""
    inside = []
    for piece in pieces:
        low, high = max(piece.offset, first), min(piece.offset + piece.numel, last)
        if low < high:
            inside.append(Piece(piece.name, piece.start + low - piece.offset, low - first, high - low))
    return inside


def sharded(shapes: Iterable[tuple[str, Shape]], rank: int, ranks: int) -> list[Piece]:
    """Returns the layout of one rank's master in ZeRO 3: an equal share of every parameter, the last one padded."""
    pieces, offset = [], 0
    for name, shape in shapes:
        share = math.ceil(numel(shape) / ranks)
        start = rank * share
        if start < numel(shape):
            pieces.append(Piece(name, start, offset, min(share, numel(shape) - start)))
        offset += share
    return pieces


def split_into_groups(parameters: Sequence[tuple[str, Shape]], groups: Sequence[Sequence[Shape]]) -> list[list[str]]:
    """Infers the names of each group's parameters from their shapes.

    Assumes that a group lists its parameters in the model's order, as is usual. The result is then unique for a split
    by tensor rank (matrices decay, vectors do not) and for a single group.

    Raises:
        ValueError: no such split exists, or several do.
    """
    ways: dict[tuple[int, ...], list[Any]] = {(0,) * len(groups): [()]}
    """By the parameters that each group has taken: up to two ways there, as (earlier choices, group)."""
    looked_at = 0
    for _, shape in parameters:
        longer: dict[tuple[int, ...], list[Any]] = {}
        for taken, earlier in ways.items():
            for index, group in enumerate(groups):
                if taken[index] < len(group) and group[taken[index]] == shape:
                    there = (*taken[:index], taken[index] + 1, *taken[index + 1 :])
                    longer[there] = [*longer.get(there, ()), *((way, index) for way in earlier)][:2]
        ways = longer
        looked_at += len(groups) * len(ways)
        if looked_at > _MOST_STEPS:
            raise ValueError("its optimizer's parameter groups could be split in too many ways")
    found = ways.get(tuple(map(len, groups)), [])
    if not found:
        raise ValueError("its optimizer's parameters are not those of the model")
    if len(found) > 1:
        raise ValueError("its optimizer's parameter groups could be split in several ways")
    names: list[list[str]] = [[] for _ in groups]
    way = found[0]
    for name, _ in reversed(parameters):
        way, index = way
        names[index].insert(0, name)
    return names
