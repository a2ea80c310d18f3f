"""A budget ends the search in time for a final, and gives every stage its share."""

from __future__ import annotations

from stacking.tune.measure import Budget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_limits_nothing_is_spent() -> None:
    budget = Budget(None, None, 1)
    budget.next_stage()
    assert not budget.search_spent(1000) and not budget.final_spent() and budget.seconds_left() is None


def test_trials_are_counted_per_search_and_leave_the_final_alone() -> None:
    budget = Budget(3, None, 1)
    budget.next_stage()
    assert not budget.search_spent(2)
    assert budget.search_spent(3) == "the limit of 3 trials was reached" and not budget.final_spent()


def test_stages_share_the_time_and_a_stage_passes_on_what_it_does_not_use() -> None:
    clock = Clock()
    budget = Budget(None, 300, 3, clock)
    budget.next_stage()
    assert budget.seconds_left() == 100
    clock.now += 40
    budget.next_stage()
    assert budget.seconds_left() == 130
    clock.now += 1000
    budget.next_stage()
    assert budget.seconds_left() == 0 and budget.search_spent(0) and budget.final_spent()


def test_the_search_ends_early_enough_for_a_final_within_the_stages_time() -> None:
    clock = Clock()
    budget = Budget(None, 100, 1, clock)
    budget.next_stage()
    clock.now += 80
    assert budget.search_spent(0) == "the time limit was reached" and not budget.final_spent()
