"""`stacking export RUN --step N` exports a checkpoint of a run, and leaves the run unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from stacking.cli.states import export
from stacking.errors import UserError
from stacking.huggingface.importing import import_hugging_face
from stacking.model.size import parameter_shapes
from stacking.planning.plan import Plan, write_plan
from stacking.run.checkpoints import tag
from stacking.run.folder import RunFolder
from stacking.run.midway import export_checkpoint
from stacking.state.format import WEIGHTS, State
from stacking.storage.files import verify_folder
from tests.huggingface.hub import running, use
from tests.small_recipe import SMALL, plan_of
from tests.state.checkpoints import write_checkpoint


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return plan_of(SMALL)


@pytest.fixture
def run(tmp_path: Path, plan: Plan) -> RunFolder:
    """Stage 0 has the checkpoints of 5 and 10 updates, and stage 1 that of 4; their files are DeepSpeed's."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    write_plan(run.plan, plan)
    for stage, steps in zip(plan.stages, ((5, 10), (4,)), strict=True):
        shapes = parameter_shapes(plan.model.with_layers(stage.layers))
        for step in steps:
            write_checkpoint(run.stage(stage.name).checkpoints / tag(step), (shapes,), step=step)
    return run


def test_the_training_stage_is_exported_and_the_run_is_unchanged(run: RunFolder, plan: Plan, tmp_path: Path) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    out = tmp_path / "out"
    assert export_checkpoint(run.path, 4, out) == "1-L4-step-4"
    assert sorted(path for path in tmp_path.rglob("*") if out not in path.parents and path != out) == before
    report = import_hugging_face(out, tmp_path / "back")
    assert report.config == plan.model.with_layers(plan.stages[1].layers)
    name = next(iter(parameter_shapes(report.config)))
    assert State(tmp_path / "back").read(WEIGHTS, name, 0, 3).tolist() == [100.0, 101.0, 102.0]


def test_an_upload_gets_its_own_branch(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as hub:
        use(hub, tmp_path, monkeypatch)
        arguments = [str(run.path), "--step", "4", "--out", str(tmp_path / "out"), "--push-to-hub", "me/my-bert"]
        CliRunner().invoke(export, arguments, standalone_mode=False, catch_exceptions=False)
    assert hub.models["me/my-bert"]["main"] == {}
    uploaded = hub.write("me/my-bert", "1-L4-step-4", tmp_path / "uploaded")
    assert verify_folder(uploaded) == verify_folder(tmp_path / "out")


def test_an_unknown_step_is_refused_with_the_existing_ones(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--step 10: stage 1-L4 has no such checkpoint; give one of 4"):
        export_checkpoint(run.path, 10, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_a_step_for_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory .*; omit --step to export a state"):
        arguments = [str(tmp_path), "--step", "3", "--out", str(tmp_path / "out")]
        CliRunner().invoke(export, arguments, standalone_mode=False, catch_exceptions=False)
