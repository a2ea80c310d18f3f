"""Synthetic samples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stacking.bench.counts import Counter, Counts
from stacking.bench.synthetic import SHORTEST_SHARE, SPECIAL, SyntheticSampler
from stacking.model.config import ModelConfig
from stacking.model.size import training_flops

MODEL = ModelConfig(layers=3, hidden=64, heads=2, intermediate=256, vocabulary=500)


def sampler(ragged: bool, length: int = 64, seed: int = 1, pairs: bool = True) -> SyntheticSampler:
    return SyntheticSampler(500, length, seed, 0.15, ragged, pairs)


@given(st.integers(0, 2**40), st.integers(1, 9), st.booleans(), st.integers(8, 80))
def test_a_batch_has_the_form_of_a_real_one(first: int, size: int, ragged: bool, length: int) -> None:
    batch = sampler(ragged, length).batch(np.arange(first, first + size))
    lengths = batch.attention_mask.sum(axis=1)
    assert batch.input_ids.shape == batch.segment_ids.shape == batch.attention_mask.shape == (size, length)
    assert (batch.input_ids[:, 0] == SPECIAL["cls"]).all()
    assert (batch.input_ids[np.arange(size), lengths - 1] == SPECIAL["sep"]).all()
    assert ((batch.input_ids == SPECIAL["pad"]) == ~batch.attention_mask).all()
    assert batch.attention_mask.reshape(-1)[batch.mlm_positions].all()
    assert batch.mlm_labels.min() >= len(SPECIAL)
    assert batch.input_ids.max() < 500
    assert lengths.min() >= min(length, max(5, length // SHORTEST_SHARE))


def test_a_sample_depends_on_its_number_not_on_its_batch() -> None:
    together, alone = sampler(True).batch(np.arange(8)), sampler(True).batch(np.array([5]))
    assert (together.input_ids[5] == alone.input_ids[0]).all()


def test_ragged_lengths_are_spread_as_documented() -> None:
    batch = sampler(True, length=160).batch(np.arange(4000))
    lengths = batch.attention_mask.sum(axis=1)
    assert (lengths.min(), lengths.max()) == (10, 160)
    assert abs(lengths.mean() - 85) < 2  # the middle of 10 and 160: 47 % of a batch is padding


def test_without_ragged_lengths_nothing_is_padded() -> None:
    assert sampler(False).batch(np.arange(4)).attention_mask.all()


def test_without_pairs_there_is_one_segment_and_no_label() -> None:
    batch = sampler(False, pairs=False).batch(np.arange(4))
    assert batch.nsp_labels is None
    assert not batch.segment_ids.any()


@given(st.integers(1, 12), st.booleans())
def test_flops_are_those_of_the_real_lengths_and_of_the_masked_positions(size: int, ragged: bool) -> None:
    batch = sampler(ragged).unpadded(np.arange(size))
    counted, lengths = Counter(MODEL, 64)(batch), batch.lengths
    sample = np.searchsorted(np.cumsum(lengths), batch.mlm_positions, side="right")
    masked = np.bincount(sample, minlength=size)
    by_sample = sum(training_flops(MODEL, int(n), int(m)) for n, m in zip(lengths, masked, strict=True))
    assert np.isclose(counted.flops, by_sample, rtol=1e-12)
    assert counted.real_tokens == lengths.sum()


def test_counts_add_up() -> None:
    assert Counts(1, 2, 3) + Counts(10, 20, 30) == Counts(11, 22, 33)


@given(st.integers(0, 499))
def test_padding_is_never_drawn_and_never_special(padding_id: int) -> None:
    sampler = SyntheticSampler(500, 64, 1, 0.15, ragged=True, pairs=True, padding_id=padding_id)
    batch = sampler.batch(np.arange(4))
    assert ((batch.input_ids == padding_id) == ~batch.attention_mask).all()
    assert len(set(sampler.special.values())) == 5
