"""Moves a stage to another number of ranks: the same updates over the same samples, split differently."""

from __future__ import annotations

from stacking.deepspeed_config import ds_config
from stacking.errors import UserError
from stacking.planning.batch import largest_divisor
from stacking.planning.plan import StagePlan


def resized(stage: StagePlan, ranks: int, where: str) -> StagePlan:
    """Returns ``stage`` for ``ranks`` ranks, with the same global batch and micro-batches no larger than planned.

    Args:
        where: the source of the number of ranks, for the error.

    Raises:
        UserError: the global batch does not divide over the ranks.
    """
    if ranks == stage.ranks:
        return stage
    if stage.global_batch % ranks:
        problem = f"{ranks} ranks do not divide the {stage.global_batch} sequences of an update of {stage.name}"
        raise UserError(where, problem, f"use {most_ranks(stage, ranks)}")
    share = stage.global_batch // ranks
    micro = largest_divisor(share, stage.micro_batch)
    config = ds_config.with_batch(stage.ds_config, stage.global_batch, micro, share // micro)
    changes = {"micro_batch": micro, "accumulation": share // micro, "ranks": ranks, "ds_config": config}
    return stage.model_copy(update=changes)


def most_ranks(stage: StagePlan, available: int) -> int:
    """Returns the largest number of ranks, at most as planned, that the stage can use of those ``available``."""
    return largest_divisor(stage.global_batch, max(1, min(available, stage.ranks)))
