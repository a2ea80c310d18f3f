"""How the held-out samples are shared among the ranks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.train.validation import CHUNK, HeldOut
from tests.train.ranks import run_ranks

Chunks = list[tuple[int, np.ndarray]]


def held_out(there: int, samples: int, ranks: int, rank: int) -> HeldOut:
    stage = SimpleNamespace(ranks=ranks, steps=10)
    settings = SimpleNamespace(samples=samples, every_steps=5)
    return HeldOut(range(there), settings, stage, rank)  # type: ignore[arg-type]


def chunks(there: int, samples: int, ranks: int) -> list[Chunks]:
    """Of each rank, its forward passes over the held-out samples: place in the table of sums, and samples."""
    return [held_out(there, samples, ranks, rank)._chunks for rank in range(ranks)]


@given(there=st.integers(1, 200), samples=st.integers(1, 200), ranks=st.integers(1, 40))
def test_ranks_make_the_same_number_of_passes(there: int, samples: int, ranks: int) -> None:
    passes = [len(of_rank) for of_rank in chunks(there, samples, ranks)]
    assert set(passes) == {passes[0]} and passes[0] > 0


@given(there=st.integers(1, 200), samples=st.integers(1, 200), ranks=st.integers(1, 40))
def test_the_chunks_that_count_hold_every_sample_once_and_are_those_of_one_rank(
    there: int, samples: int, ranks: int
) -> None:
    count = min(there, samples)
    rows = -(-count // CHUNK)
    counted = {place: list(n) for rank in chunks(there, samples, ranks) for place, n in rank if place < rows}
    alone = {place: list(n) for place, n in chunks(there, samples, 1)[0]}
    assert counted == alone
    assert sorted(number for numbers in counted.values() for number in numbers) == list(range(count))


@pytest.mark.distributed
def test_the_losses_have_the_same_bits_on_1_2_and_3_ranks() -> None:
    seen = {ranks: run_ranks(ranks, "tests.train.heldout_worker")[0].splitlines()[-1] for ranks in (1, 2, 3)}
    assert seen[1] == seen[2] == seen[3] and len(seen[1].split()) == 3
