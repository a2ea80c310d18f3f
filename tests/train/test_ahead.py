"""A stage that begins before its state exists sees that state in the last checkpoint of the stage before."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from stacking.errors import Preempted
from stacking.growth.apply import grow
from stacking.growth.operators import OPTIMIZER_STATES
from stacking.planning.growth import PlannedGrowth
from stacking.run.journal import Journal
from stacking.state.consolidate import consolidate
from stacking.state.format import BUFFERS, MOMENTS, WEIGHTS, State, TrainingState, step_of
from stacking.train.ahead import await_end, await_state, grown_ahead
from tests.state.checkpoints import write_checkpoint

LAYERS = [
    {"tokens.weight": (5, 3), "layers.0.up.weight": (4, 3), "layers.1.up.weight": (4, 3)},
    {"layers.0.up.bias": (4,), "layers.1.up.bias": (4,)},
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", LAYERS)


def stage(layers: int, growth: PlannedGrowth | None = None) -> Any:
    return SimpleNamespace(name="1-L4", layers=layers, growth=growth)


def assert_same(found: TrainingState, expected: State) -> None:
    assert set(found.names) == set(expected.names) and found.buffers == expected.buffers
    assert found.moments == expected.moments and found.model == expected.model and found.progress == expected.progress
    for name in expected.names:
        assert found.shape(name) == expected.shape(name) and step_of(found, name) == step_of(expected, name)
        for kind in (WEIGHTS, *MOMENTS) if expected.moments else (WEIGHTS,):
            np.testing.assert_array_equal(found.read(kind, name), expected.read(kind, name))
    for name in expected.buffers:
        np.testing.assert_array_equal(found.read(BUFFERS, name), expected.read(BUFFERS, name))


@pytest.mark.parametrize("rule", OPTIMIZER_STATES)
def test_a_checkpoint_is_seen_as_the_state_that_it_grows_into(rule: str, checkpoint: Path, tmp_path: Path) -> None:
    grown = grow(consolidate(checkpoint, tmp_path / "state"), tmp_path / "start", 4, "stack", rule, share=True)
    growth = PlannedGrowth(
        operator="stack", optimizer_state=rule, sources=tuple(f"{layer % 2} copy" for layer in range(4))
    )
    assert_same(grown_ahead(checkpoint, stage(4, growth)), grown)


def test_a_stage_without_a_growth_sees_the_state_itself(checkpoint: Path, tmp_path: Path) -> None:
    assert_same(grown_ahead(checkpoint, stage(2)), consolidate(checkpoint, tmp_path / "state"))


@pytest.fixture
def agreement(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A single rank, which `stop` asks to stop."""
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    alone = SimpleNamespace(stop=False)
    alone.exchange = lambda *counts: (list(counts), alone.stop)
    return alone


def test_the_first_checkpoint_waits_for_the_state(agreement: Any, tmp_path: Path) -> None:
    later = threading.Timer(0.2, (tmp_path / "start").mkdir)
    later.start()
    began = time.monotonic()
    await_state(tmp_path / "start", stage(4), agreement)
    assert (tmp_path / "start").exists() and time.monotonic() - began >= 0.2


def test_a_rank_that_is_asked_to_stop_does_not_wait_for_the_state(agreement: Any, tmp_path: Path) -> None:
    agreement.stop = True
    with pytest.raises(Preempted, match="1-L4 stopped before its first checkpoint"):
        await_state(tmp_path / "start", stage(4), agreement)


def test_ranks_wait_for_the_end_of_the_right_attempt(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    finished = {"phase": "train", "stage": 0, "world_size": 2, "seconds": 1.0}
    journal.append("created")
    journal.append("finished", **finished, attempt=1)  # its checkpoint was damaged since
    journal.append("failed", **finished, attempt=2)
    assert not journal.has_finished("train", 0, 2)
    later = threading.Timer(0.2, lambda: journal.append("finished", **finished, attempt=3))
    later.start()
    await_end(journal, 0, 3)
    assert journal.has_finished("train", 0, 3)
