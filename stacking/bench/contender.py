"""Defines the contenders in a benchmark: a DeepSpeed engine and the path from a batch to an update, in several ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from deepspeed.runtime.engine import DeepSpeedEngine

from stacking.bench.trial import Section, Trial
from stacking.data.batch import Batch
from stacking.data.unpad import Unpadded, pad
from stacking.state.loss_scale import as_backward_takes_it
from stacking.train.allocator import keep_freed_memory, return_freed_memory
from stacking.train.engine import chosen_kernels, start_engine
from stacking.train.loader import MicroBatch, with_padding, without_padding
from stacking.train.randomness import seed_dropout
from stacking.train.rank_sync import Agreement

Sections = Callable[[Section], AbstractContextManager[None]]


def unmeasured(section: Section) -> AbstractContextManager[None]:
    """Measures nothing: for throughput, the parts of a step must not be synchronised."""
    return nullcontext()


class Contender(ABC):
    """One implementation of a stage's training step. All ranks create the same contenders in the same order.

    A subclass creates ``self.engine`` in its constructor and shares nothing with another contender.
    """

    engine: DeepSpeedEngine
    executes_needed = False
    """Whether it executes `stacking.model.size.executed_flops`."""

    def __init__(self, trial: Trial) -> None:
        self.plan, self.stage = trial.plan, trial.planned

    def begin_turn(self) -> None:
        """Prepares the process before this contender's steps, as if it were alone in it."""
        return_freed_memory()

    @abstractmethod
    def prepare(self, batch: Unpadded) -> Any:
        """Returns a micro-batch on the device, in the form that this contender needs."""

    @abstractmethod
    def update(self, micro_batches: Sequence[Any], step: int, sections: Sections = unmeasured) -> None:
        """Takes one optimizer step: exactly what the contender's user has in the training loop."""

    @abstractmethod
    def chosen(self) -> dict[str, str]:
        """Returns the implementations in use, as far as the contender knows them."""

    def padded(self, batch: Unpadded) -> Batch:
        """Returns ``batch`` as rows of the full sequence length."""
        return pad(batch, self.plan.data.sequence_length, self.plan.model.padding_id)

    def optimizer_name(self) -> str:
        """Names DeepSpeed's wrapper and the optimizer inside: ``DeepSpeedZeroOptimizer(AdamW)``."""
        names, optimizer = [], self.engine.optimizer
        while optimizer is not None:
            names.append(_with_kernel(optimizer))
            optimizer = getattr(optimizer, "optimizer", None)
        return "(".join(names) + ")" * (len(names) - 1)


def _with_kernel(optimizer: Any) -> str:
    """Names the variant, as in ``AdamW fused``: torch's optimizers have three implementations under one name."""
    defaults = getattr(optimizer, "defaults", None) or {}
    kernel = next((name for name in ("fused", "foreach") if defaults.get(name)), "")
    return f"{type(optimizer).__name__} {kernel}".rstrip()


class Stacking(Contender):
    """What `stacking run` does per update (`stacking.train.loop`), without logging and checkpoints."""

    executes_needed = True

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self._agreement = Agreement()
        self.engine = start_engine(self.plan, self.stage)

    def prepare(self, batch: Unpadded) -> MicroBatch:
        return without_padding(batch, self.engine.device, self.engine.module.kernels.grouped)

    def begin_turn(self) -> None:
        keep_freed_memory()

    def update(self, micro_batches: Sequence[MicroBatch], step: int, sections: Sections = unmeasured) -> None:
        stage, share = self.stage, self.stage.accumulation * self.stage.ranks
        with sections("communication"):
            (predictions,), _ = self._agreement.exchange(sum(micro.predictions for micro in micro_batches))
        for micro_step, micro in enumerate(micro_batches):
            with sections("forward"):
                seed_dropout(self.plan.seed, stage.first_step + step, micro_step, self.engine.global_rank)
                mlm, nsp = self.engine(*micro.inputs)
                loss = (mlm / predictions + nsp / stage.global_batch) * share
            with sections("backward"):
                self.engine.backward(as_backward_takes_it(self.engine, loss))
            with sections("optimizer"):
                self.engine.step()

    def chosen(self) -> dict[str, str]:
        return {"optimizer": self.optimizer_name(), **chosen_kernels(self.engine, self.stage)}


class Padded(Stacking):
    """The same as `Stacking`, but the model also computes the padding."""

    executes_needed = False

    def prepare(self, batch: Unpadded) -> MicroBatch:
        return with_padding(self.padded(batch), self.engine.device)


class Recomputed(Stacking):
    """The same as `Stacking`, but with activation checkpointing: the backward pass recomputes every layer."""

    executes_needed = False

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.engine.module.recompute = True

    def chosen(self) -> dict[str, str]:
        return {**super().chosen(), "activation checkpointing": "each layer"}
