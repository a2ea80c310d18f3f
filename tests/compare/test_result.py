"""Speed-ups: what the baseline needs to reach a loss over what an arm needs, seed by seed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.compare.curve import MEASURES
from stacking.compare.plateau import plateau_warnings
from stacking.compare.result import Result, Trained, compare_runs
from tests.compare.arms import sample_arm, trained

BASELINE, GROWN = sample_arm("scratch", [12], [100]), sample_arm("late", [2, 12], [80, 20])
FALLING = [7.0, 6.0, 5.0, 4.0, 3.5]


def result_of(baseline: list[Trained], grown: list[Trained]) -> Result:
    return Result(
        arms=tuple(compare_runs([(BASELINE, baseline), (GROWN, grown)])),
        seeds=tuple(run.seed for run in baseline),
        pending=(),
        commands=("stacking compare scratch late",),
        rates={},
        step_times=(),
        warnings=(),
    )


@given(st.lists(st.floats(2.0, 9.0), min_size=2, max_size=20))
def test_identical_curves_have_a_speed_up_of_one(losses: list[float]) -> None:
    result = result_of([trained(losses)], [trained(losses)])
    arm = result.arms[1]
    for measure in MEASURES:
        assert arm.final.speedup[measure].mean == pytest.approx(1.0)
        assert all(level.speedup[measure].mean == pytest.approx(1.0) for level in arm.levels)


@given(st.floats(0.1, 10.0))
def test_half_the_time_is_twice_the_speed_but_no_fewer_flops(seconds: float) -> None:
    arm = result_of([trained(FALLING, 2 * seconds)], [trained(FALLING, seconds)]).arms[1]
    assert arm.final.speedup["wall"].mean == pytest.approx(2.0)
    assert arm.final.speedup["rebuilt"].mean == pytest.approx(2.0)
    assert arm.final.speedup["flops"].mean == pytest.approx(1.0)


def test_mean_and_spread_are_over_the_seeds() -> None:
    baseline = [trained(FALLING, 10.0, 0), trained(FALLING, 10.0, 1)]
    arm = result_of(baseline, [trained(FALLING, 5.0, 0), trained(FALLING, 2.5, 1)]).arms[1]
    assert arm.final.speedup["wall"].as_dict() == {
        "mean": pytest.approx(3.0),
        "min": pytest.approx(2.0),
        "max": pytest.approx(4.0),
        "standard_deviation": pytest.approx(2**0.5),
        "per_seed": [pytest.approx(2.0), pytest.approx(4.0)],
    }


def test_an_arm_that_never_reaches_the_loss_has_no_number() -> None:
    arm = result_of([trained(FALLING)], [trained([7.0, 6.0, 3.6])]).arms[1]
    assert arm.final.reached == (None,) and arm.final.speedup["wall"].mean is None
    assert arm.levels[-1].speedup["wall"].mean is not None or arm.levels[-1].loss[0] < 3.6


def test_one_seed_of_two_that_reaches_the_loss_makes_no_mean() -> None:
    baseline = [trained(FALLING, seed=0), trained(FALLING, seed=1)]
    arm = result_of(baseline, [trained(FALLING, seed=0), trained([7.0, 6.0, 3.6], seed=1)]).arms[1]
    speedup = arm.final.speedup["wall"]
    assert speedup.values == (pytest.approx(1.0), None) and speedup.mean is None and speedup.deviation is None


def test_a_run_that_diverged_reaches_nothing_and_leaves_the_others_comparable() -> None:
    lost = Trained(seed=0, curve=(), diverged="the loss was not finite")
    result = result_of([trained(FALLING)], [lost])
    assert result.arms[1].final.speedup["wall"].mean is None and result.arms[1].equal_time == (None,)
    assert result.arms[0].final.speedup["wall"].mean == pytest.approx(1.0)
    assert result_of([lost], [trained(FALLING)]).arms[1].final.reached == (None,)


def test_levels_are_between_every_arms_start_and_the_baselines_end() -> None:
    result = result_of([trained(FALLING)], [trained([6.4, 5.0, 3.0])])
    assert result.levels and max(result.levels) <= 6.4 and min(result.levels) > 3.5


def test_losses_at_equal_time_are_compared_when_the_first_of_the_two_ends() -> None:
    (equal,) = result_of([trained(FALLING, 10.0)], [trained([7.0, 5.0, 3.0], 10.0)]).arms[1].equal_time
    assert equal is not None and (equal.seconds, equal.loss, equal.baseline_loss) == (30.0, 3.0, 5.0)


def test_the_json_has_the_headline_numbers() -> None:
    content = json.loads(json.dumps(result_of([trained(FALLING, 10.0)], [trained(FALLING, 5.0)]).as_dict()))
    late = content["arms"][1]
    assert content["seeds"] == [0] and content["levels"]
    assert late["speedup_wall"]["mean"] == pytest.approx(2.0) and late["speedup_flops"]["mean"] == pytest.approx(1.0)
    assert [level["loss"][0] for level in late["levels"]] == content["levels"]


def test_an_arm_that_ends_on_the_plateau_is_named() -> None:
    arms = compare_runs([(BASELINE, [trained([6.2, 6.1, 5.0, 4.0])]), (GROWN, [trained([6.2, 6.1])])])
    (warning,) = plateau_warnings(arms, entropy=6.2)
    assert warning.startswith("late, seed 0 ends after 200 tokens; the baseline leaves the plateau")
    assert plateau_warnings(arms[:1], entropy=6.2) == []


def test_a_baseline_that_never_leaves_the_plateau_is_named() -> None:
    (warning,) = plateau_warnings(compare_runs([(BASELINE, [trained([6.2, 6.1])])]), entropy=6.2)
    assert "never leaves the plateau" in warning
