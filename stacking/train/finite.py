"""Checks at every update and before every checkpoint that training is finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stacking.errors import Diverged
from stacking.planning.plan import StagePlan
from stacking.run.checkpoints import checkpoints, step_of
from stacking.run.folder import command
from stacking.state.deepspeed_optimizers import adapter_of
from stacking.state.deepspeed_private import inner_optimizer
from stacking.state.format import MOMENTS
from stacking.storage.partition import Piece

PATIENCE = 5
"""Consecutive updates with a non-finite loss that end training; fp16 may skip a single one and recover."""


def diverged(problem: str, stage: StagePlan, folder: Path) -> Diverged:
    """Returns the error that ends training; it names the problem, the last good checkpoint and possible remedies.

    Args:
        folder: the stage's checkpoint folder.
    """
    kept = checkpoints(folder)
    good = f"{kept[-1]} is good" if kept else "the stage has no checkpoint yet"
    remedy = "resuming would fail again: start a new run with a lower learning rate or another precision"
    if kept:
        remedy += f", or go back with `{command('resume', folder.parent.parent)} --from-step {step_of(kept[-1])}`"
    return Diverged(f"{stage.name}: {problem}; {good}; {remedy}")


class FiniteWatch:
    """Counts consecutive updates of this rank whose values were not finite.

    Does not synchronise with a CUDA device: values count once they have arrived in host memory.

    Args:
        patience: consecutive non-finite updates that end training.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        self._streak, self._patience = 0, patience
        self._coming: deque[tuple[Tensor, Any]] = deque()

    def note(self, values: Tensor) -> None:
        """Adds the values of one update."""
        finite = torch.isfinite(values).all()
        if finite.is_cuda:
            copy = torch.empty((), dtype=torch.bool, pin_memory=True)
            copy.copy_(finite, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._coming.append((copy, event))
        else:
            self._count(finite)

    @property
    def lost(self) -> bool:
        """Returns whether the latest known values were non-finite for too long."""
        while self._coming and self._coming[0][1].query():
            self._count(self._coming.popleft()[0])
        return self._streak >= self._patience

    def _count(self, finite: Tensor) -> None:
        if self._streak < self._patience:  # what follows cannot undo it
            self._streak = 0 if finite else self._streak + 1


def applied_norm(engine: Any) -> Tensor | None:
    """Returns the norm of the gradients of the latest update, NaN where it was not finite; None if it was not applied.

    DeepSpeed computes it to clip, and skips an update where it looks for overflows, as in fp16. Elsewhere it applies
    the update whatever the norm is, and some of its optimizers write -1 for one that is not finite.
    """
    norm = engine.get_global_grad_norm()
    if norm is None or not engine.was_step_applied():
        return None
    norm = torch.as_tensor(norm, dtype=torch.float32)
    return torch.where(norm < 0, math.nan, norm)


@torch.no_grad()
def first_not_finite(engine: Any) -> int | None:
    """Returns the index of the first parameter of which this rank holds non-finite values, or None.

    Checks both moments and the master weights, which must be finite in the precision that the model computes in. Reads
    them in place, in one pass without copies.
    """
    order = {name: position for position, (name, _) in enumerate(engine.module.named_parameters())}
    held = [(values, pieces, dtype) for values, pieces, dtype in _held(engine) if values.numel()]
    if _all_finite([(values, dtype) for values, _, dtype in held]):
        return None
    bad = [
        order[piece.name]
        for values, pieces, dtype in held
        for piece in pieces
        if not torch.isfinite(values.narrow(0, piece.offset, piece.numel).to(dtype)).all()
    ]
    return min(bad, default=None)  # None if only the padding of a partition is bad, since nothing is computed with it


def _held(engine: Any) -> Iterator[tuple[Tensor, list[Piece], torch.dtype]]:
    """Yields this rank's flat tensors, the parameter pieces in them, and the dtype in which their values are used."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    computed = next(engine.module.parameters()).dtype
    for master in adapter_of(engine).masters(engine, names):
        moments = inner_optimizer(engine).state.get(master.tensor, {})
        yield master.tensor.data.view(-1), master.pieces, computed
        for kind in MOMENTS:
            if kind in moments:
                yield moments[kind].data.view(-1), master.pieces, moments[kind].dtype


def _all_finite(tensors: list[tuple[Tensor, torch.dtype]]) -> bool:
    """Returns whether all values are finite, from their extremes, which propagate NaN; synchronises once."""
    extremes: dict[torch.device, list[Tensor]] = {}
    for tensor, dtype in tensors:
        found = [value.to(dtype).float() for value in torch.aminmax(tensor)]
        extremes.setdefault(tensor.device, []).extend(found)
    return all(bool(torch.isfinite(torch.stack(values)).all()) for values in extremes.values())
