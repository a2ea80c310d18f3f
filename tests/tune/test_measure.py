"""Trials become records, of whole updates, once; FAKE trials in place of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stacking.bench.trial import Measurement, Trial, TrialResult
from stacking.config.recipe import load_recipe
from stacking.launch.local import Local
from stacking.tune import measure
from stacking.tune.candidate import Candidate, Setting
from stacking.tune.measure import Budget, StageTrials, judged, trial_share, update_seconds
from stacking.tune.search import Spent
from stacking.tune.store import Records
from stacking.tune.variant import Variants
from tests.small_recipe import MACHINE, MANIFEST, SAMPLES, SMALL

PLAIN = Candidate(micro_batch=2, setting=Setting(zero_stage=2))


def measurement(seconds: float, tokens: int, optimizer: float = 0.0) -> Measurement:
    return Measurement(
        step_seconds=(seconds,) * 6,
        step_real_tokens=(tokens,) * 6,
        repeats=3,
        sequences_per_step=tokens // 32,
        tokens_per_step=tokens,
        real_tokens_per_step=tokens,
        flops_per_step=1.0,
        split={"optimizer": optimizer},
        memory_bytes=1 << 20,
        chosen={},
        startup_seconds=1.0,
        warmup_seconds=1.0,
        skipped_steps=0,
    )


class FakeRuns:
    """Stands in for `run_trial`: returns results and records its requests."""

    def __init__(self, *results: TrialResult) -> None:
        self.results, self.asked = list(results), list[tuple[Trial, float | None]]()

    def __call__(self, trial: Trial, folder: Path, launcher: Any, limit_seconds: float | None) -> TrialResult:
        assert folder.is_dir()
        self.asked.append((trial, limit_seconds))
        return self.results.pop(0)


GOOD = TrialResult(outcome="measured", measurements={"stacking": measurement(0.5, 256)})
FULL = TrialResult(outcome="out-of-memory", message="rank 0 was killed by SIGKILL")
LATE = TrialResult(outcome="failed", message="took longer than 9 s")


@pytest.fixture
def variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Variants:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SMALL)
    return Variants(load_recipe("recipe.yaml"), MANIFEST, SAMPLES, MACHINE)


def trials(variants: Variants, seconds: float | None = None, lines: list[str] | None = None) -> StageTrials:
    budget = Budget(None, seconds, 1)
    budget.next_stage()
    tell = (lines if lines is not None else []).append
    return StageTrials(variants, 0, Records(Path("out"), "0-L2"), Local(), budget, None, tell)


def test_a_result_is_saved_and_reused_by_the_next_call(variants: Variants, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "run_trial", FakeRuns(GOOD))
    lines: list[str] = []
    first = trials(variants).measure(PLAIN)
    assert first.tokens_per_second == 512
    assert trials(variants, lines=lines).known(PLAIN) == first
    assert lines == ["micro-batch 2, ZeRO 2: 512 tokens/s, from an earlier run"]


@pytest.mark.parametrize(("result", "kind"), [(FULL, "out-of-memory"), (LATE, "failed")])
def test_a_failed_trial_is_recorded_too(
    variants: Variants, monkeypatch: pytest.MonkeyPatch, result: TrialResult, kind: str
) -> None:
    monkeypatch.setattr(measure, "run_trial", FakeRuns(result))
    assert trials(variants).measure(PLAIN).result == kind
    known = trials(variants).known(PLAIN)
    assert known is not None and known.result == kind and known.message == result.message


def test_a_trial_ended_by_the_budget_says_nothing_about_its_candidate(
    variants: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "run_trial", FakeRuns(LATE))
    with pytest.raises(Spent):
        trials(variants, seconds=0.0).measure(PLAIN)
    assert trials(variants).known(PLAIN) is None


def test_a_budget_bounds_each_trial_and_the_first_trial_the_later_ones(
    variants: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = FakeRuns(GOOD, GOOD, GOOD)
    monkeypatch.setattr(measure, "run_trial", runs)
    free = trials(variants)
    free.measure(PLAIN)
    free.measure(PLAIN.at(4))
    trials(variants, seconds=60).measure(PLAIN.at(1))
    limits = [limit for _, limit in runs.asked]
    assert limits[0] is None and limits[1] == 240 and limits[2] is not None and 50 < limits[2] <= 60


def test_rounds_of_the_final_have_their_own_records(variants: Variants, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = FakeRuns(GOOD, GOOD, GOOD)
    monkeypatch.setattr(measure, "run_trial", runs)
    one = trials(variants)
    one.measure(PLAIN)
    one.again(PLAIN, 1)
    one.again(PLAIN, 2)
    again = trials(variants).again(PLAIN, 1)
    assert len(runs.asked) == 3 and again.tokens_per_second == 512


def test_a_shortened_update_is_scaled_but_the_optimizer_steps_once() -> None:
    assert update_seconds(measurement(1.0, 1, optimizer=0.2), 1) == 1.0
    assert update_seconds(measurement(1.0, 1, optimizer=0.2), 4) == pytest.approx(3.4)


def test_speed_counts_the_tokens_of_the_whole_update(variants: Variants) -> None:
    stage = variants.base.stages[0]
    run = stage.model_copy(update={"global_batch": stage.global_batch // 2})
    result = TrialResult(outcome="measured", measurements={"stacking": measurement(1.0, 128, optimizer=0.5)})
    tried = judged(PLAIN, result, stage, run)
    assert tried.update_seconds == 1.5 and tried.tokens_per_second == pytest.approx(256 / 1.5)


def test_a_long_update_is_shortened_and_a_short_one_is_not(variants: Variants) -> None:
    stage = variants.base.stages[0]
    assert trial_share(variants.base, stage, cores=2) == stage.global_batch // stage.ranks
    huge = stage.model_copy(update={"global_batch": 2_000_000, "layers": 24})
    assert 1 <= trial_share(variants.base, huge, cores=2) < 100_000
