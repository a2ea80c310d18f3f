"""Begins a stage ahead of the state that it starts from, which is still being consolidated and grown.

Its ranks load the last checkpoint of the stage before, viewed as the grown state: the same numbers, to the bit. The
first checkpoint waits for the state, so that a checkpoint still proves that every phase before it is done.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch.distributed as dist

from stacking.errors import Preempted
from stacking.growth.apply import GrownState
from stacking.growth.operators import OptimizerStateRule, optimizer_state_rule
from stacking.planning.plan import StagePlan
from stacking.run.journal import Journal
from stacking.state.layers import LayerSource
from stacking.state.zero import ZeroCheckpoint
from stacking.train.rank_sync import Agreement

_LOOK_SECONDS = 1.0
"""Seconds for which rank 0 looks for a state before the ranks agree whether to stop."""


def await_end(journal: Journal, stage: int, attempt: int) -> None:
    """Waits until the journal says that the ranks of this attempt to train ``stage`` have left their devices."""
    while not journal.has_finished("train", stage, attempt):
        time.sleep(0.1)


def grown_ahead(checkpoint: Path, stage: StagePlan) -> GrownState:
    """Views the last checkpoint of the stage before as the state that ``stage`` starts from.

    Raises:
        DamagedFile: a file is missing or altered.
    """
    if stage.growth is None:
        sources, rule = tuple(LayerSource(layer) for layer in range(stage.layers)), OptimizerStateRule("all", "all")
    else:
        sources = tuple(map(LayerSource.parse, stage.growth.sources))
        rule = optimizer_state_rule(stage.growth.optimizer_state)
    return GrownState(ZeroCheckpoint(checkpoint), sources, rule)


def await_state(state: Path, stage: StagePlan, agreement: Agreement) -> None:
    """Waits on all ranks until rank 0 sees the state that ``stage`` starts from.

    Raises:
        Preempted: a rank was asked to stop.
    """
    ready = False
    while not ready:
        seen = dist.get_rank() == 0 and _appears(state, _LOOK_SECONDS)
        (count,), stop = agreement.exchange(seen)
        if stop:
            raise Preempted(f"stage {stage.name} stopped before its first checkpoint")
        ready = count > 0


def _appears(state: Path, seconds: float) -> bool:
    """Returns whether the state has its name, or gets it within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return state.exists()
