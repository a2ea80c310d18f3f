"""The final: a difference in every round is real, any other is noise and the simpler setting wins (FAKE rounds)."""

from __future__ import annotations

import pytest

from stacking.tune.candidate import Candidate, Setting
from stacking.tune.runoff import RunoffResult, decide
from stacking.tune.search import SearchResult
from tests.tune.fakes import BASE, SPACE, FakeRounds, measured

COMPILED = Candidate(micro_batch=4, setting=Setting(zero_stage=2, compile=True))
SLOW = Candidate(micro_batch=1, setting=Setting(zero_stage=3))


def final(speeds: dict[Candidate, float], rounds: dict[Candidate, list[float]]) -> tuple[RunoffResult, FakeRounds]:
    found = SearchResult(SPACE, tuple(measured(candidate, speed) for candidate, speed in speeds.items()), "", False)
    again = FakeRounds(rounds)
    return decide(found, again), again


def test_the_candidate_faster_in_every_round_wins() -> None:
    decided, _ = final({BASE: 100, COMPILED: 104}, {COMPILED: [104, 103, 105], BASE: [100, 100, 100]})
    assert decided.winner.candidate == COMPILED
    assert "faster than micro-batch 4, ZeRO 2 by +3.0 to +5.0 % in 3 alternating rounds" in decided.reason
    assert decided.lead == pytest.approx(1.04)


def test_a_difference_that_is_not_in_every_round_is_noise_and_the_simpler_setting_wins() -> None:
    decided, _ = final({BASE: 100, COMPILED: 104}, {COMPILED: [104, 98, 105], BASE: [100, 100, 100]})
    assert decided.winner.candidate == BASE
    assert decided.reason.startswith("simpler than micro-batch 4, ZeRO 2, compiled and as fast within noise")
    assert decided.lead == pytest.approx(1 / 1.04)


def test_a_lead_that_reverses_in_the_final_is_lost() -> None:
    decided, _ = final({BASE: 104, COMPILED: 100}, {COMPILED: [110, 109, 111], BASE: [100, 100, 100]})
    assert decided.winner.candidate == COMPILED and "behind" in decided.reason


def test_the_two_alternate_and_neither_always_goes_first() -> None:
    _, again = final({BASE: 100, COMPILED: 104}, {COMPILED: [104] * 3, BASE: [100] * 3})
    assert again.order == [(1, COMPILED), (1, BASE), (2, BASE), (2, COMPILED), (3, COMPILED), (3, BASE)]


def test_one_round_confirms_a_lead_that_is_far_beyond_noise() -> None:
    decided, again = final({BASE: 100, SLOW: 50}, {BASE: [100] * 3, SLOW: [50] * 3})
    assert decided.winner.candidate == BASE and len(again.order) == 2


def test_a_lead_that_one_round_does_not_confirm_gets_all_rounds() -> None:
    decided, again = final({BASE: 100, COMPILED: 120}, {COMPILED: [99, 120, 120], BASE: [100, 100, 100]})
    assert len(again.order) == 6 and decided.winner.candidate == BASE


def test_the_challenger_is_the_simplest_close_candidate_not_the_second_best() -> None:
    other = Candidate(micro_batch=8, setting=COMPILED.setting)
    decided, _ = final({COMPILED: 104, other: 103, BASE: 101}, {COMPILED: [1, 1, 1], BASE: [1, 1, 1], other: []})
    assert decided.winner.candidate == BASE and decided.runner_up is not None
    assert decided.runner_up.candidate == COMPILED


def test_without_time_for_a_final_the_search_decides_and_the_reason_says_so() -> None:
    decided, _ = final({BASE: 100, COMPILED: 104}, {BASE: [], COMPILED: []})
    assert decided.winner.candidate == COMPILED and "no runoff: the time is over" in decided.reason


def test_a_candidate_that_fails_in_the_final_loses_it() -> None:
    decided, again = final({BASE: 100, COMPILED: 104}, {COMPILED: [0, 0, 0], BASE: [100, 100, 100]})
    assert decided.winner.candidate == BASE and "failed in the runoff: broken" in decided.reason
    assert len(again.order) == 2


def test_a_single_candidate_wins_without_a_final() -> None:
    decided, again = final({BASE: 100}, {})
    assert decided.winner.candidate == BASE and decided.runner_up is None and not again.order
