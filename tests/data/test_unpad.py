"""Removing the padding loses nothing and moves nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.data.batch import Batch
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS
from stacking.data.samples import build_samples
from stacking.data.unpad import Unpadded
from tests.unpadding import unpad


def padded(unpadded: Unpadded, width: int, pad: int) -> Batch:
    """The batch that ``unpadded`` comes from, built a sample at a time."""
    rows = len(unpadded.lengths)
    ids, segments = np.full((rows, width), pad), np.zeros((rows, width), dtype=np.int64)
    real = np.zeros((rows, width), dtype=bool)
    positions: list[int] = []
    start = 0
    for row, length in enumerate(unpadded.lengths.tolist()):
        mine = slice(start, start + length)
        assert unpadded.position_ids[mine].tolist() == list(range(length))
        ids[row, :length], segments[row, :length] = unpadded.input_ids[mine], unpadded.segment_ids[mine]
        real[row, :length] = True
        positions += [row * width + p - start for p in unpadded.mlm_positions.tolist() if start <= p < start + length]
        start += length
    assert start == len(unpadded.input_ids)
    labels, nsp = unpadded.mlm_labels, unpadded.nsp_labels
    return Batch(ids, segments, real, np.array(positions, dtype=np.int64), labels, nsp)


def same(one: Batch, other: Batch) -> bool:
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@given(lengths=st.lists(st.integers(0, 12), max_size=9))
def test_any_batch_round_trips(lengths: list[int]) -> None:
    width = 12
    rng = np.random.default_rng(len(lengths) * 1000 + sum(lengths))
    real = np.arange(width) < np.array(lengths, dtype=np.int64)[:, None]
    ids = np.where(real, rng.integers(5, 99, real.shape), 0)
    segments = np.where(real, rng.integers(0, 2, real.shape), 0)
    positions = np.flatnonzero(real & (rng.random(real.shape) < 0.2))
    labels, nsp = rng.integers(5, 99, len(positions)), rng.integers(0, 2, len(lengths))
    batch = Batch(ids, segments, real, positions, labels, nsp)
    assert same(padded(unpad(batch), width, 0), batch)


@pytest.mark.parametrize("kind", list(SAMPLERS))
@pytest.mark.parametrize("length", [8, 32, 128])
def test_batches_of_every_kind_round_trip(corpus: Corpus, kind: str, length: int) -> None:
    batch = SAMPLERS[kind](corpus, build_samples(corpus, kind, length), length, 3).batch(np.arange(50, 90))
    unpadded = unpad(batch)
    assert len(unpadded.input_ids) == batch.attention_mask.sum() == unpadded.lengths.sum()
    assert (np.diff(unpadded.mlm_positions) > 0).all()
    assert same(padded(unpadded, length, corpus.special["pad"]), batch)
