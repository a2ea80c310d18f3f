"""The counter-based hash and the permutation."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.data.random import below, branch, hash64, permute


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**70), epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection_in_every_epoch(size: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(size), size, seed, np.full(size, epoch))
    assert np.array_equal(np.sort(order), np.arange(size))


def test_permutation_differs_between_epochs_and_seeds() -> None:
    index = np.arange(500)
    orders = [permute(index, 500, seed, np.full(500, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).mean() < 0.05


def test_permutation_of_an_index_does_not_depend_on_the_other_indices() -> None:
    epochs = np.arange(50) % 3
    together = permute(np.arange(50), 50, 7, epochs)
    alone = [permute(np.array([i]), 50, 7, epochs[i : i + 1])[0] for i in range(50)]
    assert together.tolist() == alone


def test_permutation_mixes_neighbours() -> None:
    order = permute(np.arange(10_000), 10_000, 3, np.zeros(10_000, dtype=np.int64))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_hash_is_uniform_and_sensitive_to_every_key() -> None:
    values = hash64(1, np.arange(100_000), 2)
    assert len(np.unique(values)) == 100_000
    assert np.abs(np.bincount(below(values, 10)) - 10_000).max() < 500
    assert hash64(1, 2)[0] != hash64(2, 1)[0]


@given(keys=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4), key=st.integers(0, 2**63 - 1))
def test_a_branch_of_a_hash_is_the_hash_of_one_more_key(keys: list[int], key: int) -> None:
    expected = hash64(*keys, key)
    assert branch(hash64(*keys), key) == branch(hash64(*keys), np.array([key])) == expected
    assert hash64(np.array([keys[0] % 2**64], dtype=np.uint64), *keys[1:], key) == expected


def test_hash_values_are_those_of_earlier_versions() -> None:
    assert [int(value) for value in hash64(42, np.arange(2), 7)] == [11850619448187863329, 1952419378684700410]
    assert permute(np.arange(8), 8, 1, np.zeros(8, dtype=np.int64)).tolist() == [5, 1, 4, 6, 2, 0, 3, 7]
