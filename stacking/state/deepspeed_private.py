"""Wraps the undocumented parts of DeepSpeed that this project uses; no other module does, and each has a test.

Read from the source of DeepSpeed 0.19: runtime/zero/stage_1_and_2.py, zero/stage3.py, bf16_optimizer.py,
fp16/fused_optimizer.py, fp16/unfused_optimizer.py, fp16/loss_scaler.py, ops/adam/cpu_adam.py, ops/__init__.py,
compiler.py and zero/muon/original_muon.py.
pyproject.toml bounds the version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from inspect import getsource
from typing import Any, NamedTuple

import torch

LOSS_SCALE_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""The fields of a loss scaler that change between steps."""


class Partition(NamedTuple):
    """Describes a rank's part of a parameter group, or of a sub-group in ZeRO 3."""

    parameters: Sequence[torch.Tensor]
    """Parameters of the model, whole or sharded, in the order of the flat tensor."""
    master: torch.Tensor
    """The flat fp32 tensor that the inner optimizer steps."""
    paddings: Sequence[int] | None
    """Padding after each parameter, in elements; None: no padding."""
    process_group: Any
    """The process group that shares the parameter group."""
    group: int
    """Index of the inner optimizer's parameter group."""


def inner_optimizer(engine: Any) -> Any:
    """Returns the optimizer wrapped by DeepSpeed's, or ``engine.optimizer`` if it is not a wrapper."""
    return engine.basic_optimizer


def offloads_to_nvme(optimizer: Any) -> bool:
    """Returns whether ZeRO 3 keeps the optimizer state on NVMe."""
    return bool(getattr(optimizer, "swap_optimizer", False))


def whole_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Returns the full shape of a parameter that ZeRO 3 may have sharded."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


# FP16_UnfusedOptimizer and FP16_Optimizer: ZeRO 0 in 16 bits.


def unfused_groups(optimizer: Any) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Yields, for each parameter group, the 16-bit parameters and the fp32 master of each."""
    return zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)


def fused_groups(optimizer: Any) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """Yields, for each parameter group, the 16-bit parameters and the flat fp32 tensor of their masters."""
    return zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True)


def refresh_masters(optimizer: Any) -> None:
    """Copies the model's weights into the masters of any wrapping optimizer."""
    optimizer.refresh_fp32_params()


# DeepSpeedZeroOptimizer (ZeRO 1 and 2) and BF16_Optimizer.


def partitions(optimizer: Any) -> list[Partition]:
    """Returns this rank's partitions in ZeRO 1 and 2, one for each parameter group."""
    groups = optimizer.round_robin_bit16_groups
    paddings = getattr(optimizer, "round_robin_bit16_padding", [None] * len(groups))
    masters, processes = optimizer.single_partition_of_fp32_groups, optimizer.real_dp_process_group
    return [Partition(groups[i], masters[i], paddings[i], processes[i], i) for i in range(len(groups))]


def partitions_bf16(optimizer: Any) -> list[Partition]:
    """Returns this rank's partitions in BF16_Optimizer, which is ZeRO 1 with gradients accumulated in fp32."""
    groups, masters = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    processes = optimizer.real_dp_process_group
    return [Partition(groups[i], masters[i], None, processes[i], i) for i in range(len(groups))]


def low_precision_parts(optimizer: Any) -> list[list[torch.Tensor]] | None:
    """Returns, in ZeRO 1 and 2, all ranks' parts of each group's flat weights; None for BF16_Optimizer."""
    parts: list[list[torch.Tensor]] | None = getattr(optimizer, "parallel_partitioned_bit16_groups", None)
    return parts


def gather_low_precision(optimizer: Any) -> None:
    """Updates the model's weights from the masters of all ranks."""
    optimizer.update_lp_params()


def relink_optimizer_states(optimizer: Any) -> None:
    """Makes the optimizer's current Adam state visible to the public ``safe_get_full_*`` functions."""
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


# DeepSpeedZeroOptimizer_Stage3.


def sub_groups(optimizer: Any) -> list[Partition]:
    """Returns the sub-groups in ZeRO 3, whose flat tensors hold this rank's share of every parameter."""
    masters, owners = optimizer.fp32_partitioned_groups_flat, optimizer.sub_group_to_group_id
    return [
        Partition(optimizer.fp16_groups[i], master, None, optimizer._get_sub_group_process_group(i), owners[i])
        for i, master in enumerate(masters)
    ]


def release_parameters(optimizer: Any) -> None:
    """Also shards the small parameters, which every rank keeps whole."""
    optimizer._partition_all_parameters()


def reshard_from_masters(optimizer: Any) -> None:
    """Updates the model's shards from the masters, and gathers the small parameters again."""
    for index in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    optimizer.checkpoint_event_epilogue()


# Everything else.


def loss_scaler(engine: Any) -> Any:
    """Returns the object with `LOSS_SCALE_FIELDS`, which ZeRO's optimizers keep under another name than the others."""
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)


def leaves_loss_unscaled(engine: Any) -> bool:
    """Returns whether ``engine.backward`` takes the loss as it is although the optimizer divides by the loss scale.

    Without ZeRO, DeepSpeed 0.19 does so in fp16, and hardly trains (https://github.com/deepspeedai/DeepSpeed/pull/8393).
    Where it does scale, it lets that optimizer do it.
    """
    return getattr(loss_scaler(engine), "use_grad_scaling", False) and not _asks_optimizer(type(engine).backward)


@cache
def _asks_optimizer(backward: Any) -> bool:
    return "optimizer.backward(" in getsource(backward)


def smallest_loss_scale(scaler: Any) -> float:
    """Returns the minimum of the loss scale; for a fixed scale, the scale itself."""
    smallest = getattr(scaler, "min_scale", getattr(scaler, "min_loss_scale", None))
    return float(scaler.cur_scale if smallest is None else smallest)


def is_at_smallest_scale(error: Exception) -> bool:
    """Returns whether ``engine.step`` raised ``error`` because gradients overflow at the minimum loss scale."""
    return "loss scale already at minimum" in str(error)


def count_bias_correction(optimizer: Any, counts: Sequence[int]) -> None:
    """Sets β₁ᵗ and β₂ᵗ of a DeepSpeedCPUAdam, which C++ code accumulates, to their values after training.

    It keeps one pair for all tensors: a tensor with the next count multiplies the pair by β, any other one computes
    the powers again. If all tensors have the same count, every update is replayed. Otherwise each round over the
    tensors computes the powers again, so replaying the last two rounds suffices. Each replayed step updates one number
    with a learning rate of zero.

    Args:
        counts: the updates of each tensor, in the order in which they are stepped.
    """
    group = optimizer.param_groups[0]
    hyperparameters = (0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"])
    tensors = [torch.zeros(1) for _ in range(4)]
    last = max(counts, default=0)
    if len(set(counts)) > 1:
        replayed = [count - back for back in (1, 0) for count in counts if count > back]
    else:
        replayed = list(range(1, last + 1))
    for step in replayed:
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, *hyperparameters, *tensors)


def compile_no_operations() -> None:
    """Prevents DeepSpeed from searching for compilers and compiling its shared-memory collectives for CPUs."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}  # type: ignore[attr-defined]


def leave_muon_uncompiled() -> None:
    """Imports DeepSpeed's Muon, which no recipe can choose, without passing its functions to ``torch.compile``.

    Every engine imports it. With it, a rank would load torch's compiler: as much work as the rest of a small engine's
    start.
    """
    from deepspeed.runtime import compiler

    compile_with_torch = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        with suppress(ImportError):
            import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compile_with_torch
