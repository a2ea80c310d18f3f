"""Which arms may be compared, and how those that may not are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stacking.compare.arm import Arm, check_arms, model_differences
from stacking.compare.tuning import rate_overrides
from stacking.config.recipe import load_recipe
from stacking.errors import UserError
from stacking.planning.plan import Plan
from tests.small_recipe import plan_of

SCRATCH = """\
model: {hidden: 64, heads: 2, max_positions: 64, dropout: 0.0}
data: {sequence_length: 32}
schedule: {kind: warmup-stable-decay, peak: 2e-3, warmup_steps: 4, decay_share: 0.2}
launch: {ranks: 1}
stages:
  - {layers: 4, steps: 40, batch_sequences: 8}
"""
LATE = SCRATCH.replace("- {layers: 4, steps: 40, ", "- {layers: 2, steps: 30, ") + "  - {layers: 4, steps: 10}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def arm(name: str, plan: Plan, held_out: int = 10) -> Arm:
    return Arm(name=name, source=f"{name}.yaml", data=Path("data"), overrides=(), plan=plan, held_out=held_out)


def complaint(*texts: str, **changes: Any) -> str:
    arms = [arm(f"arm{i}", plan_of(text)) for i, text in enumerate(texts)]
    with pytest.raises(UserError) as caught:
        check_arms([replace(a, **changes) for a in arms])
    return str(caught.value)


def test_arms_that_differ_in_their_schedule_alone_are_fair() -> None:
    check_arms([arm("scratch", plan_of(SCRATCH)), arm("late", plan_of(LATE))])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("dropout: 0.0", "dropout: 0.1", "arm1.yaml: model.dropout: is 0.1, but 0.0 in the baseline arm0.yaml"),
        ("- {layers: 4, steps: 10}", "- {layers: 8, steps: 10}", "arm1.yaml: stages[-1].layers: is 8, but 4"),
        ("sequence_length: 32", "sequence_length: 64", "arm1.yaml: data.sequence_length: is 64, but 32"),
        ("launch:", "evaluation: {samples: 7}\nlaunch:", "arm1.yaml: evaluation.samples: is 7, but 2048"),
        ("launch:", "optimizer: {clip: 0.5}\nlaunch:", "arm1.yaml: optimizer.clip: is 0.5, but 1.0"),
        ("ranks: 1", "ranks: 2", "arm1.yaml: launch.ranks: is 2, but 1"),
        ("decay_share: 0.2", "decay_share: 0", "arm1.yaml: ends at a learning rate of 0.002, 100% of its peak"),
    ],
)
def test_other_differences_are_refused_by_key(old: str, new: str, expected: str) -> None:
    assert expected in complaint(SCRATCH, LATE.replace(old, new))


def test_other_models_are_compared_on_request() -> None:
    scratch = arm("scratch", plan_of(SCRATCH))
    macaron = arm("macaron", plan_of(SCRATCH.replace("hidden: 64,", "hidden: 64, variant: macaron,")))
    with pytest.raises(UserError, match=r"model\.variant: is macaron, but post_ln .*, or --any-model"):
        check_arms([scratch, macaron])
    check_arms([scratch, macaron], any_model=True)
    assert ("model.variant", "post_ln", "macaron") in model_differences(scratch, macaron)
    shorter = arm("shorter", plan_of(SCRATCH.replace("sequence_length: 32", "sequence_length: 16")))
    with pytest.raises(UserError, match=r"data\.sequence_length: is 16.*give every arm the same$"):
        check_arms([scratch, shorter], any_model=True)


def test_a_baseline_must_not_grow() -> None:
    assert "arm0.yaml: stages: grows (2 → 4 layers)" in complaint(LATE, LATE)


def test_arms_need_names_of_their_own() -> None:
    assert "is the second arm called same" in complaint(SCRATCH, LATE, name="same")


def test_a_comparison_needs_held_out_samples() -> None:
    assert "data: has no held-out samples" in complaint(SCRATCH, LATE, held_out=0)


@pytest.mark.parametrize(
    "schedule",
    [
        "schedule: {kind: warmup-stable-decay, peak: 2e-3, warmup_steps: 4, decay_share: 0.2}\n",
        "schedule: {kind: WarmupCosineLR, peak: 2e-3, warmup_num_steps: 4}\n",
        "schedule: {kind: OneCycle, cycle_min_lr: 1e-4, cycle_max_lr: 2e-3, cycle_first_step_size: 20}\n",
    ],
)
def test_changing_a_learning_rate_scales_its_whole_schedule(schedule: str) -> None:
    text = LATE.replace(
        "schedule: {kind: warmup-stable-decay, peak: 2e-3, warmup_steps: 4, decay_share: 0.2}\n", schedule
    )
    before = plan_of(text)
    changes = rate_overrides(load_recipe("recipe.yaml"), 2e-3, 5e-4)
    for old, new in zip(before.stages, plan_of(text, overrides=changes).stages, strict=True):
        assert [value for _, value in new.learning_rate] == pytest.approx([value / 4 for _, value in old.learning_rate])


def test_the_learning_rates_of_all_stages_scale_together() -> None:
    text = (
        SCRATCH.replace("schedule: {kind: warmup-stable-decay, peak: 2e-3, warmup_steps: 4, decay_share: 0.2}\n", "")
        .replace("batch_sequences: 8", "batch_sequences: 8, learning_rate: {peak: 8e-4, end: 4e-4, warmup_steps: 4}")
        .replace("launch:", "launch:")
    ) + "  - {layers: 8, steps: 10, learning_rate: {end: 0}}\n"
    before = plan_of(text)
    changes = rate_overrides(load_recipe("recipe.yaml"), 8e-4, 1e-3)
    assert "stages[0].learning_rate.peak=0.001" in changes
    for old, new in zip(before.stages, plan_of(text, overrides=changes).stages, strict=True):
        assert [value for _, value in new.learning_rate] == pytest.approx(
            [value * 1.25 for _, value in old.learning_rate]
        )
