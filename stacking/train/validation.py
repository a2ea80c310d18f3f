"""Computes held-out losses during training."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from stacking.config.recipe import Evaluation
from stacking.data.sampler import Sampler
from stacking.planning.plan import StagePlan
from stacking.train.loader import without_padding

CHUNK = 8
"""Samples per forward pass, whatever the micro-batch; without gradients they need less memory than training."""


class HeldOutLosses(NamedTuple):
    """Holds means over the held-out samples; ``seconds`` is the duration of the evaluation."""

    loss: float
    mlm_loss: float
    nsp_loss: float
    seconds: float


class HeldOut:
    """Scores the first ``samples`` held-out samples, always with the same masks and pairs, distributed over the ranks.

    Each chunk of `CHUNK` samples is scored by one rank, and the chunks' sums are added in order without rounding. The
    losses are therefore independent of the number of ranks, provided that the kernels give the same sums for the same
    chunk (on a CPU: with the same number of threads).
    """

    def __init__(self, sampler: Sampler, settings: Evaluation, stage: StagePlan, rank: int) -> None:
        self._sampler, self._settings, self._stage = sampler, settings, stage
        count = min(settings.samples, len(sampler))
        chunks = [np.arange(at, min(at + CHUNK, count), dtype=np.int64) for at in range(0, count, CHUNK)]
        self._rows = len(chunks)
        # Every rank must make the same number of forward passes so that their collectives match: a rank without a
        # chunk scores one again and drops the result.
        places = range(rank, -(-len(chunks) // stage.ranks) * stage.ranks, stage.ranks)
        self._chunks = [(place, chunks[place % len(chunks)]) for place in places]

    def is_due(self, step: int) -> bool:
        """Returns whether an evaluation is due after update ``step`` (from 1)."""
        every = self._settings.every_steps
        return step == self._stage.steps or step % every == 0

    def losses(self, engine: DeepSpeedEngine) -> HeldOutLosses:
        """Evaluates without dropout and gradients; does not change the training state."""
        started = time.perf_counter()
        sums = torch.zeros(self._rows, 4, dtype=torch.float64, device=engine.device)
        for place, numbers in self._chunks:
            scored = self._score(engine, numbers)
            if place < self._rows:
                sums[place] = scored
        dist.all_reduce(sums)  # exact: each row comes from one rank, and the others add zero
        mlm_sum, nsp_sum, predictions, samples = (math.fsum(column) for column in sums.t().tolist())
        mlm_loss, nsp_loss = mlm_sum / predictions, nsp_sum / samples
        return HeldOutLosses(mlm_loss + nsp_loss, mlm_loss, nsp_loss, time.perf_counter() - started)

    def is_finite(self, engine: DeepSpeedEngine) -> bool:
        """Returns whether the loss of one chunk is finite on this rank; all ranks must call this together."""
        return bool(torch.isfinite(self._score(engine, self._chunks[0][1])).all())

    @torch.no_grad()
    def _score(self, engine: DeepSpeedEngine, numbers: np.ndarray) -> Tensor:
        """Scores one chunk.

        Returns:
            float64 [4]: the summed MLM and NSP losses, the masked positions and the samples.
        """
        engine.eval()
        micro = without_padding(self._sampler.unpadded(numbers), engine.device, engine.module.kernels.grouped)
        mlm, nsp = engine(*micro.inputs)
        engine.train()
        counts = torch.tensor([micro.predictions, len(numbers)], dtype=torch.float64, device=engine.device)
        return torch.cat([torch.stack([mlm.double(), nsp.double()]), counts])
