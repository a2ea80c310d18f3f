"""From measurements to rates, ratios and text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stacking.bench.as_text import block, footer
from stacking.bench.results import StageResult, as_json, derive, ratios
from stacking.bench.trial import Measurement, Trial, TrialResult
from tests.small_recipe import SMALL, plan_of

HARDWARE = {
    "device": "cpu",
    "name": "A CPU",
    "ranks": 2,
    "cores": 2,
    "threads_per_rank": 1,
    "peak_tflops": 0.5,
    "peak_source": "measured",
    "version_torch": "2",
}


def measurement(*step_seconds: float, real: int = 128, repeats: int = 3) -> Measurement:
    return Measurement(
        step_seconds=step_seconds,
        step_real_tokens=(real,) * len(step_seconds),
        repeats=repeats,
        sequences_per_step=8,
        tokens_per_step=256,
        real_tokens_per_step=real,
        flops_per_step=1e9,
        split={"data": 0.001, "forward": 0.1, "backward": 0.2, "communication": 0.01, "optimizer": 0.02},
        memory_bytes=1 << 24,
        chosen={"attention": "plain"},
        startup_seconds=1.0,
        warmup_seconds=2.0,
        skipped_steps=0,
    )


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageResult:
    monkeypatch.chdir(tmp_path)
    trial = Trial(plan=plan_of(SMALL), contenders=("stacking", "hugging-face"))
    # The slow third repeat of each imitates another program that ran meanwhile.
    measured = {
        "stacking": measurement(0.1, 0.1, 0.1, 0.1, 0.9, 0.9),
        "hugging-face": measurement(0.3, 0.1, 0.2, 0.2, 0.9, 0.9),
    }
    return StageResult(trial, TrialResult(outcome="measured", measurements=measured, hardware=HARDWARE))


def test_rates_are_medians_over_repeats() -> None:
    rates = derive(measurement(0.1, 0.3, 0.1, 0.1, 0.9, 0.9), peak_tflops=0.01)
    assert rates.seconds_per_step == pytest.approx(0.2)
    assert rates.sequences_per_second == pytest.approx(40)
    assert rates.tokens_per_second == pytest.approx(1280)
    assert rates.real_tokens_per_second == pytest.approx(640)
    assert rates.spread == (pytest.approx(128 / 0.9), pytest.approx(1280))
    assert rates.pad_fraction == 0.5
    assert rates.tflops == pytest.approx(0.005)
    assert rates.mfu == pytest.approx(0.5)


def test_executed_flops_have_their_own_rate_and_share_where_they_are_counted() -> None:
    counted = measurement(0.1, repeats=1).model_copy(update={"executed_flops_per_step": 8e8})
    rates = derive(counted, peak_tflops=0.02)
    assert (rates.executed_tflops, rates.executed_share) == (pytest.approx(0.008), pytest.approx(0.4))
    assert rates.mfu == pytest.approx(0.5)
    uncounted = derive(measurement(0.1, repeats=1), peak_tflops=0.02)
    assert (uncounted.executed_tflops, uncounted.executed_share) == (None, None)


def test_without_a_peak_there_is_no_mfu() -> None:
    assert derive(measurement(0.1, repeats=1), None).mfu is None


def test_a_ratio_is_that_of_the_medians(stage: StageResult) -> None:
    assert ratios(stage.derived) == {"hugging-face": pytest.approx(2.0)}


def test_the_table_shows_every_contender_and_what_it_chose(stage: StageResult) -> None:
    text = block(stage) + footer([stage])
    assert "stacking : Hugging Face = 2.00 ×" in text
    assert "A CPU" in text
    assert "attention" in text
    assert "small · post_ln · 2 layers" in text


def test_the_json_has_measured_and_derived_numbers(stage: StageResult) -> None:
    content = json.loads(json.dumps(as_json([stage], "small")))
    assert (content["format"], content["kind"], content["hardware"]) == (1, "bench", HARDWARE)
    ours = content["stages"][0]["measurements"]["stacking"]
    assert ours["tokens_per_second"] == pytest.approx(2560)
    assert len(ours["step_seconds"]) == 6
    assert content["stages"][0]["ratio"] == {"hugging-face": pytest.approx(2.0)}
    assert content["stages"][0]["ranks"] == stage.trial.planned.ranks


def test_a_trial_without_a_measurement_is_shown_with_its_reason(stage: StageResult) -> None:
    full = StageResult(stage.trial, TrialResult(outcome="out-of-memory", message="no memory left"))
    assert "out-of-memory: no memory left" in block(full)
    assert as_json([full], "small")["stages"][0]["ratio"] == {}
