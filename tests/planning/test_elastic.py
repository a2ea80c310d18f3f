"""A stage on a different number of ranks: the same samples in the same updates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stacking.errors import UserError
from stacking.planning.elastic import most_ranks, resized
from stacking.planning.plan import StagePlan
from stacking.train.loader import sample_numbers
from tests.small_recipe import SMALL, plan_of


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> StagePlan:
    """24 sequences per update: 3 x 2 on each of 4 ranks."""
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        text = SMALL.replace("batch_sequences: 8", "batch_sequences: 24, micro_batch: 3") + "launch: {ranks: 4}\n"
        return plan_of(text).stages[1]


@given(ranks=st.integers(1, 24), step=st.integers(0, 9))
def test_every_update_has_the_same_samples(stage: StagePlan, ranks: int, step: int) -> None:
    assume(stage.global_batch % ranks == 0)
    other = resized(stage, ranks, "launch")
    assert other.micro_batch * other.accumulation * other.ranks == stage.global_batch
    assert other.micro_batch <= stage.micro_batch
    planned, found = (
        np.concatenate([sample_numbers(s, step, rank).ravel() for rank in range(s.ranks)]) for s in (stage, other)
    )
    assert sorted(planned.tolist()) == sorted(found.tolist())


def test_deepspeed_gets_the_new_batch_sizes(stage: StagePlan) -> None:
    config = resized(stage, 2, "launch").ds_config
    assert config["train_batch_size"] == 24
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] == 12
    others = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
    assert {k: v for k, v in config.items() if k not in others} == {
        k: v for k, v in stage.ds_config.items() if k not in others
    }


def test_ranks_that_do_not_divide_the_batch_are_reported_in_one_line(stage: StagePlan) -> None:
    with pytest.raises(UserError, match=r"^launch: 5 ranks do not divide the 24 sequences .* use 4$"):
        resized(stage, 5, "launch")


def test_as_many_ranks_as_possible_are_used(stage: StagePlan) -> None:
    assert [most_ranks(stage, n) for n in (0, 1, 2, 3, 4, 5, 100)] == [1, 1, 2, 3, 4, 4, 4]


def test_resizing_to_the_planned_size_changes_nothing(stage: StagePlan, tmp_path: Path) -> None:
    assert resized(stage, 4, "launch") is stage
