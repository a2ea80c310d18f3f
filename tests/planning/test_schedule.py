"""Learning rates: handed on between stages, one shape over the run, a rise after each growth."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.config.recipe import Recipe
from stacking.planning.schedule import learning_rate_at, resolve_schedule, warmup_stable_decay

RATES = st.floats(1e-7, 1e-1)
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=5)


def recipe_of(rates: list[dict[str, Any]], schedule: dict[str, Any] | None = None) -> Recipe:
    stages = [{"layers": 2**i, "steps": 1, "learning_rate": rate or None} for i, rate in enumerate(rates)]
    return Recipe.model_validate({"stages": stages, "schedule": schedule or {}})


def run_wide(lengths: list[int], **schedule: Any) -> list[float]:
    """The rate of every update of a run under one warmup-stable-decay schedule."""
    recipe = recipe_of([{}] * len(lengths), {"kind": "warmup-stable-decay", **schedule})
    stages = resolve_schedule(recipe, lengths, [False] * len(lengths))
    return [learning_rate_at(points, k) for points, n in zip(stages, lengths, strict=True) for k in range(n)]


def test_rates_are_interpolated_linearly_between_points() -> None:
    points = ((0, 0.0), (10, 1.0), (30, 0.5))
    assert [learning_rate_at(points, step) for step in (-1, 0, 5, 10, 20, 30, 99)] == [0, 0, 0.5, 1, 0.75, 0.5, 0.5]


@given(LENGTHS, st.lists(RATES, min_size=5, max_size=5))
def test_a_stage_starts_where_the_one_before_ended(lengths: list[int], ends: list[float]) -> None:
    rates = [{"peak": 1e-3, "end": ends[0]}, *({"end": end} for end in ends[1:])][: len(lengths)]
    stages = resolve_schedule(recipe_of(rates), lengths, [True] * len(lengths))
    for before, after in pairwise(stages):
        assert before[-1][1] == after[0][1]
    assert [(points[0][0], points[-1][0]) for points in stages] == [(0, n) for n in lengths]


def test_a_first_stage_warms_up_from_nothing() -> None:
    [points] = resolve_schedule(recipe_of([{"peak": 1e-3, "warmup_steps": 10}]), [100], [False])
    assert points == ((0, 0.0), (10, 1e-3), (100, 1e-3))


def test_a_stage_may_warm_up_again_to_its_own_peak() -> None:
    rates = [{"peak": 1e-3, "end": 1e-4}, {"peak": 5e-4, "warmup_steps": 10, "end": 0.0}]
    assert resolve_schedule(recipe_of(rates), [50, 50], [False, True])[1] == ((0, 1e-4), (10, 5e-4), (50, 0.0))


@given(LENGTHS, st.integers(0, 30), st.floats(0, 0.5), RATES)
def test_a_run_wide_schedule_does_not_depend_on_the_stages(
    lengths: list[int], warmup: int, share: float, peak: float
) -> None:
    total = sum(lengths)
    schedule = {"peak": peak, "warmup_steps": min(warmup, total // 2), "decay_share": share}
    assert run_wide(lengths, **schedule) == pytest.approx(run_wide([total], **schedule), rel=1e-9, abs=1e-15)


@given(st.integers(10, 1000), st.integers(0, 5), st.integers(0, 5), RATES)
def test_warmup_stable_decay_has_its_shape(total: int, warmup: int, decay: int, peak: float) -> None:
    points = warmup_stable_decay(total, peak, warmup, decay, 0.0)
    values = [learning_rate_at(points, step) for step in range(total + 1)]
    assert all(a <= b for a, b in pairwise(values[: warmup + 1]))
    assert set(values[warmup : total - decay + 1]) == {peak}
    assert values[-1] == (0.0 if decay else peak)
    assert values[0] == (0.0 if warmup else peak)


@given(st.integers(1, 50), st.integers(50, 200))
def test_after_the_rise_the_rate_is_the_same_as_without_one(rise: int, steps: int) -> None:
    rates = [{"peak": 1e-3, "end": 5e-4}, {"end": 1e-4}]
    plain = resolve_schedule(recipe_of(rates), [100, steps], [False, True])
    risen = resolve_schedule(recipe_of(rates, {"rewarmup_steps": rise}), [100, steps], [False, True])
    assert risen[0] == plain[0]
    assert learning_rate_at(risen[1], 0) == 0
    for step in range(rise, steps + 1):
        assert learning_rate_at(risen[1], step) == pytest.approx(learning_rate_at(plain[1], step), rel=1e-12)


def test_a_stage_that_did_not_grow_does_not_rise() -> None:
    rates: list[dict[str, Any]] = [{"peak": 1e-3}, {}]
    stages = resolve_schedule(recipe_of(rates, {"rewarmup_steps": 5}), [10, 10], [False, False])
    assert stages[1] == ((0, 1e-3), (10, 1e-3))


def test_a_checked_recipe_has_a_file_name_for_messages() -> None:
    assert recipe_of([{"peak": 1e-3}]).file == Path("recipe.yaml")
