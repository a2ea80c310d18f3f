"""Which rank trains on which samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS
from stacking.data.samples import build_samples
from stacking.train.loader import sample_numbers, updates
from tests.data.conftest import write_numbers


class StageFacts:
    """The part of a planned stage that the order of samples depends on."""

    steps = 100

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


def test_updates_keep_their_samples_wherever_the_stage_resumes(tmp_path: Path) -> None:
    """Although the loader draws the samples of many updates together."""
    corpus = Corpus(write_numbers(tmp_path / "data"))
    sampler = SAMPLERS["segment-pair"](corpus, build_samples(corpus, "segment-pair", 32), 32, seed=1)
    stage = StageFacts(40, accumulation=3, ranks=2, micro_batch=4)
    found = list(updates(sampler, stage, 7, 1, torch.device("cpu"), True))  # type: ignore[arg-type]
    assert len(found) == stage.steps - 7
    for step, update in enumerate(found, start=7):
        numbers = sample_numbers(stage, step, 1)  # type: ignore[arg-type]
        assert len(update.micro_batches) == len(numbers) == 3
        for micro_batch, row in zip(update.micro_batches, numbers, strict=True):
            expected = sampler.unpadded(row)
            assert micro_batch.inputs[1].tolist() == expected.mlm_labels.tolist()
            assert micro_batch.tokens == len(expected.input_ids)
