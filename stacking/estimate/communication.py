"""Lists the communication of one update by ZeRO stage, as DeepSpeed 0.19.8 implements it.

With Ψ the model's size in bytes, N ranks and A micro-batches per update, a rank sends and receives per update:

    ZeRO 0   all-reduce of the gradients, once                        2 (N-1)/N Ψ
    ZeRO 1   the gradients once, then an all-gather of the weights    2 (N-1)/N Ψ + (N-1)/N Ψ
    ZeRO 2   the gradients at every micro-batch, then the weights     A 2 (N-1)/N Ψ + (N-1)/N Ψ
    ZeRO 3   weights gathered for forward and again for backward,
             gradients reduce-scattered, at every micro-batch         A 3 (N-1)/N Ψ

Rajbhandari et al., 2020 (ZeRO, arXiv 1910.02054), section 7, use a reduce-scatter in stages 1 and 2, for a total of
2 Ψ. DeepSpeed all-reduces whole buckets there unless ``use_multi_rank_bucket_allreduce`` is false
(``runtime/zero/stage_1_and_2.py``, ``average_tensor``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from stacking.deepspeed_config import ds_config
from stacking.hardware.presets import VALUE_BYTES
from stacking.planning.plan import StagePlan

Operation = Literal["all-reduce", "reduce-scatter", "all-gather"]
Behind = Literal["backward", "forward and backward", "nothing"]

_BUCKET, _PREFETCH = 5e8, 5e7
"""DeepSpeed's defaults, in elements."""
_MATRICES = 4
"""The larger weights of a layer, each of which ZeRO-3 gathers separately when its module runs."""


@dataclass(frozen=True)
class Transfer:
    """One kind of collective over all ranks within an update."""

    operation: Operation
    bytes: float
    """Size of the unsharded buffer in bytes."""
    times: int
    """Occurrences per update."""
    calls: int
    """Number of buckets."""
    behind: Behind
    """The computation of the same micro-batch that can hide it."""


def transfers(stage: StagePlan) -> list[Transfer]:
    """Returns the collectives of one update of ``stage``; none for a single rank."""
    if stage.ranks == 1:
        return []
    zero = stage.ds_config.get("zero_optimization", {})
    gradients = stage.parameters * VALUE_BYTES[_communicated(stage)]
    weights = stage.parameters * VALUE_BYTES[stage.precision]
    overlap = zero.get("overlap_comm")
    reduced = _calls(stage.parameters, zero.get("reduce_bucket_size", _BUCKET))
    if stage.zero_stage == 0:
        return [Transfer("all-reduce", gradients, 1, _calls(stage.parameters, _BUCKET), "nothing")]
    if stage.zero_stage == 3:
        pieces = max(
            _calls(stage.parameters, zero.get("stage3_prefetch_bucket_size", _PREFETCH)), _MATRICES * stage.layers
        )
        hidden = overlap is not False
        gather = Transfer(
            "all-gather", weights, 2 * stage.accumulation, pieces, "forward and backward" if hidden else "nothing"
        )
        scatter = Transfer(
            "reduce-scatter", gradients, stage.accumulation, reduced, "backward" if hidden else "nothing"
        )
        return [gather, scatter]
    whole = zero.get("use_multi_rank_bucket_allreduce", True) or not zero.get("reduce_scatter", True)
    reduce = Transfer(
        "all-reduce" if whole else "reduce-scatter",
        gradients,
        stage.accumulation if stage.zero_stage == 2 else 1,
        reduced,
        "backward" if overlap else "nothing",
    )
    gathered = _calls(stage.parameters, zero.get("allgather_bucket_size", _BUCKET))
    return [reduce, Transfer("all-gather", weights, 1, gathered, "nothing")]


def bytes_per_update(stage: StagePlan) -> float:
    """Returns the bytes that one rank sends per update: 2 (N-1)/N for an all-reduce, (N-1)/N for the others."""
    share = (stage.ranks - 1) / stage.ranks
    return sum((2 if t.operation == "all-reduce" else 1) * share * t.bytes * t.times for t in transfers(stage))


def _communicated(stage: StagePlan) -> str:
    """Returns the type in which gradients are communicated."""
    return str(stage.ds_config.get("communication_data_type") or ds_config.precision(stage.ds_config)).lower()


def _calls(elements: int, bucket: float) -> int:
    """Returns the number of buckets; a size of 0 makes none, as with ``stage3_prefetch_bucket_size``."""
    return max(1, ceil(elements / bucket)) if bucket else 1
