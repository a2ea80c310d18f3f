"""Predicts the same recipe on 1 to 1,024 ranks: strong scaling, because updates and thus learning stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stacking.deepspeed_config import ds_config
from stacking.estimate.prediction import Basis, Prediction, predict
from stacking.planning.cost import memory_per_rank
from stacking.planning.plan import Plan, StagePlan
from stacking.storage.frozen import Frozen

RANKS: tuple[int, ...] = tuple(2**n for n in range(11))


class ScalingRow(Frozen):
    """The whole run on ``ranks`` ranks."""

    ranks: int
    used: tuple[int, ...]
    """Active ranks per stage: at most as many as divide the global batch."""
    stage_seconds: tuple[float, ...]
    seconds: float
    gpu_hours: float
    """Including idle ranks."""
    cost: float | None
    efficiency: float
    """Seconds on one rank / (ranks x seconds)."""
    communication_share: float
    """Share of the training seconds."""
    memory_per_rank: int
    """Bytes of the stage that needs the most."""

    @property
    def idle(self) -> int:
        """The largest number of idle ranks in any stage."""
        return self.ranks - min(self.used)


class Scaling(Frozen):
    """One row per number of ranks, and their assumptions."""

    rows: tuple[ScalingRow, ...]
    assumptions: tuple[str, ...]


def scaling(plan: Plan, setting: Basis, counts: Sequence[int] = RANKS) -> Scaling:
    """Simulates the run on every number of ranks in ``counts``."""
    one = predict(on_ranks(plan, 1), setting).seconds
    predictions = {ranks: predict(on_ranks(plan, ranks), setting) for ranks in counts}
    found = (
        "simulated: the recipe's global batch for any number of ranks, micro-batches of at most the planned size, "
        f"nodes of {setting.network.per_node}; ranks that do not divide the batch are idle but cost the same"
    )
    rows = tuple(_row(plan, ranks, prediction, setting, one) for ranks, prediction in predictions.items())
    return Scaling(rows=rows, assumptions=(found, *predictions[max(predictions)].assumptions))


def on_ranks(plan: Plan, ranks: int) -> Plan:
    """Returns ``plan`` with every stage on the largest number of ranks, up to ``ranks``, that divides its batch."""
    stages = tuple(_stage(stage, divides(stage.global_batch, ranks)) for stage in plan.stages)
    return plan.model_copy(update={"stages": stages})


def divides(global_batch: int, ranks: int) -> int:
    """Returns the largest divisor of ``global_batch`` that is at most ``ranks``."""
    return next(n for n in range(min(ranks, global_batch), 0, -1) if global_batch % n == 0)


def _stage(stage: StagePlan, ranks: int) -> StagePlan:
    share = stage.global_batch // ranks
    micro = divides(share, stage.micro_batch)
    changes: dict[str, Any] = {"ranks": ranks, "micro_batch": micro, "accumulation": share // micro}
    config = ds_config.with_batch(stage.ds_config, stage.global_batch, micro, share // micro)
    return stage.model_copy(update={**changes, "ds_config": config})


def _row(plan: Plan, ranks: int, prediction: Prediction, setting: Basis, one: float) -> ScalingRow:
    hours = ranks * prediction.seconds / 3600
    resized = on_ranks(plan, ranks)
    return ScalingRow(
        ranks=ranks,
        used=tuple(stage.ranks for stage in resized.stages),
        stage_seconds=tuple(stage.seconds for stage in prediction.stages),
        seconds=prediction.seconds,
        gpu_hours=hours,
        cost=None if setting.price is None else hours * setting.price,
        efficiency=one / (ranks * prediction.seconds),
        communication_share=prediction.communication_share,
        memory_per_rank=max(_memory(plan, stage) for stage in resized.stages),
    )


def _memory(plan: Plan, stage: StagePlan) -> int:
    fused = plan.launch.accelerator == "cuda"
    model, length = plan.model.with_layers(stage.layers), plan.data.sequence_length
    return memory_per_rank(
        model,
        stage.micro_batch,
        length,
        stage.ranks,
        stage.ds_config,
        fused,
        mask_probability=plan.data.mask_probability,
    )
