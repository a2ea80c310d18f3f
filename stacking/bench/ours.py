"""This program's own training step, as in `stacking.train.loop`."""

from __future__ import annotations

from collections.abc import Sequence

from stacking.bench.contender import Contender, Sections, unmeasured
from stacking.bench.trial import Trial
from stacking.data.unpad import Unpadded
from stacking.train.allocator import keep_freed_memory
from stacking.train.engine import chosen_kernels, start_engine
from stacking.train.loader import MicroBatch, with_padding, without_padding
from stacking.train.randomness import seed_dropout
from stacking.train.rank_sync import Agreement


class Stacking(Contender):
    """What `stacking run` does per update, without logging and checkpoints."""

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
                self.engine.backward(loss)
            with sections("optimizer"):
                self.engine.step()

    def chosen(self) -> dict[str, str]:
        return {"optimizer": self.optimizer_name(), **chosen_kernels(self.engine, self.stage)}


class Padded(Stacking):
    """The same, but the model computes the padding."""

    executes_needed = False

    def prepare(self, batch: Unpadded) -> MicroBatch:
        return with_padding(self.padded(batch), self.engine.device)


class Recomputed(Stacking):
    """The same with activation checkpointing: the backward pass recomputes every layer."""

    executes_needed = False

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.engine.module.recompute = True

    def chosen(self) -> dict[str, str]:
        return {**super().chosen(), "activation checkpointing": "each layer"}
