"""What ranks send each other: the volumes of the ZeRO paper, and where DeepSpeed sends more."""

from __future__ import annotations

from typing import Any

import pytest

from stacking.estimate.communication import bytes_per_update, transfers
from stacking.planning.plan import StagePlan
from tests.estimate.plans import shipped

STAGE = shipped("bert-large-a100").stages[-1]


def stage(zero: int, ranks: int = 8, accumulation: int = 1, **config: Any) -> StagePlan:
    changes = {"zero_stage": zero, "ranks": ranks, "accumulation": accumulation}
    ds_config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": zero, **config}}
    return STAGE.model_copy(update={**changes, "ds_config": ds_config})


def in_models(found: StagePlan) -> float:
    """Bytes of one update, in units of the model's own bytes and of the ring's (N-1)/N."""
    return bytes_per_update(found) / (2 * found.parameters) * found.ranks / (found.ranks - 1)


@pytest.mark.parametrize("ranks", [2, 3, 64, 1024])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_each_zero_stage_sends_its_own_volume(ranks: int, accumulation: int) -> None:
    a = accumulation
    assert in_models(stage(0, ranks, a)) == pytest.approx(2)
    assert in_models(stage(1, ranks, a)) == pytest.approx(3)
    assert in_models(stage(2, ranks, a)) == pytest.approx(2 * a + 1)
    assert in_models(stage(3, ranks, a)) == pytest.approx(3 * a)


@pytest.mark.parametrize("zero", [1, 2])
def test_a_true_reduce_scatter_sends_the_papers_volume(zero: int) -> None:
    assert in_models(stage(zero, use_multi_rank_bucket_allreduce=False)) == pytest.approx(2)
    without = stage(zero, use_multi_rank_bucket_allreduce=False, reduce_scatter=False)
    assert in_models(without) == pytest.approx(3)


@pytest.mark.parametrize("zero", range(4))
def test_one_rank_sends_nothing(zero: int) -> None:
    assert transfers(stage(zero, ranks=1)) == []
    assert bytes_per_update(stage(zero, ranks=1)) == 0


def test_gradients_are_sent_in_the_configured_type() -> None:
    wide = stage(0).model_copy(update={"ds_config": {"bf16": {"enabled": True}, "communication_data_type": "fp32"}})
    assert bytes_per_update(wide) == 2 * bytes_per_update(stage(0))
    wide.ds_config["communication_data_type"] = "FP32"  # DeepSpeed ignores the case
    assert bytes_per_update(wide) == 2 * bytes_per_update(stage(0))


def test_smaller_buckets_are_more_calls() -> None:
    [reduce, _] = transfers(stage(2, reduce_bucket_size=STAGE.parameters // 10))
    assert reduce.calls == 11
    assert transfers(stage(2))[0].calls == 1


def test_without_prefetching_each_matrix_is_gathered_alone() -> None:
    gather, _ = transfers(stage(3, stage3_prefetch_bucket_size=0))
    assert gather.calls == 4 * STAGE.layers


@pytest.mark.parametrize(
    ("zero", "config", "behind"),
    [(1, {}, "nothing"), (2, {"overlap_comm": True}, "backward"), (3, {}, "forward and backward"),
     (3, {"overlap_comm": False}, "nothing"), (0, {"overlap_comm": True}, "nothing")],
)  # fmt: skip
def test_only_what_deepspeed_overlaps_is_hidden_behind_computation(
    zero: int, config: dict[str, Any], behind: str
) -> None:
    assert transfers(stage(zero, **config))[0].behind == behind
