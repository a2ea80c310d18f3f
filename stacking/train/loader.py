"""From sample numbers to tensors on the device: which rank trains on which samples, prepared one update ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stacking.data.batch import Batch
from stacking.data.sampler import Sampler
from stacking.plan import Stage


@dataclass(frozen=True)
class MicroBatch:
    """The arguments of one forward pass, and how much they hold."""

    inputs: tuple[Tensor | None, ...]
    """``input_ids, segment_ids, attention_mask, mlm_positions, mlm_labels, nsp_labels``."""
    predictions: int
    """Masked positions."""


@dataclass(frozen=True)
class Update:
    """All micro-batches of one rank for one optimizer step."""

    micro_batches: Sequence[MicroBatch]

    @property
    def predictions(self) -> int:
        return sum(micro.predictions for micro in self.micro_batches)


def sample_numbers(stage: Stage, step: int, rank: int) -> np.ndarray:
    """The global sample numbers of ``rank`` at update ``step`` of the stage: int64 [accumulation, micro_batch].

    Update ``step`` covers ``global_batch`` consecutive samples, whatever the number of ranks.
    """
    first = stage.first_sample + step * stage.global_batch
    update = np.arange(first, first + stage.global_batch, dtype=np.int64)
    return update.reshape(stage.accumulation, stage.ranks, stage.micro_batch)[:, rank]


def to_device(batch: Batch, device: torch.device) -> MicroBatch:
    """Copy a batch to ``device`` without waiting for the copy; the mask is dropped where nothing is padded."""
    mask = None if batch.attention_mask.all() else batch.attention_mask
    arrays = (batch.input_ids, batch.segment_ids, mask, batch.mlm_positions, batch.mlm_labels, batch.nsp_labels)
    return MicroBatch(tuple(_tensor(array, device) for array in arrays), len(batch.mlm_positions))


def updates(sampler: Sampler, stage: Stage, first_step: int, rank: int, device: torch.device) -> Iterator[Update]:
    """The updates of ``rank`` from ``first_step`` to the end of the stage; a thread prepares the next one."""

    def prepare(step: int) -> Update:
        return Update([to_device(sampler.batch(row), device) for row in sample_numbers(stage, step, rank)])

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
        ahead: Future[Update] = pool.submit(prepare, first_step)
        for step in range(first_step, stage.steps):
            ready = ahead.result()
            if step + 1 < stage.steps:
                ahead = pool.submit(prepare, step + 1)
            yield ready


def _tensor(array: np.ndarray | None, device: torch.device) -> Tensor | None:
    if array is None:
        return None
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
