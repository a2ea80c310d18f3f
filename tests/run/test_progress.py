from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.run.progress import Progress, Speedometer, TimeLeft
from tests.report.synthetic import synthetic_plan

PLAN = synthetic_plan(layers=(3, 6), steps=(100, 50))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def trained(step: int, stage: int = 0, seconds: float | None = None, loss: float = 2.5) -> dict[str, object]:
    seconds = step / 10 if seconds is None else seconds
    facts = {"kind": "train", "stage": stage, "step": step, "seconds": seconds, "time": time.time()}
    return {**facts, "loss": loss, "tokens_per_second": 98_765.0}


def evaluated(step: int) -> dict[str, object]:
    return {"kind": "evaluation", "stage": 0, "step": step, "loss": 2.75, "seconds": 1.5, "time": time.time()}


def shown(stream: io.StringIO, *made: Callable[[], dict[str, object]], every: float = 0.0) -> str:
    with Progress(PLAN, stream, every) as progress:
        for make in made:
            progress.update(make())
        with progress.phase("consolidate", 0):
            pass
        progress.note("going on")
    return stream.getvalue()


def test_nothing_is_estimated_before_the_first_record() -> None:
    assert Speedometer(PLAN).time_left() is None


def test_deeper_stages_are_estimated_by_their_flops() -> None:
    speed = Speedometer(PLAN)
    for step in (10, 20):
        speed.update(trained(step))
    # 0.1 s per update at 3 layers is 0.2 s at 6: 80 updates to go here, then 50.
    assert speed.time_left() == TimeLeft(stage=pytest.approx(8.0), run=pytest.approx(18.0))


def test_the_speed_is_the_recent_one_not_that_of_the_start_up() -> None:
    speed = Speedometer(PLAN)
    for step in range(1, 51):
        speed.update(trained(step, seconds=100 + step / 10))
    left = speed.time_left()
    assert left is not None and left.stage == pytest.approx(5.0)


def test_going_back_to_a_checkpoint_starts_a_new_measurement() -> None:
    speed = Speedometer(PLAN)
    for step in (10, 20, 30):
        speed.update(trained(step))
    speed.update(trained(20, seconds=2.0))
    speed.update(trained(30, seconds=4.0))
    left = speed.time_left()
    assert left is not None and left.stage == pytest.approx(70 * 0.2)


@given(st.lists(st.integers(min_value=1, max_value=100), min_size=1, max_size=30))
def test_the_time_left_is_never_negative_whatever_records_are_replayed(steps: list[int]) -> None:
    speed = Speedometer(PLAN)
    for step in steps:
        speed.update(trained(step))
    left = speed.time_left()
    assert left is not None and 0 <= left.stage <= left.run


UPDATES = [lambda: trained(10), lambda: evaluated(10), lambda: trained(100)]


def test_a_warning_is_shown_when_it_begins_and_not_with_every_record() -> None:
    warned = [lambda step=step: {**trained(step), "warning": "fp16: gradients overflow"} for step in (10, 20, 30)]
    text = shown(io.StringIO(), *warned[:2], lambda: trained(25), *warned[2:])
    found = [line for line in text.splitlines() if "overflow" in line]
    assert found == [f"3 layers: step {step}, fp16: gradients overflow" for step in (10, 30)]


def test_plain_lines_show_stage_step_loss_speed_and_time_left() -> None:
    lines = shown(io.StringIO(), *UPDATES).splitlines()
    assert lines == [
        "3 layers: step 10/100, loss 2.5000, 98.8 k tokens/s, 9.0 s left in this stage, 19 s in all",
        "3 layers: step 10, held-out loss 2.7500",
        "3 layers: step 100/100, loss 2.5000, 98.8 k tokens/s, 10 s left in all",
        "3 layers: consolidating ...",
        "3 layers: consolidating took 0.0 s",
        "going on",
    ]


def test_plain_lines_appear_periodically_and_at_the_end_of_a_stage() -> None:
    updates = [partial(trained, step) for step in range(1, 101)]
    lines = shown(io.StringIO(), *updates, every=3600.0).splitlines()
    assert [line.split(",")[0] for line in lines[:-3]] == ["3 layers: step 1/100", "3 layers: step 100/100"]


def test_a_terminal_shows_the_same_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    text = shown(Terminal(), lambda: trained(10), lambda: evaluated(10))
    for fact in ("3 layers", "10/100", "loss 2.5000", "98.8 k tokens/s", "9.0 s left", "19 s left"):
        assert fact in text
    assert "held-out loss 2.7500" in text and "consolidating took 0.0 s" in text


def test_a_loss_that_is_not_a_number_is_shown() -> None:
    assert "loss not a number" in shown(io.StringIO(), lambda: trained(10, loss=float("nan")))


def test_earlier_records_are_not_shown_again_but_count_for_the_speed() -> None:
    before = [trained(10), evaluated(10), trained(20)]
    lines = shown(io.StringIO(), *[partial(dict, record) for record in before], lambda: trained(21, seconds=4.0))
    first, *_ = lines.splitlines()
    # 2 s for the update after 10 in 1 s: 3 s for 11, so 79 take 21.5 s.
    assert first == "3 layers: step 21/100, loss 2.5000, 98.8 k tokens/s, 22 s left in this stage, 49 s in all"


def test_a_phase_that_fails_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with pytest.raises(OSError), Progress(PLAN, stream) as progress, progress.phase("grow", 1):
        raise OSError
    assert stream.getvalue().splitlines() == ["6 layers: growing ...", "6 layers: growing took 0.0 s"]


def test_a_retried_phase_keeps_counting_and_shows_no_record_twice() -> None:
    stream = io.StringIO()
    with Progress(PLAN, stream, every=0.0) as progress:
        with progress.phase("train", 0):
            progress.update(first := trained(10))
        with progress.phase("train", 0, step=5):
            progress.update(first)
            progress.update(trained(15))
    lines = [line.split(",")[0] for line in stream.getvalue().splitlines() if "took" not in line]
    again = "3 layers: training again from step 5 ..."
    assert lines == ["3 layers: training ...", "3 layers: step 10/100", again, "3 layers: step 15/100"]
