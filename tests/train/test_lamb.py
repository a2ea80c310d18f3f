"""LAMB on two ranks: moments and step counts through a growth, a restart, and a stand-in for apex' optimizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from stacking.planning.plan import load_plan
from stacking.run.checkpoints import checkpoints, point_latest
from stacking.run.create import create_run
from stacking.run.folder import RunFolder
from stacking.state.format import MOMENTS, WEIGHTS, State, step_of
from stacking.state.layers import layer_of
from stacking.state.zero import ZeroCheckpoint
from tests.chain import train_stage, write_recipe
from tests.train.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 4
WORKERS = {
    "torch": ("fp32", "tests.train.variants_worker"),
    "torch in bf16": ("bf16", "tests.train.variants_worker"),
    "apex": ("fp32", "tests.train.lamb_worker"),
    "apex in bf16": ("bf16", "tests.train.lamb_worker"),
}


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """One layer that grows to two, which keep the old layer's moments."""
    found = {}
    for name, (precision, _) in WORKERS.items():
        folder = tmp_path_factory.mktemp("lamb")
        recipe = write_recipe(
            folder,
            data,
            optimizer={"type": "lamb"},
            ds_config=None,
            precision=precision,
            model={
                "variant": "pre_ln",
                "hidden": 32,
                "heads": 2,
                "intermediate": 64,
                "dropout": 0,
                "attention_dropout": 0,
            },
            stages=[
                {"layers": 1, "steps": STEPS, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-2}},
                {"layers": 2, "steps": STEPS},
            ],
            growth={"operator": "stack", "optimizer_state": "keep-old"},
        )
        found[name] = RunFolder(folder / "run")
        create_run(str(recipe), found[name])
    for chosen in sorted({worker for _, worker in WORKERS.values()}):
        run_ranks(2, chosen, [[found[name].path for name, (_, w) in WORKERS.items() if w == chosen]] * 2, timeout=600)
    return found


@pytest.mark.parametrize("name", WORKERS)
def test_old_layers_keep_moments_and_steps_and_the_added_one_starts_anew(runs: dict[str, RunFolder], name: str) -> None:
    shallow, start, end = (State(runs[name].path / part) for part in ("0-L1/state", "1-L2/start", "1-L2/state"))
    for parameter in end.names:
        is_new = layer_of(parameter) == 1
        assert step_of(end, parameter) == STEPS * (1 if is_new else 2), parameter
        for kind in MOMENTS:
            expected = 0 if is_new else shallow.read(kind, parameter)
            assert np.array_equal(start.read(kind, parameter), expected + np.zeros_like(start.read(kind, parameter)))
            assert end.read(kind, parameter).any() or "segments" in parameter


@pytest.mark.parametrize("name", WORKERS)
def test_every_matrix_moves_in_proportion_to_its_norm(runs: dict[str, RunFolder], name: str) -> None:
    start, end = State(runs[name].path / "1-L2/start"), State(runs[name].path / "1-L2/state")
    for parameter in ("layers.0.attention.qkv.weight", "layers.1.feed_forward.up.weight"):
        before, after = start.read(WEIGHTS, parameter), end.read(WEIGHTS, parameter)
        share = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert 0 < share <= STEPS * 1e-2 * 1.05


def test_apex_trains_like_torch(runs: dict[str, RunFolder]) -> None:
    expected, found = (State(runs[name].path / "1-L2/state") for name in ("torch", "apex"))
    for parameter in expected.names:
        np.testing.assert_allclose(
            found.read(WEIGHTS, parameter), expected.read(WEIGHTS, parameter), rtol=0, atol=2e-4, err_msg=parameter
        )


def test_a_restart_changes_no_bit(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    run = runs["torch"]
    plan, stage = load_plan(run.plan), run.stage("1-L2")
    last = checkpoints(stage.checkpoints)[-1]
    shutil.copytree(last, tmp_path / last.name)
    shutil.rmtree(last)
    point_latest(stage.checkpoints, checkpoints(stage.checkpoints)[-1])
    train_stage(run, plan, 1)
    straight, restarted = ZeroCheckpoint(tmp_path / last.name), ZeroCheckpoint(last)
    for parameter in straight.names:
        for kind in (WEIGHTS, *MOMENTS):
            assert np.array_equal(straight.read(kind, parameter), restarted.read(kind, parameter))
