"""This program's own step, as `stacking.train.loop` takes it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from stacking.bench.contender import Contender, Sections, unmeasured
from stacking.bench.trial import Trial
from stacking.data.batch import Batch
from stacking.train import engine as engines
from stacking.train.agreement import Agreement
from stacking.train.loader import MicroBatch, to_device
from stacking.train.randomness import seed_dropout

_PADDED: dict[str, Any] = {"padded": True} if "padded" in inspect.signature(to_device).parameters else {}


class Stacking(Contender):
    """What `stacking run` does for an update, without logging and checkpoints."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self._agreement = Agreement()
        self.engine = engines.start_engine(self.plan, self.stage)

    def prepare(self, batch: Batch) -> MicroBatch:
        return to_device(batch, self.engine.device)

    def update(self, micro_batches: Sequence[MicroBatch], step: int, sections: Sections = unmeasured) -> None:
        stage, share = self.stage, self.stage.accumulation * self.stage.ranks
        with sections("communication"):
            predictions, _ = self._agreement.exchange(sum(micro.predictions for micro in micro_batches))
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
        known: dict[str, str] = getattr(engines, "chosen_kernels", lambda engine: {})(self.engine)
        return {"optimizer": self.optimizer_name(), **known}


class Padded(Stacking):
    """The same, except that the model sees padding."""

    def prepare(self, batch: Batch) -> MicroBatch:
        return to_device(batch, self.engine.device, **_PADDED)
