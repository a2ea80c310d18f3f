from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.report.run import read_run
from stacking.report.timeline import Span, WallClock, account, attempts, transition, wall_clock
from stacking.run.metrics import truncate_after
from tests.report.synthetic import T0, SyntheticRun

SECONDS = st.floats(min_value=0.01, max_value=1e5)


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path / "run")


def test_the_wall_clock_stands_still_in_a_gap() -> None:
    clock = WallClock(100.0, [Span(110.0, 150.0), Span(160.0, 165.0)])
    assert [clock(t) for t in (100.0, 110.0, 130.0, 150.0, 160.0, 162.0, 170.0)] == [0, 10, 10, 10, 20, 20, 25]
    assert clock.idle == 45.0


def test_an_undisturbed_run_has_no_gaps(run: SyntheticRun) -> None:
    seen = read_run(run.whole().path)
    clock = wall_clock(seen)
    assert clock.gaps == []
    assert clock(run.now) == pytest.approx(run.now - T0)


def test_the_time_from_a_kill_until_the_run_resumes_is_left_out(run: SyntheticRun) -> None:
    run.train(0, last=40)
    killed = run.now
    run.wait(5000)
    run.event("resumed")
    run.train(0, first=41, attempt=2)
    seen = read_run(run.path)
    assert wall_clock(seen).gaps == [Span(killed, killed + 5000)]
    assert [(a.phase, a.ending, a.number) for a in attempts(seen)] == [("train", "killed", 1), ("train", "finished", 2)]


@pytest.mark.parametrize("ending", ["failed", "preempted"])
def test_the_time_from_a_recorded_ending_until_the_next_start_is_left_out(run: SyntheticRun, ending: str) -> None:
    run.train(0, last=40)
    run.wait(7)
    run.event(ending, phase="train", stage=0, attempt=1)
    ended = run.now
    run.wait(600)
    run.train(0, first=41, attempt=2)
    seen = read_run(run.path)
    assert wall_clock(seen).gaps == [Span(ended, ended + 600)]
    assert [a.ending for a in attempts(seen)] == [ending, "finished"]


def test_a_stop_between_phases_is_left_out_when_the_run_is_resumed(run: SyntheticRun) -> None:
    run.train(0)
    run.wait(900)
    run.event("resumed")
    run.transition(0)
    assert wall_clock(read_run(run.path)).idle == pytest.approx(900)


def test_an_attempt_in_progress_has_no_ending_yet(run: SyntheticRun) -> None:
    run.train(0, last=40)
    (only,) = attempts(read_run(run.path))
    assert only.ending is None
    assert only.span.end == run.now


def test_a_run_without_a_journal_has_no_clock_and_no_attempts(run: SyntheticRun) -> None:
    (run.path / "journal.jsonl").unlink()
    seen = read_run(run.path)
    assert attempts(seen) == []
    assert account(seen).total == 0


def test_a_transition_is_consolidate_grow_and_start_up(run: SyntheticRun) -> None:
    run.train(0)
    run.transition(0, consolidate=3.0, grow=1.5)
    run.train(1, start_up=8.0)
    seen = read_run(run.path)
    into = transition(seen, 1)
    assert (into.consolidate, into.grow, into.start_up) == (3.0, 1.5, pytest.approx(8.0))
    assert into.total == pytest.approx(12.5)
    assert transition(seen, 2).total is None


def test_a_stage_that_begins_ahead_of_its_state_waits_for_its_start_up_only(run: SyntheticRun) -> None:
    run.train(0)
    run.transition(0, consolidate=3.0, grow=1.5)
    run.train(1, start_up=-2.5)  # its first update began 2 s after the end of the stage before
    seen = read_run(run.path)
    into = transition(seen, 1)
    assert (into.consolidate, into.grow, into.start_up) == (3.0, 1.5, pytest.approx(2.0))
    assert into.ahead and into.total == pytest.approx(2.0)
    assert account(seen).total == pytest.approx(run.now - T0)


def test_the_start_up_belongs_to_the_attempt_that_made_the_first_update(run: SyntheticRun) -> None:
    run.train(0, last=10, start_up=50.0)
    truncate_after(run.path / "0-L3" / "metrics.jsonl", 0)
    run.wait(5000)
    run.event("resumed")
    run.train(0, start_up=4.0, attempt=2)
    assert transition(read_run(run.path), 0).start_up == pytest.approx(4.0)


def test_a_phase_that_was_tried_twice_counts_once(run: SyntheticRun) -> None:
    run.train(0)
    run.event("started", phase="consolidate", stage=0, attempt=1)
    run.wait(40)
    run.event("failed", phase="consolidate", stage=0, attempt=1, message="no space")
    run.phase("consolidate", 0, 3.0)
    assert transition(read_run(run.path), 1).consolidate == 3.0


@settings(max_examples=25, deadline=None)
@given(start_up=SECONDS, consolidate=SECONDS, grow=SECONDS, idle=SECONDS, killed_at=st.integers(1, 19))
def test_the_parts_of_an_account_add_up_to_the_working_time(
    start_up: float, consolidate: float, grow: float, idle: float, killed_at: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = SyntheticRun(Path(folder), layers=(3, 6), steps=(20, 20))
        run.train(0, last=killed_at, start_up=start_up)
        run.wait(idle)
        run.event("resumed")
        run.train(0, first=killed_at + 1, attempt=2, start_up=1.0)
        run.transition(0, consolidate, grow)
        run.train(1, start_up=start_up)
        spent = account(read_run(run.path))
        assert spent.idle == pytest.approx(idle, abs=1e-3)
        assert spent.training == pytest.approx(20 * 0.3 + 20 * 0.6)
        assert spent.transitions == pytest.approx(2 * start_up + consolidate + grow, abs=1e-3)
        assert spent.other == pytest.approx(1.0, abs=1e-3)
        assert spent.total + spent.idle == pytest.approx(run.now - T0, abs=1e-3)
