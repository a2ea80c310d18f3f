"""The baseline of a stacked run: as many steps as fit in the same time, annealed at their own end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stacking.errors import DamagedFile, UserError
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import write_plan
from stacking.report.baseline import baseline_recipe, baseline_steps
from stacking.report.run import Run, read_run
from stacking.storage.files import write_sealed_text
from tests.report.synthetic import SyntheticRun
from tests.small_recipe import MACHINE, MANIFEST, SAMPLES, plan_of

WSD = """\
name: stacked
model: {hidden: 64, heads: 2, max_positions: 64}
data: {sequence_length: 32}
schedule: {kind: warmup-stable-decay, peak: 2e-3, warmup_steps: 10, decay_share: 0.6}
stages: [{layers: 2, steps: 100, batch_sequences: 8}, {layers: 12, steps: 100}]
"""
STAGES = """\
name: stacked
model: {hidden: 64, heads: 2, max_positions: 64}
data: {sequence_length: 32}
ds_config: {zero_optimization: {stage: 1}, stacking: {activation_checkpointing: true}}
stages:
  - {layers: 2, steps: 100, batch_sequences: 8, learning_rate: {peak: 1e-3, warmup_steps: 20}}
  - {layers: 12, steps: 100, batch_sequences: 16, learning_rate: {end: 1e-5}}
"""


def finished(folder: Path, recipe: str, **changes: Any) -> Run:
    """A synthetic finished run of 2 and 12 layers, with the plan of ``recipe``."""
    plan = plan_of(recipe).model_copy(update=changes)
    run = SyntheticRun(folder, layers=(2, 12), steps=(100, 100)).whole()
    write_plan(run.path / "plan.json", plan)
    write_sealed_text(run.path / "recipe.yaml", Path("recipe.yaml").read_text())
    return read_run(run.path)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_trains_as_many_steps_as_fit_in_the_same_time(tmp_path: Path) -> None:
    # 154.5 s in all, including one start-up of 5 s; 1.2 s per update of 12 layers.
    assert baseline_steps(finished(tmp_path / "run", WSD)) == round((154.5 - 5.0) / 1.2)


def test_it_is_only_the_deepest_model_with_the_same_schedule_over_its_own_steps(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", WSD)
    plan = make_plan(baseline_recipe(run), MANIFEST, SAMPLES, MACHINE)
    (stage,), steps = plan.stages, baseline_steps(run)
    assert (stage.layers, stage.steps, stage.growth) == (12, steps, None)
    assert stage.learning_rate == ((0, 0.0), (10, 2e-3), (steps - round(0.6 * steps), 2e-3), (steps, 0.0))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("{kind: WarmupLR, warmup_max_lr: 1e-3, warmup_num_steps: 10}", {"warmup_num_steps": 10}),
        (
            "{kind: WarmupDecayLR, warmup_max_lr: 1e-3, warmup_num_steps: 150, total_num_steps: 200}",
            {"warmup_num_steps": 62, "total_num_steps": 125},
        ),
        ("{kind: WarmupCosineLR, peak: 1e-3, warmup_num_steps: 10}", {"warmup_num_steps": 10, "total_num_steps": None}),
        (
            "{kind: OneCycle, cycle_min_lr: 1e-5, cycle_max_lr: 1e-3, cycle_first_step_size: 80}",
            {"cycle_first_step_size": 50, "cycle_second_step_size": None},
        ),
    ],
)
def test_deepspeeds_schedules_end_with_the_baseline(tmp_path: Path, schedule: str, expected: dict[str, Any]) -> None:
    text = WSD.replace("{kind: warmup-stable-decay, peak: 2e-3, warmup_steps: 10, decay_share: 0.6}", schedule)
    run = finished(tmp_path / "run", text)
    assert baseline_steps(run) == 125
    made = baseline_recipe(run)
    assert made.schedule.model_dump().items() >= expected.items()
    (stage,) = make_plan(made, MANIFEST, SAMPLES, MACHINE).stages
    assert (stage.layers, stage.steps) == (12, 125)


def test_stage_by_stage_schedules_become_one_rise_and_one_fall(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", STAGES)
    (stage,) = make_plan(baseline_recipe(run), MANIFEST, SAMPLES, MACHINE).stages
    assert stage.learning_rate == ((0, 0.0), (20, 1e-3), (stage.steps, 1e-5))


@pytest.mark.parametrize("recipe", [WSD, STAGES, WSD + "optimizer: {type: lamb, eps: 1e-5}\n"])
def test_everything_else_is_as_in_the_last_stage(tmp_path: Path, recipe: str) -> None:
    run = finished(tmp_path / "run", recipe)
    last, (stage,) = run.plan.stages[-1], make_plan(baseline_recipe(run), MANIFEST, SAMPLES, MACHINE).stages
    for what in ("global_batch", "micro_batch", "accumulation", "ranks", "precision", "kernels"):
        assert getattr(stage, what) == getattr(last, what)
    assert stage.ds_config["optimizer"]["params"].pop("lr") == max(rate for _, rate in stage.learning_rate)
    assert last.ds_config["optimizer"]["params"].pop("lr") == max(rate for _, rate in last.learning_rate)
    assert stage.ds_config == last.ds_config


def test_an_unfinished_run_has_no_baseline_yet(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", layers=(2, 12), steps=(100, 100))
    run.train(0)
    run.transition(0)
    run.train(1, last=50)
    with pytest.raises(UserError, match="has not finished training; run `stacking resume"):
        baseline_steps(read_run(run.path))


def test_a_diverged_run_is_not_advised_to_finish(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", layers=(2, 12), steps=(100, 100))
    run.train(0, last=40)
    run.event("failed", phase="train", stage=0, attempt=1, message="not finite", diverged=True)
    with pytest.raises(UserError, match="has diverged; give a run that has finished"):
        baseline_steps(read_run(run.path))


def test_a_run_that_did_not_start_from_random_weights_has_no_baseline(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", WSD, start="/models/bert", start_format="huggingface")
    with pytest.raises(UserError, match="started from /models/bert; compare runs that start from random weights"):
        baseline_recipe(run)


def test_a_recipe_altered_after_the_run_began_cannot_give_a_baseline(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", WSD)
    text = run.folder.recipe.read_text()
    run.folder.recipe.write_text(text.replace("hidden: 64", "hidden: 65"))
    with pytest.raises(DamagedFile, match=r"run/recipe\.yaml: does not match its seal"):
        baseline_recipe(run)
