"""The page and the tables of a comparison."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from stacking.compare.chart import is_known, lengths_picture, picture
from stacking.compare.page import render
from stacking.compare.result import Result, Trained
from stacking.compare.step_times import StepTime
from stacking.compare.tables import as_text, length_table
from tests.compare.arms import trained
from tests.compare.test_result import FALLING, result_of


@pytest.fixture
def result() -> Result:
    found = result_of([trained(FALLING, 10.0)], [trained(FALLING, 5.0)])
    times = (
        StepTime(variant="pre_ln", layers=12, ranks=1, rounds=(0.2, 0.1, 0.3)),
        StepTime(variant="pre_ln", layers=2, ranks=1, rounds=(0.05,)),
    )
    return replace(
        found,
        commands=("stacking compare a b", "stacking run <a>"),
        rates={1e-3: 3.5, 2e-3: None},
        step_times=times,
        warnings=("train it longer",),
    )


def test_the_page_contains_curves_tables_and_commands_and_is_self_contained(result: Result) -> None:
    page = render(result)
    assert len(re.findall("<svg", page)) == 4
    for words in ("late: speed-up at equal loss", "2.00", "diverged", "200.0 ms", "train it longer", "run &lt;a&gt;"):
        assert words in page
    assert not re.search(r"(src|href)=\"http|@import|url\(http", page)


def test_the_rebuilt_wall_clock_has_no_chart_before_it_is_measured() -> None:
    page = render(result_of([trained(FALLING, rebuilt=False)], [trained(FALLING, rebuilt=False)]))
    assert len(re.findall("<svg", page)) == 3 and "Not measured yet" in page


@pytest.mark.parametrize("rebuilt", [True, False])
def test_the_picture_shows_the_runs_before_and_after_step_times_are_known(rebuilt: bool) -> None:
    shown = picture(result_of([trained(FALLING, rebuilt=rebuilt)], [trained(FALLING, 5.0, rebuilt=rebuilt)]))
    assert shown.startswith(b"\x89PNG")


def test_several_lengths_share_one_picture_and_one_table_even_if_a_run_diverged(result: Result) -> None:
    lost = result_of([trained(FALLING)], [Trained(seed=0, curve=(), diverged="not finite")])
    assert lengths_picture([lost, result]).startswith(b"\x89PNG")
    lines = length_table([lost, result]).as_text().splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["scratch", "late", "scratch", "late"]
    assert "not reached" in lines[1] and lines[3].split()[-3:] == ["2.00", "2.00", "1.00"]


def test_runs_that_all_diverged_have_no_picture() -> None:
    lost = Trained(seed=0, curve=(), diverged="not finite")
    assert not is_known(result_of([lost], [lost]), "tokens")


def test_a_comparison_without_a_finished_seed_has_a_page(result: Result) -> None:
    empty = replace(result_of([], []), pending=("late, seed 0",))
    assert "No seed is finished" in render(empty) and "no seed is finished" in as_text(empty)


def test_the_tables_mark_losses_that_were_not_reached() -> None:
    text = as_text(result_of([trained(FALLING)], [trained([7.0, 6.0, 3.6])]))
    assert re.search(r"the baseline's final loss +not reached", text)
    both = [trained(FALLING, seed=0), trained(FALLING, seed=1)]
    text = as_text(result_of(both, [trained(FALLING), Trained(seed=1, curve=(), diverged="not finite")]))
    assert "reached by 1 of 2 seeds" in text
