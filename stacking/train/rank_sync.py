"""What the ranks tell each other at every update, over gloo and on the CPU, so that no GPU is waited for."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from stacking.errors import LostLock
from stacking.run.lease import Watch


class Agreement:
    """Sums small integers over all ranks and lets any rank's signal stop all of them at the same step.

    SIGTERM (a scheduler's preemption, Ctrl-C through the controller) and SIGUSR1 (SLURM's warning before a time
    limit) ask for a checkpoint and an orderly end.

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

    def exchange(self, count: int) -> tuple[int, bool]:
        """Return the sum of ``count`` over the ranks, and whether any rank was asked to stop.

        Raises:
            LostLock: on all ranks, once another controller has taken the run over.
        """
        lost = self._watch is not None and self._watch.is_lost()
        numbers = torch.tensor([count, self._stop_asked, lost], dtype=torch.int64)
        dist.all_reduce(numbers, group=self._group)
        total, stops, losses = numbers.tolist()
        if losses:
            raise LostLock()
        return total, stops > 0
