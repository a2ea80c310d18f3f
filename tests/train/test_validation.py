"""How the held-out samples are shared among the ranks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stacking.train.validation import HeldOut


def chunks(held_out: int, samples: int, ranks: int, micro_batch: int) -> list[list[np.ndarray]]:
    """Of each rank, its forward passes over ``held_out`` samples that there are, ``samples`` of them wanted."""
    stage = SimpleNamespace(ranks=ranks, micro_batch=micro_batch, steps=10)
    settings = SimpleNamespace(samples=samples, every_steps=5)
    return [HeldOut(range(held_out), settings, stage, rank)._chunks for rank in range(ranks)]  # type: ignore[arg-type]


@given(
    held_out=st.integers(1, 200),
    samples=st.integers(1, 200),
    ranks=st.integers(1, 8),
    micro_batch=st.integers(1, 16),
)
def test_ranks_make_as_many_passes_of_the_same_sizes(held_out: int, samples: int, ranks: int, micro_batch: int) -> None:
    shapes = [[len(chunk) for chunk in rank] for rank in chunks(held_out, samples, ranks, micro_batch)]
    assert all(shape == shapes[0] for shape in shapes) and shapes[0]
    assert max(shapes[0]) <= micro_batch


@given(samples=st.integers(8, 200), ranks=st.integers(1, 8), micro_batch=st.integers(1, 16))
def test_no_sample_counts_twice_and_fewer_than_the_ranks_are_left_out(
    samples: int, ranks: int, micro_batch: int
) -> None:
    scored = np.concatenate([chunk for rank in chunks(1000, samples, ranks, micro_batch) for chunk in rank])
    assert len(set(scored)) == len(scored) > samples - ranks


def test_where_there_are_fewer_samples_than_ranks_each_rank_scores_all() -> None:
    assert [[list(chunk) for chunk in rank] for rank in chunks(3, 100, 4, 2)] == [[[0, 1], [2]]] * 4
