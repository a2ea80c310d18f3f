"""What is used of DeepSpeed beyond its documented interface: the only file that names it, with a test for each.

Read from the source of DeepSpeed 0.19: runtime/zero/stage_1_and_2.py, zero/stage3.py, bf16_optimizer.py,
fp16/fused_optimizer.py, fp16/unfused_optimizer.py, fp16/loss_scaler.py, ops/adam/cpu_adam.py and ops/__init__.py.
setup.py bounds the version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

LOSS_SCALE_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What changes from step to step in an object that scales losses."""


class Partition(NamedTuple):
    """A rank's part of one parameter group, or of one sub-group in ZeRO 3."""

    parameters: Sequence[torch.Tensor]
    """Of the model, whole or sharded, in the order of the flat tensor."""
    master: torch.Tensor
    """Flat fp32 tensor that the inner optimizer steps."""
    paddings: Sequence[int] | None
    """Elements after each parameter; None: none."""
    process_group: Any
    """The ranks that share the group."""
    group: int
    """Position of the inner optimizer's parameter group."""


def inner_optimizer(engine: Any) -> Any:
    """The optimizer that DeepSpeed's own one wraps; the same as ``engine.optimizer`` where it wraps none."""
    return engine.basic_optimizer


def offloads_to_nvme(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "swap_optimizer", False))


def whole_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """The shape of a parameter that ZeRO 3 may have sharded."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


# FP16_UnfusedOptimizer and FP16_Optimizer: ZeRO 0 in 16 bits.


def unfused_groups(optimizer: Any) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Of each group its parameters and their masters."""
    return zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)


def fused_groups(optimizer: Any) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """Of each group its parameters and the one flat master."""
    return zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True)


def refresh_masters(optimizer: Any) -> None:
    """Copy the model's weights into the masters, whichever of the wrapping optimizers it is."""
    optimizer.refresh_fp32_params()


# DeepSpeedZeroOptimizer (ZeRO 1 and 2) and BF16_Optimizer.


def partitions(optimizer: Any) -> list[Partition]:
    """ZeRO 1 and 2."""
    groups = optimizer.round_robin_bit16_groups
    paddings = getattr(optimizer, "round_robin_bit16_padding", [None] * len(groups))
    masters, processes = optimizer.single_partition_of_fp32_groups, optimizer.real_dp_process_group
    return [Partition(groups[i], masters[i], paddings[i], processes[i], i) for i in range(len(groups))]


def partitions_bf16(optimizer: Any) -> list[Partition]:
    """BF16_Optimizer, which is ZeRO 1 with gradients accumulated in fp32."""
    groups, masters = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    processes = optimizer.real_dp_process_group
    return [Partition(groups[i], masters[i], None, processes[i], i) for i in range(len(groups))]


def low_precision_parts(optimizer: Any) -> list[list[torch.Tensor]] | None:
    """ZeRO 1 and 2: of each group all ranks' parts of the model's flat weights; None in BF16_Optimizer."""
    parts: list[list[torch.Tensor]] | None = getattr(optimizer, "parallel_partitioned_bit16_groups", None)
    return parts


def gather_low_precision(optimizer: Any) -> None:
    """Make the model's weights from the masters of all ranks."""
    optimizer.update_lp_params()


def relink_optimizer_states(optimizer: Any) -> None:
    """Let the public ``safe_get_full_*`` calls see the Adam state that the optimizer has now."""
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


# DeepSpeedZeroOptimizer_Stage3.


def sub_groups(optimizer: Any) -> list[Partition]:
    """ZeRO 3: each sub-group's flat tensor holds this rank's share of every parameter."""
    masters, owners = optimizer.fp32_partitioned_groups_flat, optimizer.sub_group_to_group_id
    return [
        Partition(optimizer.fp16_groups[i], master, None, optimizer._get_sub_group_process_group(i), owners[i])
        for i, master in enumerate(masters)
    ]


def release_parameters(optimizer: Any) -> None:
    """Shard the small parameters, too, which every rank holds whole."""
    optimizer._partition_all_parameters()


def reshard_from_masters(optimizer: Any) -> None:
    """Make the model's shards from the masters, and gather the small parameters again."""
    for index in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    optimizer.checkpoint_event_epilogue()


# Everything else.


def loss_scaler(engine: Any) -> Any:
    """The object that has `LOSS_SCALE_FIELDS`: ZeRO's optimizers and the others keep it under different names."""
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)


def smallest_loss_scale(scaler: Any) -> float:
    """Below which the loss scale will not go: for a fixed one, the scale itself."""
    smallest = getattr(scaler, "min_scale", getattr(scaler, "min_loss_scale", None))
    return float(scaler.cur_scale if smallest is None else smallest)


def is_at_smallest_scale(error: Exception) -> bool:
    """Whether ``engine.step`` raised this because gradients overflow and the loss scale cannot become smaller."""
    return "loss scale already at minimum" in str(error)


def count_bias_correction(optimizer: Any, steps: int) -> None:
    """Bring β₁ᵗ and β₂ᵗ of a DeepSpeedCPUAdam, multiplied up in C++, to where they are after ``steps`` updates.

    Each replayed step updates one number with a learning rate of zero.
    """
    group = optimizer.param_groups[0]
    hyperparameters = (0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"])
    tensors = [torch.zeros(1) for _ in range(4)]
    for step in range(1, steps + 1):
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, *hyperparameters, *tensors)


def compile_no_operations() -> None:
    """Keep DeepSpeed from looking for compilers, and from compiling its shared-memory collectives for CPU ranks."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}  # type: ignore[attr-defined]
