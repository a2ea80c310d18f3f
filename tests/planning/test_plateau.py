"""Stages that end when the held-out loss levels off."""

from __future__ import annotations

from math import log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.config.recipe import Until
from stacking.errors import UserError
from stacking.planning.plan import Plan
from stacking.planning.plateau import has_levelled, settled_from, with_lengths
from stacking.planning.schedule import learning_rate_at
from tests.small_recipe import plan_of

RECIPE = """\
name: automatic
model: {hidden: 64, heads: 2, max_positions: 64}
data: {sequence_length: 32}
schedule: {kind: warmup-stable-decay, peak: 1e-3, warmup_steps: 10, decay_share: 0.2}
stages:
  - {layers: 2, batch_sequences: 8, until: {plateau: 0.1, at_most: 100}}
  - {layers: 4, until: {plateau: 0.1, at_most: 50, evaluations: 3}}
  - {layers: 8, steps: 150}
evaluation: {every_steps: 10}
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def curve(plan: Plan) -> list[float]:
    """The learning rate of every update of the run."""
    return [learning_rate_at(s.learning_rate, step) for s in plan.stages for step in range(s.steps)]


def assert_same(one: Plan, other: Plan) -> None:
    """FLOPs and epochs may differ by rounding."""
    assert one.cost.flops == pytest.approx(other.cost.flops)
    for a, b in zip(one.stages, other.stages, strict=True):
        assert (a.flops, a.epochs) == pytest.approx((b.flops, b.epochs))
        same = {"flops": 0.0, "epochs": None}
        assert a.model_copy(update=same) == b.model_copy(update=same)


def test_unused_updates_of_a_stage_go_to_the_last_one() -> None:
    plan = plan_of(RECIPE)
    assert [stage.steps for stage in plan.stages] == [100, 50, 150]

    settled = with_lengths(plan, {0: 40})

    assert [stage.steps for stage in settled.stages] == [40, 50, 210]
    assert [stage.until is None for stage in settled.stages] == [True, False, True]
    assert_same(with_lengths(settled, {1: 30}), with_lengths(plan, {0: 40, 1: 30}))
    assert with_lengths(plan, {}) == plan


@pytest.mark.parametrize("first", [1, 17, 40, 99, 100])
@pytest.mark.parametrize("second", [1, 30, 50])
def test_samples_and_learning_rates_of_the_run_stay_exact(first: int, second: int) -> None:
    plan = plan_of(RECIPE)
    settled = with_lengths(plan, {0: first, 1: second})

    assert curve(settled) == pytest.approx(curve(plan), rel=1e-12)
    assert settled.stages[-1].last_sample == plan.stages[-1].last_sample
    for before, after in zip(settled.stages, settled.stages[1:], strict=False):
        assert after.first_sample == before.last_sample
        assert after.first_step == before.first_step + before.steps
    for stage in settled.stages:
        assert stage.last_sample - stage.first_sample == stage.steps * stage.global_batch
        assert stage.tokens == stage.steps * stage.global_batch * 32


def test_a_plan_with_decided_lengths_equals_that_of_a_recipe_with_these_lengths() -> None:
    decided = with_lengths(plan_of(RECIPE), {0: 40, 1: 30})
    fixed = plan_of(
        RECIPE.replace("until: {plateau: 0.1, at_most: 100}", "steps: 40")
        .replace("until: {plateau: 0.1, at_most: 50, evaluations: 3}", "steps: 30")
        .replace("steps: 150", "steps: 230")
    )
    assert_same(decided, fixed)


def test_the_rise_after_each_growth_moves_with_the_stages() -> None:
    text = RECIPE.replace("decay_share", "rewarmup_steps: 5, decay_share")
    decided = with_lengths(plan_of(text), {0: 40})
    assert decided.stages[1].learning_rate[:2] == ((0, 0.0), (5, 1e-3))
    assert settled_from(decided.stages[0], decided.schedule) == 10
    assert settled_from(decided.stages[1], decided.schedule) == 5


@given(st.floats(0.01, 2), st.floats(0, 10), st.integers(3, 8), st.integers(1, 50))
def test_a_loss_linear_in_the_logarithm_of_the_steps_is_measured_exactly(
    fall: float, start: float, count: int, first: int
) -> None:
    losses = [(first + 10 * i, start - fall * log2(first + 10 * i)) for i in range(count)]

    assert not has_levelled(Until(plateau=fall * 0.99, at_most=1000, evaluations=count), losses)
    assert has_levelled(Until(plateau=fall * 1.01, at_most=1000, evaluations=count), losses)
    assert not has_levelled(Until(plateau=fall * 1.01, at_most=1000, evaluations=count + 1), losses)


def test_a_rising_loss_has_levelled_off_and_old_evaluations_do_not_count() -> None:
    until = Until(plateau=0.1, at_most=1000, evaluations=3)
    assert has_levelled(until, [(10, 2.0), (20, 2.1), (30, 2.2)])
    assert has_levelled(until, [(1, 9.0), (10, 2.0), (20, 2.0), (30, 2.0)])
    assert not has_levelled(until, [(10, 9.0), (20, 2.0), (30, 2.0)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 150", "until: {plateau: 1, at_most: 150}", r"stages\[2\]\.until: is in the last stage"),
        ("layers: 8, ", "layers: 8, batch_sequences: 16, ", r"needs the last stage's batch of 16 sequences, but has 8"),
        ("at_most: 100", "at_most: 40", r"is never decided: 4 evaluations, one every 10 updates, do not fit between"),
        ("at_most: 100}", "at_most: 100}, steps: 9", r"stages\[0\]: has both steps and until; give one of them"),
        ("plateau: 0.1, at_most: 100", "at_most: 100", r"stages\[0\]\.until\.plateau"),
        ("plateau: 0.1, at_most: 100", "plateau: 0, at_most: 100", r"stages\[0\]\.until\.plateau"),
        ("{kind: warmup-stable-decay, peak: 1e-3, warmup_steps: 10, decay_share: 0.2}",
         "{kind: WarmupLR, warmup_max_lr: 1e-3}", r"stages\[0\]\.until: cannot be used in a WarmupLR schedule"),
    ],
)  # fmt: skip
def test_mistakes_are_named(old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(RECIPE.replace(old, new, 1))
