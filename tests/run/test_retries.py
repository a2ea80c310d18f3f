"""A crash is retried after growing pauses, a crash without progress only a limited number of times."""

from __future__ import annotations

from stacking.run.retries import Retries


def test_pauses_double() -> None:
    retries = Retries(3, 10.0)
    assert [retries.pause(0) for _ in range(4)] == [10.0, 20.0, 40.0, None]


def test_progress_resets_the_count() -> None:
    retries = Retries(2, 1.0)
    assert [retries.pause(step) for step in (0, 0, 100, 100, 100)] == [1.0, 2.0, 1.0, 2.0, None]


def test_no_pause_is_longer_than_ten_minutes() -> None:
    retries = Retries(20, 10.0)
    assert max(pause for _ in range(20) if (pause := retries.pause(0)) is not None) == 600.0


def test_zero_retries_means_no_pause() -> None:
    assert Retries(0, 1.0).pause(0) is None
