"""Fine-tunes an encoder on one task and predicts. Shapes: B sequences, H hidden, C outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from stacking.glue.encode import Encoded, shuffled_batches, sorted_batches
from stacking.glue.encoders import SentenceEncoder
from stacking.glue.recipes import FineTuning
from stacking.glue.tasks import GlueTask

_HEAD_STD = 0.02
_HEAD_DROPOUT = 0.1
_MIDDLE, _HALF_RANGE = 3.0, 2.0
"""A standardised score is (score − 3) / 2."""
_TOKENS_AT_ONCE = 16_384
"""Bound of a batch that is only predicted."""

Progress = Callable[[int, int], None]
"""Called with the updates done and their total."""


class Classifier(nn.Module):
    """An encoder with dropout and a linear layer on its vectors."""

    def __init__(self, encoder: SentenceEncoder, task: GlueTask, recipe: FineTuning) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(_HEAD_DROPOUT if recipe.dropout is None else recipe.dropout)
        self.head = nn.Linear(encoder.width, task.outputs)
        nn.init.zeros_(self.head.bias)
        if recipe.head == "zero":
            nn.init.zeros_(self.head.weight)
        else:
            nn.init.normal_(self.head.weight, std=_HEAD_STD)

    def forward(self, batch: Any) -> Tensor:
        """Maps a batch to its outputs, [B, C]."""
        outputs: Tensor = self.head(self.dropout(self.encoder(batch)))
        return outputs


class TrainingSet(NamedTuple):
    """N encoded examples."""

    inputs: Encoded
    """N inputs; if sentences are exchanged at random, followed by N with the sentences exchanged."""
    labels: np.ndarray
    """float64 [N]."""


class FineTuned(NamedTuple):
    """Holds the number of updates of a training, and its loss."""

    steps: int
    loss: float
    """Mean over the last tenth of the updates."""


def updates(recipe: FineTuning, examples: int) -> int:
    """Returns the number of updates that ``recipe`` makes on a training set of ``examples``."""
    total = recipe.epochs * math.ceil(examples / recipe.batch)
    return total if recipe.max_steps is None else min(total, recipe.max_steps)


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Returns the share of the peak learning rate in update ``step``, from 0: a linear rise, then a linear fall."""
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return (total - step) / max(total - rise, 1)


def fine_tune(
    model: Classifier, data: TrainingSet, task: GlueTask, recipe: FineTuning, seed: int, progress: Progress
) -> FineTuned:
    """Trains all parameters, with AdamW.

    Args:
        seed: determines order and swaps; dropout draws from torch's default generator.
    """
    total = updates(recipe, len(data.labels))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        eps=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,  # on a CPU, the other one takes almost as long as forward and backward together
    )
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, recipe.warmup))
    model.train()
    losses: list[Tensor] = []
    batches = _endless(data, recipe, np.random.default_rng(seed))
    for step, (batch, numbers) in zip(range(total), batches, strict=False):
        with _precision(recipe, model):
            outputs = model(batch)
        loss = _loss(outputs.float(), data.labels[numbers], task, recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())  # not read yet: that would wait for the GPU
        progress(step + 1, total)
    return FineTuned(total, torch.stack(losses[-max(total // 10, 1) :]).mean().item())


@torch.no_grad()
def predict(model: Classifier, inputs: Encoded, task: GlueTask, recipe: FineTuning) -> np.ndarray:
    """Returns the predicted labels or scores, float64 [N]."""
    model.eval()
    predicted = np.empty(len(inputs.lengths))
    longest = int(inputs.lengths.max(initial=1))
    for numbers in sorted_batches(inputs.lengths, max(_TOKENS_AT_ONCE // longest, 1)):
        with _precision(recipe, model):
            outputs = model(inputs.batch(numbers)).float()
        found = outputs[:, 0] if task.is_regression else outputs.argmax(dim=1)
        predicted[numbers] = found.double().cpu().numpy()
    if task.is_regression and recipe.standardise:
        predicted = predicted * _HALF_RANGE + _MIDDLE
    return predicted


def _endless(data: TrainingSet, recipe: FineTuning, random: np.random.Generator) -> Iterator[tuple[Any, np.ndarray]]:
    count = len(data.labels)
    while True:
        for numbers in shuffled_batches(data.inputs.lengths[:count], recipe.batch, random):
            exchanged = random.integers(2, size=len(numbers)) if recipe.swap_pairs else 0
            yield data.inputs.batch(numbers + count * exchanged), numbers


def _loss(outputs: Tensor, labels: np.ndarray, task: GlueTask, recipe: FineTuning) -> Tensor:
    """Returns the mean cross-entropy, or the mean squared error, of outputs [B, C] as a scalar."""
    if not task.is_regression:
        return F.cross_entropy(outputs, torch.from_numpy(labels.astype(np.int64)).to(outputs.device))
    targets = (labels - _MIDDLE) / _HALF_RANGE if recipe.standardise else labels
    return F.mse_loss(outputs[:, 0], torch.from_numpy(targets).float().to(outputs.device))


def _precision(recipe: FineTuning, model: nn.Module) -> Any:
    if recipe.precision == "fp32":
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16)
