"""Assigns samples to ranks and copies them to the device, prepared one update ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from stacking.data.batch import I64, Batch
from stacking.data.sampler import Sampler
from stacking.data.unpad import Unpadded
from stacking.model.tokens import Tokens, copied, padded_tokens, to, unpadded_tokens
from stacking.planning.plan import StagePlan


@dataclass(frozen=True)
class MicroBatch:
    """Holds the arguments of one forward pass and their sizes."""

    inputs: tuple[Tokens, Tensor, Tensor | None]
    """The model's inputs, ``mlm_labels`` and ``nsp_labels``."""
    predictions: int
    """Number of masked positions."""
    tokens: int
    """Number of tokens without padding."""


@dataclass(frozen=True)
class Update:
    """Holds all micro-batches of one rank for one optimizer step."""

    micro_batches: Sequence[MicroBatch]

    @property
    def predictions(self) -> int:
        """The number of masked positions on this rank."""
        return sum(micro.predictions for micro in self.micro_batches)

    @property
    def tokens(self) -> int:
        """The number of tokens on this rank, without padding."""
        return sum(micro.tokens for micro in self.micro_batches)


def sample_numbers(stage: StagePlan, step: int, rank: int) -> np.ndarray:
    """Returns the global sample numbers of ``rank`` at update ``step`` of the stage.

    Update ``step`` covers ``global_batch`` consecutive samples, whatever the number of ranks.

    Returns:
        int64 [accumulation, micro_batch].
    """
    first = stage.first_sample + step * stage.global_batch
    update = np.arange(first, first + stage.global_batch, dtype=np.int64)
    return update.reshape(stage.accumulation, stage.ranks, stage.micro_batch)[:, rank]


def without_padding(batch: Unpadded, device: torch.device, grouped: bool = True) -> MicroBatch:
    """Copies the tokens without padding to ``device`` asynchronously; ``grouped`` as in `unpadded_tokens`."""
    tokens = to(unpadded_tokens(batch, grouped), device)
    return _micro_batch(tokens, batch.mlm_labels, batch.nsp_labels, len(batch.input_ids))


def with_padding(batch: Batch, device: torch.device) -> MicroBatch:
    """Copies all B x S positions, including padding, to ``device``; for comparison with `without_padding`."""
    arrays = (batch.input_ids, batch.segment_ids, batch.attention_mask, batch.mlm_positions)
    tokens = to(padded_tokens(*arrays), device)
    return _micro_batch(tokens, batch.mlm_labels, batch.nsp_labels, int(np.count_nonzero(batch.attention_mask)))


def updates(
    sampler: Sampler, stage: StagePlan, first_step: int, rank: int, device: torch.device, grouped: bool
) -> Iterator[Update]:
    """Yields the updates of ``rank`` from ``first_step`` to the end of the stage; a thread prepares the next one."""
    steps = range(first_step, stage.steps)
    numbers = (row for step in steps for row in sample_numbers(stage, step, rank))
    micro_batches = (without_padding(drawn, device, grouped) for drawn in sampler.stream(numbers))

    def prepare() -> Update:
        return Update(list(islice(micro_batches, stage.accumulation)))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
        ahead: Future[Update] = pool.submit(prepare)
        for _ in steps:
            ready = ahead.result()
            ahead = pool.submit(prepare)
            yield ready


def _micro_batch(tokens: Tokens, mlm_labels: I64, nsp_labels: I64 | None, real: int) -> MicroBatch:
    device = tokens.input_ids.device
    nsp = None if nsp_labels is None else copied(torch.from_numpy(nsp_labels), device)
    return MicroBatch((tokens, copied(torch.from_numpy(mlm_labels), device), nsp), len(mlm_labels), real)
