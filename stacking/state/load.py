"""Puts a training state into a freshly initialised DeepSpeed engine of any ZeRO stage, world size and precision.

Each rank reads only its own part of the masters and moments. Nothing is rounded: fp32 masters and moments arrive bit
for bit; the model's low-precision weights are then made from the masters as DeepSpeed does after a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stacking.errors import UserError
from stacking.state.format import BUFFERS, MOMENTS, WEIGHTS, TrainingState
from stacking.state.masters import Master, adapter_of, parameter_shape

_SLICE = 1 << 22


@torch.no_grad()
def load(engine: Any, source: TrainingState, where: str = "state") -> None:
    """Set the weights, both moments, the step count and the buffers of ``engine`` to those of ``source``.

    Args:
        engine: of ``deepspeed.initialize``, with Adam as its optimizer (torch's, FusedAdam or DeepSpeedCPUAdam). Its
            optimizer's state is replaced. All ranks must call this.
        source: a `State` or a `ZeroCheckpoint`. Without moments, they start at zero and the step count is taken as is.
        where: what to call the source in error messages.

    Raises:
        UserError: the source is of another model (names a parameter), or the optimizer is not supported.
        DamagedFile: a file of the source is torn or missing.
    """
    where = str(getattr(source, "path", where))
    parameters = dict(engine.module.named_parameters())
    _check_same(where, {name: parameter_shape(p) for name, p in parameters.items()}, source)
    adapter = adapter_of(engine)
    set_step = _step_counter(engine)
    adapter.prepare(engine)
    for master in adapter.masters(engine, {id(p): name for name, p in parameters.items()}):
        state = engine.basic_optimizer.state[master.tensor]
        _fill(master.tensor, master, source, WEIGHTS)
        for kind in MOMENTS:
            if kind not in state:
                state[kind] = torch.zeros_like(master.tensor, requires_grad=False)
            state[kind].zero_()
            if source.moments:
                _fill(state[kind], master, source, kind)
        set_step(state, master, source.optimizer_step)
    adapter.refresh(engine)
    _load_buffers(where, engine.module, source)


def _fill(target: torch.Tensor, master: Master, source: TrainingState, kind: str) -> None:
    """Copy this master's pieces, slice by slice."""
    flat = target.data.view(-1)
    for piece in master.pieces:
        for done in range(0, piece.numel, _SLICE):
            count = min(_SLICE, piece.numel - done)
            values = source.read(kind, piece.name, piece.start + done, piece.start + done + count)
            flat.narrow(0, piece.offset + done, count).copy_(torch.from_numpy(values))


def _check_same(where: str, wanted: dict[str, tuple[int, ...]], source: TrainingState) -> None:
    remedy = "give a state of the same model"
    names = set(source.names)
    for name, shape in wanted.items():
        if name not in names:
            raise UserError(where, f"is of another model: it has no parameter {name}", remedy)
        if source.shape(name) != shape:
            problem = f"is of another model: {name} has shape {source.shape(name)} where the model has {shape}"
            raise UserError(where, problem, remedy)
    if extra := sorted(names - set(wanted)):
        raise UserError(where, f"is of another model: it has a parameter {extra[0]}", remedy)


def _load_buffers(where: str, module: torch.nn.Module, source: TrainingState) -> None:
    persistent = set(module.state_dict(keep_vars=True)) & {name for name, _ in module.named_buffers()}
    if differing := sorted(persistent ^ set(source.buffers)):
        raise UserError(where, f"is of another model: only one of the two has a buffer {differing[0]}", "give another")
    for name, buffer in module.named_buffers():
        if name in persistent:
            if source.buffers[name].shape != tuple(buffer.shape):
                raise UserError(where, f"is of another model: its buffer {name} has another shape", "give another")
            buffer.copy_(torch.from_numpy(source.read(BUFFERS, name)).view(buffer.shape))


# Where Adam keeps its step count.


def _step_tensor(state: dict[str, Any], master: Master, step: int) -> None:
    on_device = master.group.get("capturable") or master.group.get("fused")
    state["step"] = torch.tensor(float(step), device=master.tensor.device if on_device else "cpu")


def _step_number(state: dict[str, Any], master: Master, step: int) -> None:
    state["step"] = step


_STEP_COUNTERS: dict[str, Callable[[dict[str, Any], Master, int], None]] = {
    "Adam": _step_tensor,
    "AdamW": _step_tensor,
    "FusedAdam": _step_number,
    "DeepSpeedCPUAdam": _step_number,
}
"""By the class of the inner optimizer."""


def _step_counter(engine: Any) -> Callable[[dict[str, Any], Master, int], None]:
    name = type(engine.basic_optimizer).__name__
    if name not in _STEP_COUNTERS:
        raise UserError("ds_config: optimizer.type", f"is {name}", f"choose one of {', '.join(_STEP_COUNTERS)}")
    return _STEP_COUNTERS[name]
