"""Fine-tunes a model on one task, for several seeds, in a process of its own.

`stacking.glue.command` starts it as `python -m stacking.glue.worker FOLDER`, with ``FOLDER/unit.json``.
"""

from __future__ import annotations

import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_model, save_model

from stacking.errors import UserError
from stacking.glue.encode import Encoded, encode, load_tokenizer
from stacking.glue.encoders import SentenceEncoder, is_bert, open_encoder
from stacking.glue.examples import Examples
from stacking.glue.fine_tune import Classifier, FineTuned, TrainingSet, fine_tune, predict
from stacking.glue.metrics import has_failed, majority, score
from stacking.glue.results import SeedResult, encoder_file, predictions_file, write_predictions, write_result
from stacking.glue.source import hidden_sets, open_source
from stacking.glue.tasks import TASKS, GlueTask
from stacking.glue.unit import PROGRESS, Unit, read_unit
from stacking.launch.rank import run_rank
from stacking.storage.files import write_json

_SECONDS_BETWEEN_REPORTS = 0.5


class _Set(NamedTuple):
    name: str
    examples: Examples
    inputs: Encoded


class _Data(NamedTuple):
    training: TrainingSet
    dev: list[_Set]
    test: list[_Set]
    left_out: int


def main(folder: Path) -> None:
    """Trains every seed of the unit and writes its result before the next one begins."""
    unit = read_unit(folder)
    task, device = TASKS[unit.task], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, notes = open_encoder(unit.model, unit.recipe, device)
    longest = min(unit.recipe.max_length, encoder.longest)
    data = _read(unit, task, longest, encoder)
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    for number, seed in enumerate(unit.seeds):
        encoder.load_state_dict(start)
        if unit.start is not None:
            load_model(encoder, str(encoder_file(folder.parent / "MNLI")))
        began = time.monotonic()
        torch.manual_seed(seed)
        model = Classifier(encoder, task, unit.recipe).to(device)
        trained = fine_tune(model, data.training, task, unit.recipe, seed, _Reporter(folder, number, len(unit.seeds)))
        seconds = time.monotonic() - began
        result = _scored(model, data, unit, seed, trained).model_copy(
            update={"notes": tuple(notes), "max_length": longest, "seconds": round(seconds, 2)}
        )
        for test in data.test:
            write_predictions(predictions_file(folder, seed, test.name), predict(model, test.inputs, task, unit.recipe))
        if unit.keep_encoder == seed:
            _keep(encoder, encoder_file(folder))
        write_result(folder, result)


def _read(unit: Unit, task: GlueTask, longest: int, encoder: SentenceEncoder) -> _Data:
    """Reads and encodes all examples.

    Raises:
        UserError: the tokenizer cannot be used, or does not fit the model.
    """
    tokenizer = load_tokenizer(unit.model.tokenizer, is_bert(unit.model))
    entries = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if entries > encoder.vocabulary:
        problem = f"has {entries:,} entries, but the model embeds {encoder.vocabulary:,} tokens"
        raise UserError(unit.model.tokenizer, problem, "give the tokenizer that the model was trained with")
    source = open_source(unit.data)
    train = source.train(task)
    inputs = encode(tokenizer, train.first, train.second, longest)
    if unit.recipe.swap_pairs and task.is_pair:
        inputs = inputs.followed_by(encode(tokenizer, train.second, train.first, longest))

    def encoded(name: str, examples: Examples) -> _Set:
        return _Set(name, examples, encode(tokenizer, examples.first, examples.second, longest))

    dev = [encoded(held.name, source.dev(task, held)) for held in task.held]
    test = [encoded(name, examples) for name, examples in hidden_sets(source, task).items()]
    left_out = train.left_out + sum(one.examples.left_out for one in dev)
    assert train.labels is not None
    return _Data(TrainingSet(inputs, train.labels), dev, test, left_out)


def _scored(model: Classifier, data: _Data, unit: Unit, seed: int, trained: FineTuned) -> SeedResult:
    task = TASKS[unit.task]
    scores, of_majority = {}, {}
    for dev in data.dev:
        labels = dev.examples.labels
        assert labels is not None
        predicted = predict(model, dev.inputs, task, unit.recipe)
        scores[dev.name], of_majority[dev.name] = score(task, labels, predicted), majority(task, labels)
    return SeedResult(
        task=task.name,
        seed=seed,
        model=unit.model.digest,
        data=unit.data_digest,
        start=unit.start,
        recipe=unit.recipe,
        encoder=model.encoder.name,
        notes=(),
        max_length=0,
        cut=data.training.inputs.cut,
        left_out=data.left_out,
        steps=trained.steps,
        loss=trained.loss if math.isfinite(trained.loss) else None,
        seconds=0,
        scores=scores,
        majority=of_majority,
        failed=any(has_failed(task, scores[name], of_majority[name]) for name in scores),
    )


class _Reporter:
    """Writes how far the training is, at most twice a second."""

    def __init__(self, folder: Path, number: int, seeds: int) -> None:
        self._path, self._number, self._seeds = folder / PROGRESS, number, seeds
        self._written = -math.inf

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_REPORTS or done == total:
            self._written = time.monotonic()
            write_json(self._path, {"done": self._number * total + done, "total": self._seeds * total})


def _keep(encoder: SentenceEncoder, path: Path) -> None:
    partial_file = path.with_name(f".{path.name}.partial")
    save_model(encoder, str(partial_file))
    os.replace(partial_file, path)


if __name__ == "__main__":
    run_rank(partial(main, Path(sys.argv[1])))
