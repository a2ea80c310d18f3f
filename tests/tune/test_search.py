"""The search finds what is fastest with few trials, and nothing that cannot fit is tried (against a FAKE machine)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.tune.candidate import DIMENSIONS, Candidate, Setting
from stacking.tune.search import SearchResult
from tests.tune.fakes import BASE, SPACE, FakeTrials, measured, needed, peaked, search

ZERO_1 = Setting(zero_stage=1)


def best(found: SearchResult) -> Candidate:
    return found.measured[0].candidate


def test_the_recipes_own_setting_is_measured_first() -> None:
    trials = FakeTrials(peaked(16))
    search(trials)
    assert trials.measured[0] == BASE


@pytest.mark.parametrize("fastest", SPACE.micro_batches)
def test_the_micro_batch_climbs_to_the_peak_from_either_side(fastest: int) -> None:
    assert best(search(FakeTrials(peaked(fastest)))).micro_batch == fastest


def test_a_climb_ends_after_the_peak() -> None:
    trials = FakeTrials(peaked(8))
    search(trials)
    swept = [c.micro_batch for c in trials.measured if c.setting == BASE.setting]
    assert 64 not in swept and 1 not in swept


def test_a_faster_zero_stage_and_compilation_are_found_together() -> None:
    found = search(FakeTrials(peaked(8, zero_1=0.1, compile=0.2)))
    assert best(found) == Candidate(micro_batch=8, setting=Setting(zero_stage=1, compile=True))


def test_the_micro_batch_is_tuned_again_in_the_best_setting() -> None:
    def speed(candidate: Candidate) -> float:
        return peaked(32 if candidate.setting.compile else 8, compile=0.5)(candidate)

    assert best(search(FakeTrials(speed))) == Candidate(micro_batch=32, setting=Setting(zero_stage=2, compile=True))


def test_options_that_only_save_memory_are_not_tried_where_memory_suffices() -> None:
    trials = FakeTrials(peaked(8, checkpointing=5.0))
    found = search(trials)
    assert not found.checked_memory
    assert not any(c.setting.activation_checkpointing or c.setting.offload != "none" for c in trials.measured)


def test_saving_memory_is_tried_where_memory_stops_the_climb_and_a_larger_micro_batch_pays_off() -> None:
    found = search(FakeTrials(peaked(32, checkpointing=-0.05), real_limit=1000))
    assert found.checked_memory
    assert best(found).setting.activation_checkpointing and best(found).micro_batch == 32


def test_a_recipe_that_does_not_fit_gets_a_smaller_micro_batch() -> None:
    found = search(FakeTrials(peaked(4), real_limit=500))
    assert found.of(BASE) is not None and found.of(BASE).result == "out-of-memory"  # type: ignore[union-attr]
    assert found.measured and needed(best(found)) <= 500


def test_a_recipe_that_fits_at_no_micro_batch_gets_a_setting_that_does() -> None:
    found = search(FakeTrials(peaked(4), real_limit=250))
    assert found.measured and needed(best(found)) <= 250


def test_a_setting_that_fails_is_abandoned_and_the_search_continues() -> None:
    found = search(FakeTrials(peaked(8, compile=1.0), broken=lambda candidate: candidate.setting.compile))
    failed = [tried for tried in found.tried if tried.result == "failed"]
    assert len(failed) == 1 and best(found).micro_batch == 8


def test_the_search_ends_early_on_a_machine_where_everything_fails() -> None:
    trials = FakeTrials(peaked(8), broken=lambda candidate: True)
    assert search(trials).measured == [] and len(trials.measured) <= 6


def test_a_search_that_must_stop_keeps_the_best_so_far() -> None:
    found = search(FakeTrials(peaked(64), most=3))
    assert found.stopped == "enough" and best(found).micro_batch == 16
    assert len(found.tried) == 3


def test_results_of_an_earlier_search_are_not_measured_again() -> None:
    first = FakeTrials(peaked(16, zero_1=0.1))
    whole = search(first)
    second = FakeTrials(first.speed)
    second.remembered = {tried.candidate: tried for tried in whole.tried[:4]}
    assert search(second) == whole
    assert second.measured == first.measured[4:]


def test_values_that_are_not_open_are_not_tried() -> None:
    closed = replace(SPACE, values={**DIMENSIONS, "zero_stage": (0, 2), "compile": (False,)})
    trials = FakeTrials(peaked(8, zero_1=9.0, compile=9.0))
    search(trials, closed)
    assert {c.setting.zero_stage for c in trials.measured} == {0, 2}
    assert not any(c.setting.compile for c in trials.measured)


GAINS = st.fixed_dictionaries(
    {name: st.floats(-0.5, 0.5) for name in ("zero_0", "zero_1", "zero_3", "compile", "checkpointing", "offload")}
)


@settings(deadline=None)
@given(st.sampled_from(SPACE.micro_batches), GAINS, st.integers(100, 4000), st.booleans())
def test_candidates_that_must_run_out_of_memory_are_not_measured(
    fastest: int, gains: dict[str, float], limit: int, told: bool
) -> None:
    trials = FakeTrials(peaked(fastest, **gains), real_limit=limit)
    found = search(trials, limit=limit if told else None)
    dead: list[Candidate] = []
    for candidate in trials.measured:
        setting = candidate.setting
        assert not told or needed(candidate) <= limit
        for other in dead:
            same = setting.model_copy(update={"activation_checkpointing": other.setting.activation_checkpointing})
            stronger = candidate.micro_batch >= other.micro_batch and same == other.setting
            assert not (stronger and setting.activation_checkpointing <= other.setting.activation_checkpointing)
        if needed(candidate) > limit:
            dead.append(candidate)
    assert all(needed(tried.candidate) <= limit for tried in found.measured)


@settings(deadline=None)
@given(st.sampled_from(SPACE.micro_batches), GAINS)
def test_the_result_is_at_least_as_fast_as_the_recipe_and_any_single_change_to_it(
    fastest: int, gains: dict[str, float]
) -> None:
    speed = peaked(fastest, **gains)
    found = search(FakeTrials(speed))
    winner = found.measured[0]
    assert winner.tokens_per_second >= speed(BASE)
    for name in ("zero_stage", "compile"):
        for value in DIMENSIONS[name]:
            tried = found.of(winner.candidate.changed(**{name: value}))
            assert tried is None or tried.tokens_per_second <= winner.tokens_per_second
    assert len(found.tried) <= 25


def test_records_say_what_was_measured() -> None:
    tried = measured(BASE, 100.0)
    assert tried.update_seconds == 10.0 and not tried.does_not_fit
