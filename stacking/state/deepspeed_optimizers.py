"""Accesses the master weights of a live DeepSpeed engine, in the layout of each of DeepSpeed's optimizers.

DeepSpeed's public ``safe_set_full_*`` functions need the whole parameter on every rank and an optimizer that has
stepped, and support neither ZeRO 0 nor the step count. This module therefore describes each optimizer's flat tensors
like those of a checkpoint (`partition.Piece`); tests compare the result with the public ``safe_get_full_*`` functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from deepspeed import comm

from stacking.errors import UserError
from stacking.state import deepspeed_private as private
from stacking.storage.partition import Piece, Shape, cut, packed, sharded, whole

_Partitions = Callable[[Any], list[private.Partition]]


class LiveMaster(NamedTuple):
    """Describes a tensor that the inner optimizer steps, its parameter group and its pieces."""

    tensor: torch.Tensor
    group: dict[str, Any]
    pieces: list[Piece]


class Adapter(NamedTuple):
    """Describes how to access and update the masters of one kind of optimizer."""

    masters: Callable[[Any, dict[int, str]], Iterator[LiveMaster]]
    """Returns this rank's masters, given the engine and the parameter names by ``id``."""
    prepare: Callable[[Any], None]
    """Called before the masters change."""
    refresh: Callable[[Any], None]
    """Called after the masters have changed; updates the model's low-precision weights on all ranks."""


def adapter_of(engine: Any) -> Adapter:
    """Returns the adapter for ``engine``'s optimizer.

    Raises:
        UserError: the optimizer is not supported.
    """
    optimizer = engine.optimizer
    if optimizer is private.inner_optimizer(engine):
        return ADAPTERS["plain"]
    if private.offloads_to_nvme(optimizer):
        raise UserError("ds_config: zero_optimization.offload_optimizer", "is nvme", "use cpu")
    name = type(optimizer).__name__
    if name not in ADAPTERS:
        raise UserError("ds_config: optimizer", f"makes DeepSpeed use {name}", f"known are {', '.join(ADAPTERS)}")
    return ADAPTERS[name]


def _named(parameters: Iterable[torch.Tensor], names: dict[int, str]) -> list[tuple[str, Shape]]:
    return [(names[id(parameter)], private.whole_shape(parameter)) for parameter in parameters]


def _nothing(_: Any) -> None: ...


# ZeRO 0 in fp32: an ordinary optimizer on the model's own parameters.


def _plain(engine: Any, names: dict[int, str]) -> Iterator[LiveMaster]:
    for group in _groups(engine):
        for parameter in group["params"]:
            yield LiveMaster(parameter, group, whole(names[id(parameter)], private.whole_shape(parameter)))


# ZeRO 0 in bf16 or fp16: FP16_UnfusedOptimizer has a master for each parameter, FP16_Optimizer one for each group.


def _unfused(engine: Any, names: dict[int, str]) -> Iterator[LiveMaster]:
    for group, (low, high) in zip(_groups(engine), private.unfused_groups(engine.optimizer), strict=True):
        for (name, shape), master in zip(_named(low, names), high, strict=True):
            yield LiveMaster(master, group, whole(name, shape))


def _refresh_unfused(engine: Any) -> None:
    for low, high in private.unfused_groups(engine.optimizer):
        for parameter, master in zip(low, high, strict=True):
            parameter.data.copy_(master.data)


def _fused(engine: Any, names: dict[int, str]) -> Iterator[LiveMaster]:
    for group, (low, flat) in zip(_groups(engine), private.fused_groups(engine.optimizer), strict=True):
        yield LiveMaster(flat, group, packed(_named(low, names)))


def _refresh_fused(engine: Any) -> None:
    for low, flat in private.fused_groups(engine.optimizer):
        for parameter, piece in zip(low, packed(("", private.whole_shape(p)) for p in low), strict=True):
            parameter.data.copy_(flat.data.narrow(0, piece.offset, piece.numel).view(parameter.shape))


# ZeRO 1 and 2: each group is one flat tensor, of which a rank's master is one part.


def _partitioned(partitions: _Partitions, engine: Any, names: dict[int, str]) -> Iterator[LiveMaster]:
    for group, part in zip(_groups(engine), partitions(engine.optimizer), strict=True):
        pieces = packed(_named(part.parameters, names), part.paddings)
        size = part.master.numel()
        first = comm.get_rank(group=part.process_group) * size
        yield LiveMaster(part.master, group, cut(pieces, first, first + size))


def _refresh_partitioned(engine: Any) -> None:
    low = private.low_precision_parts(engine.optimizer)
    if engine.device.type == "cpu" and low is not None:
        _broadcast_parts(low, private.partitions(engine.optimizer))
    else:
        private.gather_low_precision(engine.optimizer)
    private.relink_optimizer_states(engine.optimizer)


def _broadcast_parts(low: list[list[torch.Tensor]], partitions: list[private.Partition]) -> None:
    """Gathers like DeepSpeed, but in place: gloo's all-gather is slower and needs a second copy of the model."""
    for parts, partition in zip(low, partitions, strict=True):
        process_group = partition.process_group
        parts[comm.get_rank(group=process_group)].data.copy_(partition.master.data)
        for rank, part in enumerate(parts):
            comm.broadcast(part.data, comm.get_global_rank(process_group, rank), group=process_group)


# ZeRO 3: each sub-group's flat tensor holds this rank's share of every parameter.


def _sharded(engine: Any, names: dict[int, str]) -> Iterator[LiveMaster]:
    groups = _groups(engine)
    for part in private.sub_groups(engine.optimizer):
        rank = comm.get_rank(group=part.process_group)
        ranks = comm.get_world_size(group=part.process_group)
        yield LiveMaster(part.master, groups[part.group], sharded(_named(part.parameters, names), rank, ranks))


def _groups(engine: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = private.inner_optimizer(engine).param_groups
    return groups


ADAPTERS: dict[str, Adapter] = {
    "plain": Adapter(_plain, _nothing, _nothing),
    "FP16_UnfusedOptimizer": Adapter(_unfused, _nothing, _refresh_unfused),
    "FP16_Optimizer": Adapter(_fused, _nothing, _refresh_fused),
    "DeepSpeedZeroOptimizer": Adapter(partial(_partitioned, private.partitions), _nothing, _refresh_partitioned),
    "BF16_Optimizer": Adapter(partial(_partitioned, private.partitions_bf16), _nothing, _refresh_partitioned),
    "DeepSpeedZeroOptimizer_Stage3": Adapter(
        _sharded,
        lambda engine: private.release_parameters(engine.optimizer),
        lambda engine: private.reshard_from_masters(engine.optimizer),
    ),
}
"""Keyed by the class of ``engine.optimizer``; ``plain`` if DeepSpeed does not wrap it."""
