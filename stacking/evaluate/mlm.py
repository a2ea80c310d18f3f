"""Evaluates the prediction of masked tokens and next sentences, without gradients or dropout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS
from stacking.data.samples import build_samples
from stacking.data.unpad import Unpadded
from stacking.errors import UserError
from stacking.huggingface.export import read_model, read_weights
from stacking.model.bert import Bert, build
from stacking.model.config import ModelConfig
from stacking.model.cross_entropy import summed_cross_entropy
from stacking.model.tokens import copied, to, unpadded_tokens
from stacking.state.format import TrainingState
from stacking.storage.files import MANIFEST


class Scores(NamedTuple):
    """Means over masked tokens and over sentence pairs; the latter are NaN for samples without pairs."""

    mlm_loss: float
    nsp_loss: float
    mlm_accuracy: float
    nsp_accuracy: float


@torch.no_grad()
def evaluate(model: Bert, batches: Iterable[Unpadded]) -> Scores:
    """Scores ``model`` on ``batches``, on its own device and in its own precision.

    The model's training mode is restored afterwards.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    mlm, nsp = _Tally(), _Tally()
    for batch in batches:
        mlm_logits, nsp_logits = model.heads(to(unpadded_tokens(batch), device))
        mlm.add(mlm_logits, copied(torch.from_numpy(batch.mlm_labels), device))
        if batch.nsp_labels is not None:
            nsp.add(nsp_logits, copied(torch.from_numpy(batch.nsp_labels), device))
    model.train(was_training)
    return Scores(mlm.loss, nsp.loss, mlm.accuracy, nsp.accuracy)


def evaluate_state(
    state: Path,
    data: Path,
    samples: int,
    seed: int,
    kind: str = "segment-pair",
    sequence_length: int = 128,
    mask_probability: float = 0.15,
    batch_size: int = 32,
) -> Scores:
    """Scores a state folder on the first ``samples`` held-out samples of a prepared data folder.

    Args:
        seed: equal seeds give equal sentence pairs and masks.
        kind: the kind of samples, a key of ``stacking.data.sampler.SAMPLERS``.

    Raises:
        UserError: ``state`` or ``data`` is invalid, or they do not fit together.
    """
    model = load_model(state)
    corpus = Corpus(data, split="held_out")
    _check_fits(model.config, corpus, sequence_length)
    index = build_samples(corpus, kind, sequence_length)
    sampler = SAMPLERS[kind](corpus, index, sequence_length, seed, mask_probability)
    numbers = np.arange(min(samples, len(sampler)), dtype=np.int64)
    return evaluate(
        model, (sampler.unpadded(numbers[at : at + batch_size]) for at in range(0, len(numbers), batch_size))
    )


def load_model(path: Path) -> Bert:
    """Loads the model of a state folder in fp32 on the CPU.

    Raises:
        UserError: it is not a state folder, or does not describe a model.
        DamagedFile: a file is truncated or altered.
    """
    state, config = read_model(path)
    return model_of(state, config)


def model_of(state: TrainingState, config: ModelConfig) -> Bert:
    """Returns a model in fp32 on the CPU with the weights of ``state``."""
    model = build(config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in read_weights(state, config):
            parameters[name].copy_(torch.from_numpy(values))
    return model


def _check_fits(config: ModelConfig, corpus: Corpus, sequence_length: int) -> None:
    if corpus.vocabulary > config.vocabulary:
        problem = f"is {corpus.vocabulary:,}, but the model embeds {config.vocabulary:,} tokens"
        raise UserError(f"{corpus.folder / MANIFEST}: vocabulary", problem, "give the data that the model was made for")
    if sequence_length > config.max_positions:
        problem = f"{sequence_length} tokens are more than the model's {config.max_positions} positions"
        raise UserError("sequence_length", problem, f"use {config.max_positions} or less")


class _Tally:
    """Sums of losses and hits, and the means derived from them."""

    def __init__(self) -> None:
        self._loss = self._hits = 0.0
        self._count = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        self._loss += summed_cross_entropy(logits, labels).item()
        self._hits += (logits.argmax(dim=-1) == labels).sum().item()
        self._count += len(labels)

    @property
    def loss(self) -> float:
        return self._loss / self._count if self._count else float("nan")

    @property
    def accuracy(self) -> float:
        return self._hits / self._count if self._count else float("nan")
