"""The arithmetic of a comparison, as properties of curves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.compare.curve import Crossing, Point, Spread, cost_at, crossing, loss_at, round_levels

LOSSES = st.lists(st.floats(1.0, 9.0), min_size=1, max_size=30)


def curve_of(losses: list[float], seconds_each: float = 10.0) -> tuple[Point, ...]:
    return tuple(
        Point(
            loss=loss,
            mlm_loss=loss,
            wall=(i + 1) * seconds_each,
            rebuilt=None,
            flops=(i + 1) * 1e9,
            tokens=(i + 1) * 100,
            layers=12,
        )
        for i, loss in enumerate(losses)
    )


@given(LOSSES, st.floats(1.0, 9.0))
def test_a_crossing_is_the_first_evaluation_at_or_below_the_loss(losses: list[float], level: float) -> None:
    place = crossing(losses, level)
    if place is None:
        assert min(losses) > level
    else:
        assert losses[place.index] <= level and all(loss > level for loss in losses[: place.index])
        assert 0 < place.share <= 1


@given(LOSSES, st.floats(1.0, 9.0), st.floats(1.0, 9.0))
def test_a_lower_loss_is_never_reached_sooner(losses: list[float], one: float, other: float) -> None:
    curve = curve_of(losses)
    high, low = (crossing(losses, level) for level in (max(one, other), min(one, other)))
    if low is not None:
        assert high is not None
        late, early = cost_at(curve, low, "wall"), cost_at(curve, high, "wall")
        assert late is not None and early is not None and late >= early - 1e-9


def test_a_crossing_lies_on_the_line_between_its_neighbours() -> None:
    curve = curve_of([6.0, 5.0, 4.0, 4.5, 3.0])
    place = crossing([point.loss for point in curve], 4.25)
    assert place == Crossing(2, 0.75) and cost_at(curve, place, "wall") == pytest.approx(27.5)


def test_a_rise_after_the_crossing_does_not_undo_it() -> None:
    assert crossing([6.0, 4.0, 9.0], 4.0) == Crossing(1, 1.0)


def test_the_first_evaluation_counts_as_the_crossing_where_it_is_below_the_loss() -> None:
    place = crossing([4.0, 3.0], 5.0)
    assert place == Crossing(0, 1.0) and cost_at(curve_of([4.0, 3.0]), place, "wall") == 10.0


def test_a_loss_that_is_never_reached_has_no_crossing() -> None:
    assert crossing([6.0, 5.0, 4.9], 4.5) is None


def test_a_cost_that_was_not_measured_is_unknown() -> None:
    assert cost_at(curve_of([6.0, 5.0]), Crossing(1, 0.5), "rebuilt") is None


@given(LOSSES, st.floats(0, 400))
def test_the_loss_at_a_time_lies_between_the_evaluations_around_it(losses: list[float], seconds: float) -> None:
    found = loss_at(curve_of(losses), seconds)
    if seconds < 10 or seconds > 10 * len(losses):
        assert found is None
    else:
        i = int(seconds // 10)
        around = losses[i - 1 : i + 1]
        assert found is not None and min(around) - 1e-9 <= found <= max(around) + 1e-9


@given(st.floats(0.1, 10.0), st.floats(0.0, 10.0))
def test_round_levels_are_few_and_between_their_bounds(lowest: float, width: float) -> None:
    levels = round_levels(lowest + width, lowest)
    assert len(levels) <= 8 and all(lowest < level <= lowest + width + 1e-9 for level in levels)
    assert all(high > low for high, low in pairwise(levels))
    if width > 0.02:
        assert levels


def test_a_mean_needs_every_seed() -> None:
    assert Spread((2.0, 3.0)).mean == 2.5 and Spread((2.0, None)).mean is None and Spread(()).mean is None
    assert Spread((2.0, 4.0)).deviation == pytest.approx(2**0.5) and Spread((2.0,)).deviation is None
