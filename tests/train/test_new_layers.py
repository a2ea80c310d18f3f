"""Added layers with a learning rate of their own: under every ZeRO stage, and after going back to a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from stacking.growth.apply import grow
from stacking.run.checkpoints import checkpoints, point_latest
from stacking.run.create import create_run
from stacking.run.folder import RunFolder, StageFolder
from stacking.run.metrics import read_metrics
from stacking.state.consolidate import consolidate
from stacking.state.format import WEIGHTS, State, step_of
from stacking.state.layers import layer_of
from stacking.state.zero import ZeroCheckpoint
from tests.chain import write_recipe
from tests.states import random_weights, write_state
from tests.train.ranks import train_first_stages

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

torch = pytest.importorskip("torch")
from stacking.model.config import ModelConfig  # noqa: E402

SHALLOW = ModelConfig(
    variant="pre_ln", layers=1, hidden=32, heads=2, intermediate=64, vocabulary=1000, max_positions=64
)
STAGE = {"layers": 2, "steps": 4, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}}
GROWTH = {"optimizer_state": "keep-old", "new_layers": {"alone_steps": 2, "rewarmup_steps": 1, "peak_factor": 1.5}}
ZERO_STAGES = range(4)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, StageFolder]:
    """One layer after seven updates grows to two, which train for four updates; then for the last two once more."""
    found, begun = {}, []
    for zero_stage in ZERO_STAGES:
        folder = tmp_path_factory.mktemp(f"zero{zero_stage}")
        state = write_state(folder / "shallow", SHALLOW, random_weights(SHALLOW))
        changes = {"start": str(state), "stages": [STAGE], "growth": GROWTH, "model": {"variant": "pre_ln"}}
        config = {"zero_optimization": {"stage": zero_stage}}
        recipe = write_recipe(folder, data, **changes, ds_config=config, checkpoint={"every_steps": 2, "keep": 5})
        run = RunFolder(folder / "run")
        plan = create_run(str(recipe), run)
        stage = found[zero_stage] = run.stage(plan.stages[0].name)
        grow(state, stage.start, 2, "stack", "keep-old", share=True)
        begun.append(run.path)
    train_first_stages(2, begun)
    for stage in found.values():
        shutil.copytree(stage.checkpoints, stage.path.parent.parent / "straight")
        shutil.rmtree(checkpoints(stage.checkpoints)[-1])
        point_latest(stage.checkpoints, checkpoints(stage.checkpoints)[-1])
    train_first_stages(2, begun)
    return found


def states(stage: StageFolder) -> tuple[State, ZeroCheckpoint, ZeroCheckpoint]:
    """At the beginning, after the new layer has trained alone, and at the end."""
    alone, end = (ZeroCheckpoint(stage.checkpoints / f"global_step{step}") for step in (2, 4))
    return State(stage.start), alone, end


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_while_new_layers_train_alone_no_bit_of_the_others_changes(
    runs: dict[int, StageFolder], zero_stage: int
) -> None:
    start, alone, end = states(runs[zero_stage])

    for name in start.names:
        same = np.array_equal(start.read(WEIGHTS, name), alone.read(WEIGHTS, name))
        assert same == (layer_of(name) != 1), name
        assert not np.array_equal(end.read(WEIGHTS, name), alone.read(WEIGHTS, name)), name


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_the_zero_stage_changes_nothing_but_rounding(runs: dict[int, StageFolder], zero_stage: int) -> None:
    expected, found = states(runs[0])[2], states(runs[zero_stage])[2]

    for name in expected.names:
        np.testing.assert_allclose(found.read(WEIGHTS, name), expected.read(WEIGHTS, name), rtol=0, atol=2e-5)
        assert step_of(found, name) == (4 if layer_of(name) == 1 else 11)


def test_both_rates_are_recorded(runs: dict[int, StageFolder]) -> None:
    records = [record for record in read_metrics(runs[2].metrics) if record["kind"] == "train"]
    assert [record["learning_rate"] for record in records] == pytest.approx([0, 0, 1e-3, 1e-3])
    assert [record["added_layers_learning_rate"] for record in records] == pytest.approx(
        [0, 1.5e-3, 1e-3 * (1 + 1 / 3), 1e-3 * (1 + 1 / 6)]
    )


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_a_restart_changes_no_bit(runs: dict[int, StageFolder], zero_stage: int, tmp_path: Path) -> None:
    stage = runs[zero_stage]
    straight = consolidate(stage.path.parent.parent / "straight" / "global_step4", tmp_path / "straight")
    restarted = consolidate(stage.checkpoints / "global_step4", tmp_path / "restarted")

    assert restarted.digest == straight.digest and restarted.parameter_steps == straight.parameter_steps
