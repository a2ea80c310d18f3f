"""Measures `stacking glue` against what Hugging Face's run_glue computes: the same model, padded to 128 tokens.

Both train in this process, in turns, with the same updates, optimizer and classifier. They differ in what is measured:
this project's model without padding on batches of similar length, and transformers' model on padded ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stacking.errors import UserError
from stacking.glue.encode import encode, load_tokenizer
from stacking.glue.encoders import SentenceEncoder, StackingEncoder, of_transformers, open_encoder
from stacking.glue.fine_tune import Classifier, TrainingSet, fine_tune, predict
from stacking.glue.metrics import score
from stacking.glue.model_source import ModelSource, find_model
from stacking.glue.recipes import FineTuning, settings
from stacking.glue.source import open_source
from stacking.glue.tasks import GlueTask

OURS, RUN_GLUE = "stacking glue", "run_glue"
PADDED_TO = 128


@dataclass(frozen=True)
class GlueSpeed:
    """The trainings of one task by one contender."""

    task: str
    contender: str
    updates: int
    seconds: list[float]
    """Of training, per repeat."""
    scores: dict[str, list[float]]
    """Per metric and repeat, on the first development set."""
    speedup: float
    """Median over the repeats of run_glue's seconds divided by this contender's."""


class _Race:
    """One task, and both contenders at their common start."""

    def __init__(self, source: ModelSource, data: str, task: GlueTask, recipe: FineTuning) -> None:
        self._task, self._recipe = task, recipe
        tokenizer, read = load_tokenizer(source.tokenizer, of_bert=True), open_source(data)
        train, dev = read.train(task), read.dev(task, task.held[0])
        assert train.labels is not None and dev.labels is not None
        self._training = TrainingSet(encode(tokenizer, train.first, train.second, PADDED_TO), train.labels)
        self._dev, self._labels = encode(tokenizer, dev.first, dev.second, PADDED_TO), dev.labels
        self._encoders = _contenders(source, recipe)
        self._starts = {name: _copied(encoder) for name, encoder in self._encoders.items()}

    def run(self, name: str, seed: int) -> tuple[float, int, dict[str, float]]:
        """Returns the seconds of a training, its updates, and its scores."""
        encoder = self._encoders[name]
        encoder.load_state_dict(self._starts[name])
        torch.manual_seed(seed)
        model = Classifier(encoder, self._task, self._recipe)
        started = time.perf_counter()
        trained = fine_tune(model, self._training, self._task, self._recipe, seed, lambda done, total: None)
        seconds = time.perf_counter() - started
        predicted = predict(model, self._dev, self._task, self._recipe)
        return seconds, trained.steps, score(self._task, self._labels, predicted)


def _contenders(source: ModelSource, recipe: FineTuning) -> dict[str, SentenceEncoder]:
    ours, _ = open_encoder(source, recipe, torch.device("cpu"))
    if not isinstance(ours, StackingEncoder):
        raise UserError(source.path, "is not a BERT, so both would be transformers' model", "give a BERT")
    return {OURS: ours, RUN_GLUE: of_transformers(source, recipe, padded_to=min(PADDED_TO, ours.longest))}


def _copied(encoder: SentenceEncoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def bench_glue(
    model: Path,
    data: str,
    tasks: Sequence[GlueTask],
    changes: Sequence[str],
    repeats: int,
    tell: Callable[[str], None],
) -> list[GlueSpeed]:
    """Trains every task ``repeats`` times with each contender, in another order each time.

    Args:
        changes: of the recipe ``run_glue``, such as ``max_steps=100``.

    Raises:
        UserError: the model is not a Hugging Face BERT, or the data cannot be used.
    """
    if not (model / "config.json").is_file():
        raise UserError(model, "is not a Hugging Face folder, which transformers could load", "export it first")
    source = find_model(model)
    results = []
    for task in tasks:
        recipe = settings("run_glue", changes)[task.name]
        race = _Race(source, data, task, recipe)
        runs: dict[str, list[tuple[float, int, dict[str, float]]]] = {OURS: [], RUN_GLUE: []}
        for seed in range(repeats):
            for name in (OURS, RUN_GLUE) if seed % 2 == 0 else (RUN_GLUE, OURS):
                tell(f"{task.name}, seed {seed}: {name}")
                runs[name].append(race.run(name, seed))
        results += [_speed(task, name, runs) for name in runs]
    return results


def _speed(task: GlueTask, name: str, runs: dict[str, list[tuple[float, int, dict[str, float]]]]) -> GlueSpeed:
    own = runs[name]
    return GlueSpeed(
        task=task.name,
        contender=name,
        updates=own[0][1],
        seconds=[round(seconds, 3) for seconds, _, _ in own],
        scores={metric: [scores[metric] for _, _, scores in own] for metric in task.metrics},
        speedup=median(theirs[0] / ours[0] for theirs, ours in zip(runs[RUN_GLUE], own, strict=True)),
    )


def as_dicts(results: Sequence[GlueSpeed]) -> list[dict[str, Any]]:
    """Returns the results for JSON."""
    return [asdict(result) for result in results]


def as_text(results: Sequence[GlueSpeed]) -> str:
    """Returns one line per task and contender: median seconds and scores with their range."""
    lines = [f"{'task':8}{'contender':16}{'updates':>8}{'seconds':>10}{'speed-up':>10}  scores: median (range)"]
    for one in results:
        scores = ", ".join(
            f"{metric} {100 * float(np.median(values)):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"
            for metric, values in one.scores.items()
        )
        seconds, speedup = f"{median(one.seconds):.1f}", f"{one.speedup:.2f}×"
        lines.append(f"{one.task:8}{one.contender:16}{one.updates:>8,}{seconds:>10}{speedup:>10}  {scores}")
    return "\n".join(lines)
