"""The held-out losses during training."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine

from stacking.config.recipe import Evaluation
from stacking.data.sampler import Sampler
from stacking.planning.plan import Stage
from stacking.train.loader import without_padding


class HeldOutLosses(NamedTuple):
    """Means over the held-out samples; ``seconds`` is what it took."""

    loss: float
    mlm_loss: float
    nsp_loss: float
    seconds: float


class HeldOut:
    """The first ``samples`` held-out samples, with the same masks and pairs every time, shared among the ranks."""

    def __init__(self, sampler: Sampler, settings: Evaluation, stage: Stage, rank: int) -> None:
        self._sampler, self._settings, self._stage = sampler, settings, stage
        count = min(settings.samples, len(sampler))
        # Every rank must make the same number of forward passes, so that collectives inside them meet. Where there are
        # fewer samples than ranks, each rank scores all of them, which leaves the means as they are.
        shared = np.arange(count - count % stage.ranks, dtype=np.int64)[rank :: stage.ranks]
        mine = shared if len(shared) else np.arange(count, dtype=np.int64)
        self._chunks = [mine[at : at + stage.micro_batch] for at in range(0, len(mine), stage.micro_batch)]

    def is_due(self, step: int) -> bool:
        """Whether the losses are wanted after update ``step`` (from 1)."""
        every = self._settings.every_steps
        return step == self._stage.steps or step % every == 0

    def losses(self, engine: DeepSpeedEngine) -> HeldOutLosses:
        """Evaluate without dropout and without gradients; the training's state is left as it is."""
        started = time.perf_counter()
        sums = torch.zeros(4, dtype=torch.float64, device=engine.device)
        engine.eval()
        with torch.no_grad():
            for numbers in self._chunks:
                grouped = engine.module.kernels.grouped
                micro = without_padding(self._sampler.unpadded(numbers), engine.device, grouped)
                mlm, nsp = engine(*micro.inputs)
                sums += torch.stack([mlm.double(), nsp.double(), *sums.new_tensor([micro.predictions, len(numbers)])])
        engine.train()
        dist.all_reduce(sums)
        mlm_sum, nsp_sum, predictions, samples = sums.tolist()
        mlm_loss, nsp_loss = mlm_sum / predictions, nsp_sum / samples
        return HeldOutLosses(mlm_loss + nsp_loss, mlm_loss, nsp_loss, time.perf_counter() - started)
