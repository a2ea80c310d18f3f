"""What the ranks tell each other, over gloo and on the CPU, so that no GPU is waited for."""

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
    limit) to any rank ask for a checkpoint and an orderly end of all of them at the same step.

    Args:
        watch: of the run's lock. When rank 0 sees that it is lost, all ranks stop together and write nothing more.
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
        """Return the sums of ``counts`` over the ranks, and whether any rank was asked to stop.

        Raises:
            LostLock: on all ranks, once another controller has taken the run over.
        """
        lost = self._watch is not None and self._watch.is_lost()
        numbers = torch.tensor([*counts, self._stop_asked, lost], dtype=torch.int64)
        dist.all_reduce(numbers, group=self._group)
        *totals, stops, losses = numbers.tolist()
        if losses:
            raise LostLock()
        return totals, stops > 0

    def least(self, number: int) -> int:
        """The smallest ``number`` that a rank gives."""
        numbers = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MIN, group=self._group)
        return int(numbers.item())

    def decided(self, decide: Callable[[], _T]) -> _T:
        """What rank 0 decides: the others do not look for themselves, as a file system may show them stale content."""
        values = [decide() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return cast(_T, values[0])

    def gathered(self, value: _T) -> list[_T]:
        """Every rank's ``value``, in the order of the ranks."""
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values
