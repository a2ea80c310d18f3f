"""The arithmetic of partitions: every element is in exactly one place, for any number of ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.storage.partition import Piece, Shape, cut, numel, packed, sharded, split_into_groups

shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=8).map(
    lambda found: [(f"p{i}", shape) for i, shape in enumerate(found)]
)


def elements(pieces: list[Piece]) -> list[tuple[str, int]]:
    return [(piece.name, piece.start + i) for piece in pieces for i in range(piece.numel)]


@given(shapes, st.integers(1, 9), st.integers(1, 16))
def test_splitting_a_flat_group_by_rank_loses_and_duplicates_nothing(
    named: list[tuple[str, Shape]], ranks: int, alignment: int
) -> None:
    paddings = [-numel(shape) % alignment for _, shape in named]
    flat = packed(named, paddings)
    length = sum(numel(shape) + pad for (_, shape), pad in zip(named, paddings, strict=True))
    part = -(-length // ranks)

    parts = [cut(flat, rank * part, (rank + 1) * part) for rank in range(ranks)]

    assert [e for pieces in parts for e in elements(pieces)] == elements(flat)
    for rank, pieces in enumerate(parts):
        places = [rank * part + piece.offset + i for piece in pieces for i in range(piece.numel)]
        assert len(set(places)) == len(places)
        assert all(piece.offset >= 0 and piece.offset + piece.numel <= part for piece in pieces)


@given(shapes, st.integers(1, 9))
def test_sharding_each_parameter_loses_and_duplicates_nothing(named: list[tuple[str, Shape]], ranks: int) -> None:
    shards = [sharded(named, rank, ranks) for rank in range(ranks)]

    assert sorted(e for pieces in shards for e in elements(pieces)) == sorted(elements(packed(named)))
    length = sum(-(-numel(shape) // ranks) for _, shape in named)
    assert all(piece.offset + piece.numel <= length for pieces in shards for piece in pieces)


@given(shapes)
def test_matrices_and_vectors_are_told_apart(named: list[tuple[str, Shape]]) -> None:
    matrices = [(n, s) for n, s in named if len(s) > 1]
    others = [(n, s) for n, s in named if len(s) <= 1]
    groups = [group for group in (matrices, others) if group]

    names = split_into_groups(named, [[shape for _, shape in group] for group in groups])

    assert names == [[name for name, _ in group] for group in groups]


def test_an_ambiguous_or_impossible_split_is_refused() -> None:
    named = [("a", (2,)), ("b", (2,))]
    with pytest.raises(ValueError, match="several ways"):
        split_into_groups(named, [[(2,)], [(2,)]])
    with pytest.raises(ValueError, match="not those of the model"):
        split_into_groups(named, [[(2,)], [(3,)]])
    with pytest.raises(ValueError, match="not those of the model"):
        split_into_groups(named, [[(2,)]])
