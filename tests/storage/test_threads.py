"""Work done by several threads."""

from __future__ import annotations

import threading
import time

import pytest

from stacking.storage.threads import each, thread_count


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_item_is_worked_on_once(threads: int) -> None:
    done: list[int] = []
    each(done.append, range(100), threads)
    assert sorted(done) == list(range(100))


def test_several_threads_work_concurrently() -> None:
    together = threading.Barrier(2)
    each(lambda _: together.wait(timeout=10), range(2), 2)  # type: ignore[arg-type, return-value]


def test_the_first_error_ends_the_work_and_is_raised() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 3:
            raise ValueError("three")
        time.sleep(0.001)
        done.append(item)

    with pytest.raises(ValueError, match="three"):
        each(work, range(10_000), 2)
    assert len(done) < 100


def test_an_error_in_the_items_is_raised() -> None:
    def items():  # type: ignore[no-untyped-def]
        yield 1
        raise KeyError("items")

    with pytest.raises(KeyError):
        each(lambda _: None, items(), 2)


def test_cores_are_shared_with_the_other_ranks() -> None:
    assert thread_count() >= thread_count(2) >= thread_count(1000) == 2
