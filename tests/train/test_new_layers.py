"""Added layers with a learning rate of their own: under every ZeRO stage, and after going back to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stacking.run.metrics import read_metrics
from stacking.state.format import WEIGHTS, State, step_of
from stacking.state.layers import layer_of
from stacking.state.zero import ZeroCheckpoint
from tests.chain import stacking, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STAGES = [
    {"layers": 1, "steps": 2, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}},
    {"layers": 2, "steps": 4},
]
GROWTH = {"optimizer_state": "keep-old", "new_layers": {"alone_steps": 2, "rewarmup_steps": 1, "peak_factor": 1.5}}


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    found = {}
    for zero_stage in range(4):
        folder = tmp_path_factory.mktemp(f"zero{zero_stage}")
        recipe = write_recipe(
            folder,
            data,
            stages=STAGES,
            growth=GROWTH,
            model={"hidden": 32, "heads": 2, "intermediate": 64, "max_positions": 64, "variant": "pre_ln"},
            ds_config={"zero_optimization": {"stage": zero_stage}},
            checkpoint={"every_steps": 2, "keep": 5},
        )
        stacking("run", recipe, "--run-dir", folder / "run")
        found[zero_stage] = folder / "run"
    return found


@pytest.mark.parametrize("zero_stage", range(4))
def test_while_new_layers_train_alone_no_bit_of_the_others_changes(runs: dict[int, Path], zero_stage: int) -> None:
    stage = runs[zero_stage] / "1-L2"
    start, alone = State(stage / "start"), ZeroCheckpoint(stage / "checkpoints" / "global_step2")
    end = State(stage / "state")

    for name in start.names:
        same = np.array_equal(start.read(WEIGHTS, name), alone.read(WEIGHTS, name))
        assert same == (layer_of(name) != 1), name
        assert not np.array_equal(end.read(WEIGHTS, name), alone.read(WEIGHTS, name)), name


@pytest.mark.parametrize("zero_stage", range(1, 4))
def test_the_zero_stage_changes_nothing_but_rounding(runs: dict[int, Path], zero_stage: int) -> None:
    expected, found = (State(runs[stage] / "1-L2" / "state") for stage in (0, zero_stage))

    for name in expected.names:
        np.testing.assert_allclose(found.read(WEIGHTS, name), expected.read(WEIGHTS, name), rtol=0, atol=2e-5)
        assert step_of(found, name) == step_of(expected, name) == (4 if layer_of(name) == 1 else 6)


def test_both_rates_are_recorded(runs: dict[int, Path]) -> None:
    records = [r for r in read_metrics(runs[2] / "1-L2" / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["learning_rate"] for r in records] == pytest.approx([0, 0, 1e-3, 1e-3])
    assert [r["added_layers_learning_rate"] for r in records] == pytest.approx(
        [0, 1.5e-3, 1e-3 * (1 + 1 / 3), 1e-3 * (1 + 1 / 6)]
    )


@pytest.mark.parametrize("zero_stage", range(4))
def test_going_on_from_a_checkpoint_changes_no_bit(runs: dict[int, Path], zero_stage: int) -> None:
    run = runs[zero_stage]
    digest = State(run / "1-L2" / "state").digest

    stacking("resume", run, "--from-step", "2")

    assert State(run / "1-L2" / "state").digest == digest
