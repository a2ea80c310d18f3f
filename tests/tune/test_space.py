"""What is open to a stage, and the ladder of micro-batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.planning.plan import StagePlan
from stacking.tune.candidate import Setting
from stacking.tune.space import SpaceFacts, base_candidate, micro_batches, space_of
from tests.small_recipe import SMALL, plan_of

GPU = SpaceFacts(cuda=True, ranks=4)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StagePlan:
    monkeypatch.chdir(tmp_path)
    return plan_of(SMALL).stages[0]


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 256))
def test_every_rung_divides_the_next_and_the_last_is_the_whole_share(planned: int, factor: int) -> None:
    share = planned * factor
    rungs = micro_batches(share, planned)
    assert rungs[0] == 1 and rungs[-1] == share and planned in rungs
    assert all(above % below == 0 and above > below for below, above in pairwise(rungs))


def test_rungs_double_where_possible() -> None:
    assert micro_batches(96, 4) == (1, 2, 4, 8, 16, 32, 96)


def test_a_gpu_has_the_whole_table(stage: StagePlan) -> None:
    space = space_of(stage, GPU)
    assert space.values["zero_stage"] == (0, 1, 2, 3) and not space.left_out
    assert space.values["offload"] == ("none", "optimizer", "optimizer+param")


@pytest.mark.parametrize(
    ("facts", "dimension", "values", "words"),
    [
        (SpaceFacts(True, 1), "zero_stage", (0, 1, 2), "one rank"),
        (SpaceFacts(True, 2, lamb=True), "zero_stage", (0, 2), "LAMB"),
        (SpaceFacts(True, 2, lamb=True), "offload", ("none",), "LAMB"),
        (SpaceFacts(False, 2), "offload", ("none",), "host's memory already"),
        (SpaceFacts(True, 2, compiled="refused"), "compile", (False,), "Triton"),
        (SpaceFacts(False, 2, has_compiler=False), "compile", (False,), "c++"),
    ],
)
def test_options_that_make_no_sense_here_are_left_out_with_the_reason(
    stage: StagePlan, facts: SpaceFacts, dimension: str, values: tuple[object, ...], words: str
) -> None:
    space = space_of(stage, facts)
    assert space.values[dimension] == values and words in space.left_out[dimension]


def test_the_recipes_own_values_stay_open_even_where_they_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'
    stage = plan_of(SMALL, config).stages[0]
    assert base_candidate(stage).setting == Setting(zero_stage=2, offload="optimizer")
    assert "optimizer" in space_of(stage, SpaceFacts(False, 2)).values["offload"]


def test_offload_is_reduced_with_the_zero_stage_that_it_needs() -> None:
    setting = Setting(zero_stage=3, offload="optimizer+param")
    assert setting.changed(zero_stage=2).offload == "optimizer"
    assert setting.changed(zero_stage=0).offload == "none"


def test_a_value_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="is not one of"):
        Setting(zero_stage=4)
