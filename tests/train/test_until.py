"""Stages that end when the held-out loss levels off: decided once, journalled, the same after a restart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stacking.planning.plan import Plan, load_plan
from stacking.run.checkpoints import checkpoints, latest, point_latest, step_of
from stacking.run.create import create_run
from stacking.run.decisions import decided_lengths, settled_plan
from stacking.run.folder import RunFolder
from stacking.run.metrics import read_metrics
from stacking.state.consolidate import consolidate
from tests.chain import stacking, train_stage, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

AUTOMATIC: dict[str, Any] = {
    "schedule": {"kind": "warmup-stable-decay", "peak": 1e-3, "warmup_steps": 1, "decay_share": 0.25},
    "stages": [
        {"layers": 1, "batch_sequences": 8, "micro_batch": 2, "until": {"plateau": 9, "at_most": 12, "evaluations": 3}},
        {"layers": 2, "steps": 4},
    ],
    "evaluation": {"every_steps": 2, "samples": 16},
    "checkpoint": {"every_steps": 4, "keep": 2},
    "log_every": 4,
}
"""A loss never falls by 9 nats per doubling, so the first stage ends with its third evaluation, after 6 updates."""


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("until")
    stacking("run", write_recipe(folder, data, **AUTOMATIC), "--run-dir", folder / "run")
    return RunFolder(folder / "run")


def of_training(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run.stage(stage).metrics) if record["kind"] == "train"]


def test_the_run_keeps_its_budget_and_its_samples(finished: RunFolder) -> None:
    first, second = of_training(finished, "0-L1"), of_training(finished, "1-L2")

    assert [record["step"] for record in first] == [4, 6]
    assert [record["step"] for record in second] == [4, 8, 10]
    assert second[-1]["global_step"] == 16 and second[-1]["samples"] == 16 * 8
    assert second[0]["samples"] == (6 + 4) * 8
    assert second[-1]["learning_rate"] == pytest.approx(1e-3 / 4)  # the decay still ends with the run


def test_the_decision_is_journalled_once(finished: RunFolder) -> None:
    (decided,) = [event for event in finished.journal.events() if event["event"] == "decided"]
    assert (decided["stage"], decided["steps"]) == (0, 6)


def test_a_finished_run_has_nothing_left_to_do(finished: RunFolder) -> None:
    before = len(of_training(finished, "1-L2"))
    stacking("resume", finished.path)
    assert len(of_training(finished, "1-L2")) == before
    assert "state       finished" in stacking("status", finished.path).stdout


def test_the_length_is_known_from_the_journal_or_from_the_files(finished: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, copy.path)
    plan = load_plan(copy.plan)

    shutil.rmtree(copy.stage("0-L1").path)
    assert decided_lengths(copy, plan) == {0: 6}

    shutil.copytree(finished.stage("0-L1").path, copy.stage("0-L1").path)
    copy.journal.path.unlink()
    shutil.rmtree(copy.stage("0-L1").checkpoints)
    assert decided_lengths(copy, plan) == {0: 6}

    shutil.rmtree(copy.stage("0-L1").state)
    assert decided_lengths(copy, plan) == {}
    assert settled_plan(copy) == plan


@pytest.fixture(scope="module")
def restarted(finished: RunFolder, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Plan]:
    """A stage that lost its last checkpoint before anything was journalled, and was trained again."""
    folder = tmp_path_factory.mktemp("restarted")
    run = RunFolder(folder / "run")
    plan = create_run(str(write_recipe(folder, data, **AUTOMATIC)), run)
    stage = run.stage("0-L1")
    shutil.copytree(finished.stage("0-L1").path, stage.path, ignore=shutil.ignore_patterns("state"))
    assert [step_of(checkpoint) for checkpoint in checkpoints(stage.checkpoints)] == [4, 6]
    shutil.rmtree(checkpoints(stage.checkpoints)[-1])
    point_latest(stage.checkpoints, checkpoints(stage.checkpoints)[-1])
    assert decided_lengths(run, plan) == {}
    train_stage(run, plan, 0)
    return run, plan


def test_a_restart_makes_the_same_decision(
    finished: RunFolder, restarted: tuple[RunFolder, Plan], tmp_path: Path
) -> None:
    run, plan = restarted
    assert decided_lengths(run, plan) == {0: 6}
    newest = latest(run.stage("0-L1").checkpoints)
    assert newest is not None
    again = consolidate(newest, tmp_path / "again")
    assert again.digest == consolidate(finished.stage("0-L1").checkpoints / "global_step6", tmp_path / "once").digest


def test_a_stage_that_has_ended_is_not_trained_further(restarted: tuple[RunFolder, Plan]) -> None:
    """Its ranks start again if their controller was killed before it saw them end."""
    run, plan = restarted
    before = run.stage("0-L1").metrics.read_bytes()
    train_stage(run, plan, 0)
    assert run.stage("0-L1").metrics.read_bytes() == before
