"""The masters of a live DeepSpeed engine: the only place that knows the insides of its optimizers.

DeepSpeed's public ``safe_set_full_*`` calls want the whole parameter on every rank and an optimizer that has stepped,
and cover neither ZeRO 0 nor the step count; so each optimizer's flat tensors are described here instead, in the same
terms as a checkpoint's (`partition.Piece`), and tests compare the result with the public ``safe_get_full_*`` calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from deepspeed import comm

from stacking.errors import UserError
from stacking.storage.partition import Piece, Shape, cut, packed, sharded, whole


class Master(NamedTuple):
    """A tensor that the inner optimizer steps, its parameter group there, and what it is made of."""

    tensor: torch.Tensor
    group: dict[str, Any]
    pieces: list[Piece]


class Adapter(NamedTuple):
    """How to reach into one of DeepSpeed's optimizers."""

    masters: Callable[[Any, dict[int, str]], Iterator[Master]]
    """(engine, parameter names by ``id``) to this rank's masters."""
    prepare: Callable[[Any], None]
    """Called before the masters are changed."""
    refresh: Callable[[Any], None]
    """Called after it: brings the model's own, low-precision weights up to date on all ranks."""


def adapter_of(engine: Any) -> Adapter:
    """The adapter for ``engine``'s optimizer.

    Raises:
        UserError: no adapter knows it.
    """
    optimizer = engine.optimizer
    if optimizer is engine.basic_optimizer:
        return ADAPTERS["plain"]
    if getattr(optimizer, "swap_optimizer", False):
        raise UserError("ds_config: zero_optimization.offload_optimizer", "is nvme", "use cpu")
    name = type(optimizer).__name__
    if name not in ADAPTERS:
        raise UserError("ds_config: optimizer", f"makes DeepSpeed use {name}", f"known are {', '.join(ADAPTERS)}")
    return ADAPTERS[name]


def parameter_shape(parameter: torch.Tensor) -> Shape:
    """The whole parameter's shape, also where ZeRO 3 has partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _named(parameters: Iterable[torch.Tensor], names: dict[int, str]) -> list[tuple[str, Shape]]:
    return [(names[id(parameter)], parameter_shape(parameter)) for parameter in parameters]


def _nothing(_: Any) -> None: ...


# ZeRO 0 in fp32: an ordinary optimizer on the model's own parameters.


def _plain(engine: Any, names: dict[int, str]) -> Iterator[Master]:
    for group in engine.basic_optimizer.param_groups:
        for parameter in group["params"]:
            yield Master(parameter, group, whole(names[id(parameter)], parameter_shape(parameter)))


# ZeRO 0 in bf16 or fp16: FP16_UnfusedOptimizer has a master for each parameter, FP16_Optimizer one for each group.


def _unfused(engine: Any, names: dict[int, str]) -> Iterator[Master]:
    optimizer = engine.optimizer
    for group, low, high in zip(_groups(engine), optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for (name, shape), master in zip(_named(low, names), high, strict=True):
            yield Master(master, group, whole(name, shape))


def _refresh_unfused(engine: Any) -> None:
    optimizer = engine.optimizer
    for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for parameter, master in zip(low, high, strict=True):
            parameter.data.copy_(master.data)


def _fused(engine: Any, names: dict[int, str]) -> Iterator[Master]:
    optimizer = engine.optimizer
    for group, low, flat in zip(_groups(engine), optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
        yield Master(flat, group, packed(_named(low, names)))


def _refresh_fused(engine: Any) -> None:
    optimizer = engine.optimizer
    for low, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
        for parameter, piece in zip(low, packed(("", parameter_shape(p)) for p in low), strict=True):
            parameter.data.copy_(flat.data.narrow(0, piece.offset, piece.numel).view(parameter.shape))


# ZeRO 1 and 2: each group is one flat tensor, of which a rank's master is one part.


def _partitioned(engine: Any, names: dict[int, str]) -> Iterator[Master]:
    optimizer = engine.optimizer
    paddings = getattr(optimizer, "round_robin_bit16_padding", [None] * len(optimizer.bit16_groups))
    for index, (group, flat) in enumerate(zip(_groups(engine), optimizer.single_partition_of_fp32_groups, strict=True)):
        pieces = packed(_named(optimizer.round_robin_bit16_groups[index], names), paddings[index])
        yield _part(flat, group, pieces, optimizer.real_dp_process_group[index])


def _partitioned_bf16(engine: Any, names: dict[int, str]) -> Iterator[Master]:
    optimizer = engine.optimizer
    for index, (group, flat) in enumerate(zip(_groups(engine), optimizer.fp32_groups_flat_partition, strict=True)):
        pieces = packed(_named(optimizer.bf16_groups[index], names))
        yield _part(flat, group, pieces, optimizer.real_dp_process_group[index])


def _part(flat: torch.Tensor, group: dict[str, Any], pieces: list[Piece], process_group: Any) -> Master:
    first = comm.get_rank(group=process_group) * flat.numel()
    return Master(flat, group, cut(pieces, first, first + flat.numel()))


def _refresh_partitioned(engine: Any) -> None:
    optimizer = engine.optimizer
    if engine.device.type == "cpu" and hasattr(optimizer, "parallel_partitioned_bit16_groups"):
        _broadcast_parts(optimizer)
    else:
        optimizer.update_lp_params()
    # the public safe_get_full_* calls see Adam's state through links, which must lead to the tensors that it has now
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def _broadcast_parts(optimizer: Any) -> None:
    """What ``update_lp_params`` does, in place: gloo's all-gather would take a second copy of the model, and longer."""
    groups = zip(optimizer.parallel_partitioned_bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)
    for index, (parts, master) in enumerate(groups):
        process_group = optimizer.real_dp_process_group[index]
        parts[comm.get_rank(group=process_group)].data.copy_(master.data)
        for rank, part in enumerate(parts):
            comm.broadcast(part.data, comm.get_global_rank(process_group, rank), group=process_group)


# ZeRO 3: each sub-group's flat tensor holds this rank's share of every parameter.


def _sharded(engine: Any, names: dict[int, str]) -> Iterator[Master]:
    optimizer = engine.optimizer
    groups = _groups(engine)
    for index, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        process_group = optimizer._get_sub_group_process_group(index)
        rank, ranks = comm.get_rank(group=process_group), comm.get_world_size(group=process_group)
        pieces = sharded(_named(optimizer.fp16_groups[index], names), rank, ranks)
        yield Master(flat, groups[optimizer.sub_group_to_group_id[index]], pieces)


def _prepare_sharded(engine: Any) -> None:
    engine.optimizer._partition_all_parameters()  # releases the small parameters that every rank holds whole


def _refresh_sharded(engine: Any) -> None:
    optimizer = engine.optimizer
    for index in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    optimizer.checkpoint_event_epilogue()  # gathers them again


def _groups(engine: Any) -> list[dict[str, Any]]:
    return engine.basic_optimizer.param_groups


ADAPTERS: dict[str, Adapter] = {
    "plain": Adapter(_plain, _nothing, _nothing),
    "FP16_UnfusedOptimizer": Adapter(_unfused, _nothing, _refresh_unfused),
    "FP16_Optimizer": Adapter(_fused, _nothing, _refresh_fused),
    "DeepSpeedZeroOptimizer": Adapter(_partitioned, _nothing, _refresh_partitioned),
    "BF16_Optimizer": Adapter(_partitioned_bf16, _nothing, _refresh_partitioned),
    "DeepSpeedZeroOptimizer_Stage3": Adapter(_sharded, _prepare_sharded, _refresh_sharded),
}
"""By the class of ``engine.optimizer``; ``plain`` where DeepSpeed does not wrap it."""
