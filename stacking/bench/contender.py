"""What takes part in a benchmark: a DeepSpeed engine, and how it gets from a batch to an update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from deepspeed.runtime.engine import DeepSpeedEngine

from stacking.bench.trial import Section, Trial
from stacking.data.batch import Batch
from stacking.data.unpad import Unpadded, pad
from stacking.train.allocator import return_freed_memory

Sections = Callable[[Section], AbstractContextManager[None]]


def unmeasured(section: Section) -> AbstractContextManager[None]:
    """For throughput: nothing waits between the parts of a step."""
    return nullcontext()


class Contender(ABC):
    """One way to do the work of a stage. All ranks make the same ones in the same order.

    A subclass makes ``self.engine`` when it is constructed, and takes nothing from another contender.
    """

    engine: DeepSpeedEngine

    def __init__(self, trial: Trial) -> None:
        self.plan, self.stage = trial.plan, trial.planned

    def begin_turn(self) -> None:
        """Called before this contender's steps: what its process would be like if it were alone."""
        return_freed_memory()

    @abstractmethod
    def prepare(self, batch: Unpadded) -> Any:
        """A micro-batch on the device, as this contender wants it."""

    @abstractmethod
    def update(self, micro_batches: Sequence[Any], step: int, sections: Sections = unmeasured) -> None:
        """One optimizer step: what the contender's user has in the training loop, and nothing else."""

    @abstractmethod
    def chosen(self) -> dict[str, str]:
        """Which implementation does what, as far as the contender knows."""

    def padded(self, batch: Unpadded) -> Batch:
        """``batch`` as rows of the full sequence length."""
        numbers = np.arange(len(batch.lengths))
        return pad(batch, self.plan.data.sequence_length, self.plan.model.padding_id, numbers)

    def optimizer_name(self) -> str:
        """DeepSpeed's wrapper and what is inside: ``DeepSpeedZeroOptimizer(AdamW)``."""
        names, optimizer = [], self.engine.optimizer
        while optimizer is not None:
            names.append(_with_kernel(optimizer))
            optimizer = getattr(optimizer, "optimizer", None)
        return "(".join(names) + ")" * (len(names) - 1)


def _with_kernel(optimizer: Any) -> str:
    """``AdamW fused``: torch's optimizers have three implementations under one name."""
    defaults = getattr(optimizer, "defaults", None) or {}
    kernel = next((name for name in ("fused", "foreach") if defaults.get(name)), "")
    return f"{type(optimizer).__name__} {kernel}".rstrip()
