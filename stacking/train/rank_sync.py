"""Synchronises decisions between ranks with gloo on the CPU, without synchronising GPUs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from stacking.errors import LostLock
from stacking.run.lease import Watch

_T = TypeVar("_T")


class Agreement:
    """Lets the ranks count, decide and stop together.

    SIGTERM (a scheduler's preemption, Ctrl-C through the controller) and SIGUSR1 (SLURM's warning before a time
    limit) to any rank make all ranks write a checkpoint and stop at the same step.

    Args:
        watch: the watch on the run's lock. If rank 0 has lost the lock, all ranks stop together without writing.
    """

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch = watch if dist.get_rank() == 0 else None
        self._group = dist.new_group(backend="gloo")
        self._stop_asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stop_asked = True

    def exchange(self, *counts: int) -> tuple[list[int], bool]:
        """Returns the sums of ``counts`` over the ranks, and whether any rank was asked to stop.

        Raises:
            LostLock: another controller has taken over the run; raised on all ranks.
        """
        lost = self._watch is not None and self._watch.is_lost()
        numbers = torch.tensor([*counts, self._stop_asked, lost], dtype=torch.int64)
        dist.all_reduce(numbers, group=self._group)
        *totals, stops, losses = numbers.tolist()
        if losses:
            raise LostLock()
        return totals, stops > 0

    def least(self, number: int) -> int:
        """Returns the minimum of ``number`` over the ranks."""
        numbers = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MIN, group=self._group)
        return int(numbers.item())

    def decided(self, decide: Callable[[], _T]) -> _T:
        """Returns rank 0's decision on all ranks, since a file system may show the others stale content."""
        values = [decide() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return cast(_T, values[0])

    def gathered(self, value: _T) -> list[_T]:
        """Returns every rank's ``value``, in rank order."""
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values
