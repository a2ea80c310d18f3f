"""Runs compared with each other: what each is charged with, the table, and the picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stacking.report.comparison import (
    ChargedClock,
    charged_seconds,
    comparison_chart,
    comparison_table,
    write_comparison_picture,
)
from stacking.report.html import write_report
from stacking.report.run import Run, read_run
from tests.report.synthetic import SyntheticRun

STACKED_SECONDS = 100 * 0.2 + 100 * 1.2 + 2 * 5.0 + 3.0 + 1.5
"""Updates of 2 and 12 layers, two start-ups, consolidation and growth; 8 evaluations of 2 s are not charged."""


@pytest.fixture
def stacked(tmp_path: Path) -> Run:
    return read_run(SyntheticRun(tmp_path / "stacked", layers=(2, 12), steps=(100, 100)).whole().path)


@pytest.fixture
def scratch(tmp_path: Path) -> Run:
    return read_run(SyntheticRun(tmp_path / "scratch", layers=(12,), steps=(120,)).whole().path)


def test_a_run_is_charged_with_everything_but_evaluations(stacked: Run, scratch: Run) -> None:
    assert charged_seconds(stacked) == pytest.approx(STACKED_SECONDS)
    assert charged_seconds(scratch) == pytest.approx(5.0 + 120 * 1.2)


def test_the_charge_never_decreases(stacked: Run) -> None:
    clock = ChargedClock(stacked)
    charges = [clock(record["time"]) for stage in stacked.metrics for record in stage]
    assert charges == sorted(charges)


def test_idle_time_is_not_charged(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", layers=(2,), steps=(100,))
    run.train(0, last=50)
    run.wait(3600)
    run.event("resumed")
    run.train(0, first=51, attempt=2)
    assert charged_seconds(read_run(run.path)) == pytest.approx(100 * 0.2 + 2 * 5.0)


def test_a_run_that_has_not_started_is_charged_nothing(tmp_path: Path) -> None:
    run = read_run(SyntheticRun(tmp_path / "run").path)
    assert charged_seconds(run) == 0
    assert comparison_table([run]).rows == [("3 → 6 → 12 layers", "0", "0", "0.0 s", "—")]


def test_the_table_has_a_row_for_each_run(stacked: Run, scratch: Run) -> None:
    table = comparison_table([stacked, scratch])
    assert [row[:4] for row in table.rows] == [
        ("2 → 12 layers", "200", "819 k", "2 min 35 s"),
        ("12 layers from the start", "120", "492 k", "2 min 29 s"),
    ]
    assert [row[4] for row in table.rows] == [f"{r.records('evaluation')[-1]['loss']:.4f}" for r in (stacked, scratch)]


def test_runs_of_the_same_depths_are_distinguished_by_their_folders(stacked: Run) -> None:
    assert [row[0] for row in comparison_table([stacked, stacked]).rows] == ["2 → 12 layers (stacked)"] * 2


def test_the_picture_names_both_runs_the_growth_and_both_axes(stacked: Run, scratch: Run) -> None:
    chart = comparison_chart([stacked, scratch])
    for words in ("2 → 12 layers, held-out loss", "12 layers from the start, held-out loss", "tokens, thousands"):
        assert words in chart
    assert chart.count(">2 → 12 layers<") == 2 and "wall-clock without evaluations, minutes" in chart


def test_a_run_without_records_does_not_break_the_picture(tmp_path: Path, scratch: Run) -> None:
    empty = read_run(SyntheticRun(tmp_path / "run").path)
    assert comparison_chart([empty, scratch]).startswith("<svg")
    assert comparison_chart([empty, empty]).startswith("<svg")


def test_the_report_shows_a_comparison_if_there_is_one(stacked: Run, scratch: Run) -> None:
    page = write_report(stacked.folder.path, [scratch.folder.path]).read_text(encoding="utf-8")
    assert "Beside other runs" in page and len(re.findall("<svg", page)) == 3
    assert (stacked.folder.path / "report" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert "Beside other runs" not in write_report(stacked.folder.path).read_text(encoding="utf-8")


def test_the_picture_is_one_png(stacked: Run, scratch: Run, tmp_path: Path) -> None:
    assert write_comparison_picture([stacked, scratch], tmp_path).read_bytes()[:4] == b"\x89PNG"
