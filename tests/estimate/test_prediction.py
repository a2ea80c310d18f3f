"""Predictions from tables: sums that add up, and times that change in the right direction."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.config.recipe import RECIPES
from stacking.estimate.prediction import Prediction, from_the_start, predict
from stacking.estimate.scaling import on_ranks
from stacking.planning.plan import Plan
from tests.estimate.plans import shipped, tabled

LARGE = shipped("bert-large-a100")
SETTING = tabled(LARGE, price=2.0)
POWERS = st.integers(0, 10).map(lambda n: 2**n)


def with_steps(plan: Plan, index: int, steps: int) -> Plan:
    """``plan`` with a different number of updates, and the corresponding FLOPs."""
    stages = list(plan.stages)
    flops = stages[index].flops * steps / stages[index].steps
    stages[index] = stages[index].model_copy(update={"steps": steps, "flops": flops})
    return plan.model_copy(update={"stages": tuple(stages)})


def test_gong_et_als_338_hours_on_four_p40_are_reproduced() -> None:
    plan = shipped("bert-base-p40")
    assert predict(plan, tabled(plan)).training_seconds / 3600 == pytest.approx(338, rel=0.02)


@pytest.mark.parametrize(("micro_batch", "sequences_per_second"), [(64, 565), (128, 607), (160, 620)])
def test_deepspeed_bing_berts_throughput_on_v100_is_reproduced(micro_batch: int, sequences_per_second: float) -> None:
    stage = f"{{layers: 12, steps: 100000, batch_sequences: {1024 * micro_batch}, micro_batch: {micro_batch}}}"
    plan = shipped("bert-base-v100", "launch.ranks=1", f"stages=[{stage}]")
    found = predict(plan, tabled(plan)).stages[0].update.seconds
    assert 1024 * micro_batch / found == pytest.approx(sequences_per_second, rel=0.02)


def test_nvidias_throughput_for_large_on_a100_is_reproduced() -> None:
    stage = "{layers: 24, steps: 100000, batch_sequences: 40, micro_batch: 40}"
    changes = ["data.sequence_length=512", "launch.ranks=1", f"stages=[{stage}]"]
    plan = shipped("bert-large-a100", *changes)
    assert 40 / predict(plan, tabled(plan)).stages[0].update.seconds == pytest.approx(96.5, rel=0.03)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_the_stages_add_up_to_the_run(name: str) -> None:
    plan = shipped(name)
    found = predict(plan, tabled(plan, price=1.25))
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    assert found.cost == pytest.approx(sum(stage.cost or 0.0 for stage in found.stages))
    for stage, planned in zip(found.stages, plan.stages, strict=True):
        assert stage.training_seconds == pytest.approx(stage.update.seconds * planned.steps)
        assert stage.seconds == pytest.approx(stage.training_seconds + stage.outside.seconds)
        assert stage.cost == pytest.approx(planned.ranks * stage.seconds / 3600 * 1.25)


def test_without_a_price_there_is_no_cost() -> None:
    found = predict(LARGE, tabled(LARGE))
    assert found.cost is None and all(stage.cost is None for stage in found.stages)


@given(POWERS, POWERS)
@settings(deadline=None)
def test_more_ranks_compute_less_and_send_no_less(first: int, second: int) -> None:
    few, many = (predict(on_ranks(LARGE, ranks), SETTING) for ranks in sorted((first, second)))
    for before, after in zip(few.stages, many.stages, strict=True):
        assert after.update.forward + after.update.backward <= (before.update.forward + before.update.backward) * 1.001
        assert after.update.optimizer <= before.update.optimizer
        assert after.bytes_per_update >= before.bytes_per_update
    assert many.gpu_hours >= few.gpu_hours * 0.999


@given(st.integers(0, 2), st.integers(1, 10**6), st.integers(1, 10**6))
@settings(deadline=None)
def test_more_steps_take_longer(index: int, first: int, second: int) -> None:
    few, many = sorted((first, second))

    def run(steps: int) -> Prediction:
        return predict(with_steps(LARGE, index, steps), SETTING)

    assert (run(few).seconds < run(many).seconds) == (few < many)


def test_one_rank_does_not_communicate() -> None:
    found = predict(on_ranks(LARGE, 1), SETTING)
    assert found.communication_share == 0
    assert all(stage.update.communication == 0 and stage.bytes_per_update == 0 for stage in found.stages)


def test_overlap_hides_all_but_the_last_bucket() -> None:
    def communication(**zero: object) -> float:
        stage = LARGE.stages[-1]
        config = {**stage.ds_config, "zero_optimization": {"stage": 2, "reduce_bucket_size": 10_000_000, **zero}}
        changed = stage.model_copy(update={"zero_stage": 2, "ds_config": config})
        plan = LARGE.model_copy(update={"stages": (*LARGE.stages[:-1], changed)})
        return predict(plan, SETTING).stages[-1].update.communication

    assert 0 < communication(overlap_comm=True) < communication(overlap_comm=False) / 2


def test_stacking_is_compared_with_training_the_deepest_model_for_the_same_steps() -> None:
    deep = from_the_start(LARGE)
    assert {stage.layers for stage in deep.stages} == {24}
    assert sum(stage.flops for stage in deep.stages) == pytest.approx(LARGE.cost.baseline_flops)
    found = predict(LARGE, SETTING)
    assert found.baseline_seconds == pytest.approx(predict(deep, SETTING).training_seconds)
    assert found.baseline_seconds > found.training_seconds


def test_the_prediction_includes_what_surrounds_training() -> None:
    def outside(**changes: int) -> float:
        evaluation = LARGE.evaluation.model_copy(update={"every_steps": changes.get("evaluate", 1000)})
        checkpoint = LARGE.checkpoint.model_copy(update={"every_steps": changes.get("save", 1000)})
        plan = LARGE.model_copy(update={"evaluation": evaluation, "checkpoint": checkpoint})
        found = predict(plan, SETTING)
        return found.seconds - found.training_seconds

    assert outside(evaluate=100) > outside() > 0
    assert outside(save=100) > outside()
    last = predict(LARGE, SETTING).stages
    assert last[-1].outside.ending > last[0].outside.ending == 0
