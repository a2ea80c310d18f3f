"""Ranks that begin ahead of the state that they start from train identically to those that load it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.run.create import create_run
from stacking.run.folder import RunFolder
from stacking.state.format import State
from tests.chain import stacking, write_recipe


@pytest.mark.slow
@pytest.mark.distributed
def test_stages_that_begin_ahead_train_identically(data: Path, tmp_path: Path) -> None:
    """One run in a single command; the other in several commands, which start nothing early.

    One stage grows and keeps Adam's state of the old layers; one continues with the same layers.
    """
    stages = [
        {"layers": 1, "steps": 2, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}},
        {"layers": 2, "steps": 2, "growth": {"optimizer_state": "keep-old"}},
        {"layers": 2, "steps": 2},
    ]
    recipe = write_recipe(tmp_path, data, stages=stages)
    stacking("run", recipe, "--run-dir", tmp_path / "together")
    create_run(str(recipe), RunFolder(tmp_path / "apart"))
    for labels in ("train:0", "consolidate:0,grow:1", "train:1", "consolidate:1", "train:2,consolidate:2"):
        stacking("resume", tmp_path / "apart", "--only", labels)
    states = [State(RunFolder(tmp_path / name).stage("2-L2").state) for name in ("together", "apart")]
    assert states[0].digest == states[1].digest
