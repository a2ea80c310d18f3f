from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.report import plots
from stacking.report.run import read_run
from tests.report.synthetic import SyntheticRun

NUMBERS = st.floats(min_value=-1e6, max_value=1e6)


@given(st.lists(NUMBERS, min_size=1), st.integers(min_value=0, max_value=50))
def test_smoothing_stays_between_the_extremes(values: list[float], window: int) -> None:
    line = plots.smoothed(values, window)
    margin = 1e-6 * max(abs(value) for value in values) + 1e-9
    assert len(line) == len(values)
    assert all(min(values) - margin <= value <= max(values) + margin for value in line)


def test_smoothing_does_not_lag_behind_a_slope() -> None:
    slope = [float(n) for n in range(1000)]
    assert plots.smoothed(slope, 20)[500] == pytest.approx(500.0)


def test_smoothing_over_one_value_changes_nothing() -> None:
    assert plots.smoothed([3.0, 1.0, 2.0], 1) == [3.0, 1.0, 2.0]


def test_smoothing_skips_values_that_are_not_numbers() -> None:
    line = plots.smoothed([2.0, math.nan, math.inf, 2.0], 5)
    assert line[0] == line[3] == pytest.approx(2.0)
    assert math.isnan(line[1]) and math.isnan(line[2])


def test_the_time_axis_leaves_gaps_out(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.train(0, last=50)
    run.wait(1e6)
    run.event("resumed")
    run.train(0, first=51, attempt=2)
    seen = read_run(run.path)
    axis = plots.time_axis(seen)
    assert axis.label == "wall-clock, seconds"
    assert axis.of(seen.records("train")[-1]) < 60


@pytest.mark.parametrize(("steps", "label"), [(1, "real tokens, thousands"), (250, "real tokens, millions")])
def test_the_token_axis_has_a_readable_unit(tmp_path: Path, steps: int, label: str) -> None:
    run = SyntheticRun(tmp_path, layers=(3,), steps=(steps,))
    run.train(0)
    assert plots.tokens_axis(read_run(run.path)).label == label


def test_a_chart_names_every_stage_change(tmp_path: Path) -> None:
    seen = read_run(SyntheticRun(tmp_path, steps=(30, 30, 30)).whole().path)
    for axis in (plots.tokens_axis(seen), plots.time_axis(seen)):
        svg = plots.chart(seen, axis)
        assert svg.startswith("<svg ")
        for label in ("3 layers", "3 → 6 layers", "6 → 12 layers", "learning rate", "held-out", axis.label):
            assert label in svg


def test_the_same_run_gives_the_same_chart(tmp_path: Path) -> None:
    seen = read_run(SyntheticRun(tmp_path, steps=(5, 5, 5)).whole().path)
    axis = plots.tokens_axis(seen)
    assert plots.chart(seen, axis) == plots.chart(seen, axis)
