"""The held-out share: close to what was asked for, never empty, never everything."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.data.held_out import BUCKETS, choose, is_held_out

SIZES = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, 10_000), min_size=2, max_size=60)
SHARES = st.floats(0.001, 0.999)


@given(SIZES, SHARES)
def test_neither_split_is_empty(sizes: dict[int, int], share: float) -> None:
    held_out = {bucket for bucket in sizes if is_held_out(bucket << 48, choose(sizes, share))}
    assert 0 < len(held_out) < len(sizes)


@given(SIZES, SHARES)
def test_the_share_is_off_by_at_most_one_document(sizes: dict[int, int], share: float) -> None:
    chosen = choose(sizes, share)
    held_out = sum(size for bucket, size in sizes.items() if chosen[bucket])
    assert abs(held_out - share * sum(sizes.values())) <= max(sizes.values())


@pytest.mark.parametrize("documents", [20, 100, 1000, 20_000])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_share_is_measured_in_text_when_document_lengths_vary_widely(documents: int, share: float) -> None:
    draw = random.Random(documents)
    sizes = {draw.randrange(BUCKETS): int(draw.lognormvariate(6, 1.5)) + 1 for _ in range(documents)}
    chosen = choose(sizes, share)
    found = sum(size for bucket, size in sizes.items() if chosen[bucket]) / sum(sizes.values())
    assert abs(found - share) <= max(0.01 * share, 1.0 / documents)
