"""Counts the work in a batch: the numerators of every rate that a benchmark prints."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from stacking.data.unpad import Unpadded
from stacking.model.config import ModelConfig
from stacking.model.size import executed_flops, training_flops


@dataclass(frozen=True)
class Counts:
    """The work in a batch, or in several."""

    real_tokens: float = 0
    flops: float = 0
    """Model FLOPs, forward and backward."""
    executed_flops: float = 0
    """Those of them that this program's model executes."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Counter:
    """Counts batches for one model.

    Model FLOPs follow the definition of MFU (Chowdhery et al., 2022, PaLM, appendix B): every matrix of every layer at
    every real token, attention over real lengths, the MLM head at the masked positions. They exclude padding,
    recomputation and a head over all positions, and are not reduced by work that an implementation skips, such as
    unused outputs of the last layer. So the same batch has the same FLOPs for every contender.
    """

    def __init__(self, model: ModelConfig, sequence_length: int) -> None:
        self._model = model
        self._encoder = np.array([training_flops(model, n, 0) for n in range(sequence_length + 1)])
        self._prediction = training_flops(model, 0, 1)

    def __call__(self, batch: Unpadded) -> Counts:
        lengths, predictions = batch.lengths, len(batch.mlm_positions)
        sequence = np.searchsorted(np.cumsum(lengths), batch.mlm_positions, side="right")
        masked = np.bincount(sequence, minlength=len(lengths))
        pairs = zip(lengths.tolist(), masked.tolist(), strict=True)
        return Counts(
            real_tokens=int(lengths.sum()),
            flops=float(self._encoder[lengths].sum() + predictions * self._prediction),
            executed_flops=sum(executed_flops(self._model, length, count) for length, count in pairs),
        )
