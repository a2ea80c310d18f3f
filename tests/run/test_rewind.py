"""`stacking resume --from-step` goes back to an earlier checkpoint, and a diverged run is not resumed without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stacking.errors import DamagedFile, Diverged, UserError
from stacking.planning.plan import Plan
from stacking.run.checkpoints import checkpoints, latest, point_latest, tag
from stacking.run.folder import RunFolder
from stacking.run.metrics import MetricsWriter, read_metrics
from stacking.run.rewind import refuse_repetition, rewind
from stacking.storage.files import new_folder
from tests.small_recipe import SMALL, plan_of


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return plan_of(SMALL)


@pytest.fixture
def run(tmp_path: Path, plan: Plan) -> RunFolder:
    """Stage 0 and everything that follows from it is done; stage 1 has the checkpoints of 4 and 8 of its 10 updates."""
    run = RunFolder(tmp_path / "run")
    train(run, plan, 0, 5, 10)
    for made in (run.stage("0-L2").state, run.stage("1-L4").start):
        with new_folder(made) as folder:
            (folder / "weights").write_text("w")
    train(run, plan, 1, 4, 8)
    return run


def train(run: RunFolder, plan: Plan, stage: int, *steps: int) -> None:
    folder = run.stage(plan.stages[stage].name)
    for step in steps:
        with new_folder(folder.checkpoints / tag(step)) as checkpoint:
            (checkpoint / "model.pt").write_text(f"{stage} {step}")
        point_latest(folder.checkpoints, folder.checkpoints / tag(step))
    with MetricsWriter(folder.metrics) as metrics:
        for step in range(1, steps[-1] + 1):
            metrics.append({"kind": "train", "stage": stage, "step": step})


def test_later_checkpoints_are_set_aside_and_later_metrics_dropped(run: RunFolder, plan: Plan) -> None:
    assert rewind(run, plan, 4) == "1-L4"
    folder = run.stage("1-L4")
    assert [c.name for c in checkpoints(folder.checkpoints)] == ["global_step4"]
    assert latest(folder.checkpoints) == folder.checkpoints / "global_step4"
    assert (folder.checkpoints / "global_step8.superseded" / "model.pt").read_text() == "1 8"
    assert [record["step"] for record in read_metrics(folder.metrics)] == [1, 2, 3, 4]
    event = run.journal.events()[-1]
    assert (event["event"], event["phase"], event["stage"], event["step"]) == ("rewound", "train", 1, 4)


def test_step_0_is_the_start_of_the_stage(run: RunFolder, plan: Plan) -> None:
    rewind(run, plan, 0)
    folder = run.stage("1-L4")
    assert not checkpoints(folder.checkpoints) and latest(folder.checkpoints) is None
    assert folder.start.is_dir() and not read_metrics(folder.metrics)


def test_outputs_made_from_later_checkpoints_are_set_aside_too(run: RunFolder, plan: Plan) -> None:
    shutil.rmtree(run.stage("1-L4").checkpoints)
    run.stage("1-L4").metrics.unlink()
    rewind(run, plan, 5)
    assert not run.stage("0-L2").state.exists() and not run.stage("1-L4").start.exists()
    assert (run.path / "0-L2" / "state.superseded").is_dir()


def test_a_step_without_a_checkpoint_is_refused_with_the_existing_ones(run: RunFolder, plan: Plan) -> None:
    with pytest.raises(UserError, match=r"--from-step 5: 1-L4 has no checkpoint after update 5; give one of 0, 4, 8"):
        rewind(run, plan, 5)


def test_a_damaged_checkpoint_is_refused_and_nothing_moves(run: RunFolder, plan: Plan) -> None:
    folder = run.stage("1-L4").checkpoints
    (folder / "global_step4" / "model.pt").write_text("torn")
    with pytest.raises(DamagedFile, match="global_step4"):
        rewind(run, plan, 4)
    assert latest(folder) == folder / "global_step8"


def test_a_run_that_has_not_trained_cannot_be_rewound(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(UserError, match="has not started training"):
        rewind(RunFolder(tmp_path / "new"), plan, 0)


def test_a_diverged_run_is_not_repeated_until_it_is_rewound(run: RunFolder, plan: Plan) -> None:
    refuse_repetition(run)
    run.journal.append("failed", phase="train", stage=1, message="1-L4: the loss is nan", diverged=True)
    run.journal.append("resumed")
    with pytest.raises(Diverged, match="not resumed: 1-L4: the loss is nan"):
        refuse_repetition(run)
    rewind(run, plan, 4)
    refuse_repetition(run)


def test_other_failures_can_be_resumed(run: RunFolder) -> None:
    run.journal.append("failed", phase="train", stage=1, message="rank 1 was killed")
    refuse_repetition(run)
