"""Loads a training state into a newly initialised DeepSpeed engine of any ZeRO stage, world size and precision.

Each rank reads only its own part of the masters and moments. The fp32 masters and moments are restored bit for bit; the
model's low-precision weights are then updated from the masters as DeepSpeed does after a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from stacking.errors import UserError
from stacking.state import deepspeed_private as private
from stacking.state.deepspeed_optimizers import LiveMaster, adapter_of
from stacking.state.format import BUFFERS, MOMENTS, WEIGHTS, TrainingState, step_of
from stacking.storage.threads import each, thread_count
from stacking.terminal.units import counted

_SLICE = 1 << 22
"""Elements per copy of a thread: 16 MiB."""


@torch.no_grad()
def load(engine: Any, source: TrainingState) -> None:
    """Sets the weights, both moments, the step counts and the buffers of ``engine`` to those of ``source``.

    All ranks must call this together.

    Args:
        engine: the result of ``deepspeed.initialize`` with Adam (torch's, FusedAdam or DeepSpeedCPUAdam). Its
            optimizer state is replaced.
        source: a `State` or a `ZeroCheckpoint`. Missing moments start at zero; the step counts are copied.

    Raises:
        UserError: the source is of another model (names a parameter), the optimizer is not supported, or one of its
            parameter groups would hold parameters with different step counts.
        DamagedFile: a file of the source is truncated or missing.
    """
    parameters = dict(engine.module.named_parameters())
    buffers = _persistent_buffers(engine.module)
    _check_parameters({name: private.whole_shape(p) for name, p in parameters.items()}, source)
    _check_buffers(buffers, source)
    adapter, adam = adapter_of(engine), _adam_of(engine)
    adapter.prepare(engine)
    slices: list[Slice] = []
    steps: list[int] = []
    for master in adapter.masters(engine, {id(p): name for name, p in parameters.items()}):
        steps.append(_common_step(source, master))
        state = _adam_state(engine, adam, master, steps[-1])
        slices += _slices(master.tensor, master, WEIGHTS)
        for kind in MOMENTS:
            if source.moments:
                slices += _slices(state[kind], master, kind)
            else:
                state[kind].zero_()
    each(lambda part: _fill(part, source), slices, thread_count(_ranks_here()))
    adapter.refresh(engine)
    adam.finish(private.inner_optimizer(engine), steps)
    for name, buffer in buffers.items():
        buffer.copy_(torch.from_numpy(source.read(BUFFERS, name)).view(buffer.shape))


@torch.no_grad()
def begin(engine: Any) -> None:
    """Resets the optimizer of an engine that starts from its own initial weights.

    Without ZeRO, DeepSpeed's bf16 and fp16 optimizers make one step with zero gradients on creation, which sets Adam's
    step count to one and decays the masters. This restores the masters from the weights and clears Adam's state.

    Raises:
        UserError: the optimizer is not supported.
    """
    adapter, adam = adapter_of(engine), _adam_of(engine)
    adapter.prepare(engine)
    if engine.optimizer is not private.inner_optimizer(engine):
        private.refresh_masters(engine.optimizer)
    names = {id(p): name for name, p in engine.module.named_parameters()}
    for master in adapter.masters(engine, names):
        state = _adam_state(engine, adam, master, 0)
        for kind in MOMENTS:
            state[kind].zero_()
    adapter.refresh(engine)


class Slice(NamedTuple):
    """Maps elements of a rank's own tensor to their source."""

    target: torch.Tensor
    kind: str
    name: str
    start: int


def _common_step(source: TrainingState, master: LiveMaster) -> int:
    """Returns the step count of a master's parameters, which DeepSpeed keeps in one number."""
    counts = {step_of(source, piece.name) for piece in master.pieces} or {source.optimizer_step}
    if len(counts) > 1:
        first, last = min(counts), max(counts)
        problem = f"holds parameters after {first:,} and after {counted(last, 'update')}"
        raise UserError("optimizer: a parameter group", problem, "make a group for each count")
    return counts.pop()


def _adam_state(engine: Any, adam: Adam, master: LiveMaster, step: int) -> dict[str, Any]:
    """Returns Adam's state of a master after ``step`` updates; in newly allocated moments only the padding is set."""
    state: dict[str, Any] = private.inner_optimizer(engine).state[master.tensor]
    for kind in MOMENTS:
        if kind not in state:
            state[kind] = _empty_like(master.tensor)
            flat, end = state[kind].view(-1), 0
            for piece in sorted(master.pieces, key=lambda piece: piece.offset):
                flat[end : piece.offset].zero_()
                end = piece.offset + piece.numel
            flat[end:].zero_()
    adam.set_step(state, master, step)
    return state


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """Allocates a tensor; on a CPU with numpy, which requests huge pages and makes the first touch much faster."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return torch.empty_like(tensor, requires_grad=False)
    return torch.from_numpy(np.empty(tuple(tensor.shape), np.float32))


def _slices(target: torch.Tensor, master: LiveMaster, kind: str) -> Iterator[Slice]:
    flat = target.data.view(-1)
    for piece in master.pieces:
        for done in range(0, piece.numel, _SLICE):
            part = flat.narrow(0, piece.offset + done, min(_SLICE, piece.numel - done))
            yield Slice(part, kind, piece.name, piece.start + done)


@torch.no_grad()
def _fill(part: Slice, source: TrainingState) -> None:
    """Reads a slice into place, directly if the target is CPU memory."""
    if part.target.device.type == "cpu" and part.target.dtype == torch.float32:
        source.fill(part.kind, part.name, part.start, part.target.numpy())
    else:
        values = source.read(part.kind, part.name, part.start, part.start + part.target.numel())
        part.target.copy_(torch.from_numpy(values))


def _ranks_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))


def _check_parameters(wanted: dict[str, tuple[int, ...]], source: TrainingState) -> None:
    names = set(source.names)
    for name, shape in wanted.items():
        if name not in names:
            raise _other_model(source, f"it has no parameter {name}")
        if source.shape(name) != shape:
            raise _other_model(source, f"{name} has shape {source.shape(name)}, but the model has {shape}")
    if extra := sorted(names - set(wanted)):
        raise _other_model(source, f"it has a parameter {extra[0]}")


def _check_buffers(wanted: dict[str, torch.Tensor], source: TrainingState) -> None:
    if differing := sorted(set(wanted) ^ set(source.buffers)):
        raise _other_model(source, f"only one of the two has a buffer {differing[0]}")
    for name, buffer in wanted.items():
        if source.buffers[name].shape != tuple(buffer.shape):
            raise _other_model(source, f"its buffer {name} has another shape")


def _other_model(source: TrainingState, difference: str) -> UserError:
    where = getattr(source, "path", "the state")
    return UserError(where, f"is of another model: {difference}", "give a state of the same model")


def _persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    saved = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


class Adam(NamedTuple):
    """Describes how to set the step counts of one implementation of Adam."""

    set_step: Callable[[dict[str, Any], LiveMaster, int], None]
    """Sets the step count, given a master's state, the master and the count."""
    finish: Callable[[Any, Sequence[int]], None]
    """Updates everything else that depends on the step counts, given the optimizer and the count of each master."""


def _step_tensor(state: dict[str, Any], master: LiveMaster, step: int) -> None:
    on_device = master.group.get("capturable") or master.group.get("fused")
    state["step"] = torch.tensor(float(step), device=master.tensor.device if on_device else "cpu")


def _step_number(state: dict[str, Any], master: LiveMaster, step: int) -> None:
    state["step"] = step


def _nothing(*_: object) -> None: ...


ADAMS: dict[str, Adam] = {
    "Adam": Adam(_step_tensor, _nothing),
    "AdamW": Adam(_step_tensor, _nothing),
    "FusedAdam": Adam(_step_number, _nothing),
    "DeepSpeedCPUAdam": Adam(_step_number, private.count_bias_correction),
}
"""Keyed by the class of the inner optimizer.

DeepSpeedCPUAdam does not save β₁ᵗ and β₂ᵗ, and recomputes them with a power function whose last bit may differ, so
that resumed training would diverge from uninterrupted training.
"""


def _adam_of(engine: Any) -> Adam:
    name = type(private.inner_optimizer(engine)).__name__
    if name not in ADAMS:
        raise UserError("ds_config: optimizer.type", f"is {name}", f"choose one of {', '.join(ADAMS)}")
    return ADAMS[name]
