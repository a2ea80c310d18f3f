"""A comparison's length: all counts of updates and tokens scale together, so that a schedule keeps its shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.compare.lengths import length_overrides
from stacking.config.recipe import load_recipe
from tests.compare.test_arm import LATE

GROWN_IN_DETAIL = """\
stages:
  - {layers: 2, tokens: 4000, batch_sequences: 8, learning_rate: {peak: 1e-3, warmup_steps: 10}}
  - {layers: 4, steps: 60, growth: {new_layers: {alone_steps: 20, rewarmup_steps: 30}}}
growth: {operator: trial, trial: {steps: 5}}
"""


def changes(text: str, factor: float, tmp_path: Path) -> list[str]:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return length_overrides(load_recipe(file), factor)


def test_stages_shrink_in_proportion_and_the_warm_up_is_kept(tmp_path: Path) -> None:
    assert changes(LATE, 0.5, tmp_path) == ["stages[0].steps=15", "stages[1].steps=5"]


def test_tokens_new_layers_and_trials_count_too(tmp_path: Path) -> None:
    assert changes(GROWN_IN_DETAIL, 2, tmp_path) == [
        "growth.trial.steps=10",
        "stages[0].tokens=8000",
        "stages[1].steps=120",
        "stages[1].growth.new_layers.alone_steps=40",
        "stages[1].growth.new_layers.rewarmup_steps=60",
    ]


def test_a_stage_that_ends_on_a_plateau_may_take_longer(tmp_path: Path) -> None:
    text = LATE.replace("{layers: 2, steps: 30,", "{layers: 2, until: {plateau: 0.1, at_most: 30},")
    assert "stages[0].until.at_most=90" in changes(text, 3, tmp_path)


@pytest.mark.parametrize(
    ("schedule", "change"),
    [
        ("WarmupDecayLR, warmup_num_steps: 8, total_num_steps: 40", "schedule.total_num_steps=10"),
        ("OneCycle, cycle_min_lr: 0, cycle_max_lr: 1", "schedule.cycle_first_step_size=500"),
    ],
)
def test_deepspeeds_schedules_stretch(schedule: str, change: str, tmp_path: Path) -> None:
    old = "schedule: {kind: warmup-stable-decay, peak: 2e-3, warmup_steps: 4, decay_share: 0.2}"
    assert changes(LATE.replace(old, f"schedule: {{kind: {schedule}}}"), 0.25, tmp_path)[0] == change


def test_nothing_becomes_shorter_than_one_update(tmp_path: Path) -> None:
    assert [change.partition("=")[2] for change in changes(LATE, 1e-3, tmp_path)] == ["1", "1"]
