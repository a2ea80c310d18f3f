"""Which rank trains on which samples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stacking.train.loader import sample_numbers


class StageFacts:
    """The part of a planned stage that the order of samples depends on."""

    def __init__(self, first_sample: int, accumulation: int, ranks: int, micro_batch: int) -> None:
        self.first_sample, self.accumulation = first_sample, accumulation
        self.ranks, self.micro_batch = ranks, micro_batch
        self.global_batch = accumulation * ranks * micro_batch


@given(
    first=st.integers(0, 10**9),
    step=st.integers(0, 10**4),
    accumulation=st.integers(1, 4),
    ranks=st.integers(1, 8),
    micro_batch=st.integers(1, 8),
)
def test_the_ranks_together_see_each_sample_of_an_update_once(
    first: int, step: int, accumulation: int, ranks: int, micro_batch: int
) -> None:
    stage = StageFacts(first, accumulation, ranks, micro_batch)
    seen = np.concatenate([sample_numbers(stage, step, rank).ravel() for rank in range(ranks)])  # type: ignore[arg-type]
    start = first + step * stage.global_batch
    assert sorted(seen) == list(range(start, start + stage.global_batch))


@given(step=st.integers(0, 100), split=st.sampled_from([(1, 8), (2, 4), (8, 1), (4, 2)]))
def test_any_split_of_the_same_batch_covers_the_same_samples(step: int, split: tuple[int, int]) -> None:
    accumulation, ranks = split
    stage, whole = StageFacts(5, accumulation, ranks, 3), StageFacts(5, 1, 1, 24)
    seen = np.concatenate([sample_numbers(stage, step, rank).ravel() for rank in range(ranks)])  # type: ignore[arg-type]
    assert sorted(seen) == sorted(sample_numbers(whole, step, 0).ravel())  # type: ignore[arg-type]
