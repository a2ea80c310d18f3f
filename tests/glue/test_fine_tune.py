from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stacking.glue.encode import encode, load_tokenizer
from stacking.glue.encoders import open_encoder
from stacking.glue.fine_tune import Classifier, TrainingSet, fine_tune, learning_rate_factor, predict, updates
from stacking.glue.model_source import find_model
from stacking.glue.recipes import FineTuning
from stacking.glue.source import open_source
from stacking.glue.tasks import TASKS
from tests.glue.small_glue import write_bert, write_glue

RECIPE = FineTuning(epochs=30, batch=8, learning_rate=3e-3, dropout=0.0, head="zero")


class Learner:
    """A small BERT, and the data of one task."""

    def __init__(self, folder: Path, name: str, recipe: FineTuning) -> None:
        self.task, self.recipe = TASKS[name], recipe
        source = open_source(str(write_glue(folder / "glue", name)))
        model = find_model(write_bert(folder / "bert"))
        self.encoder = open_encoder(model, recipe, torch.device("cpu"))[0]
        self.start = {key: value.clone() for key, value in self.encoder.state_dict().items()}
        tokenizer = load_tokenizer(model.tokenizer, of_bert=True)
        train, dev = source.train(self.task), source.dev(self.task, self.task.held[0])
        self.inputs = encode(tokenizer, train.first, train.second, 32)
        self.swapped = encode(tokenizer, train.second, train.first, 32) if train.second else None
        self.dev = encode(tokenizer, dev.first, dev.second, 32)
        self.labels, self.expected = train.labels, dev.labels

    def learn(self, seed: int = 0) -> tuple[Classifier, np.ndarray]:
        self.encoder.load_state_dict(self.start)
        torch.manual_seed(seed)
        model = Classifier(self.encoder, self.task, self.recipe)
        inputs = self.inputs
        if self.recipe.swap_pairs and self.swapped is not None:
            inputs = inputs.followed_by(self.swapped)
        assert self.labels is not None
        fine_tune(model, TrainingSet(inputs, self.labels), self.task, self.recipe, seed, lambda done, total: None)
        return model, predict(model, self.dev, self.task, self.recipe)


@given(total=st.integers(1, 300), warmup=st.floats(0, 0.9))
def test_the_rate_rises_to_its_peak_and_falls_to_zero(total: int, warmup: float) -> None:
    rates = [learning_rate_factor(step, total, warmup) for step in range(total)]
    rise = math.ceil(warmup * total)
    assert max(rates) == 1.0 and min(rates) > 0
    assert rates[:rise] == sorted(rates[:rise])
    assert rates[rise:] == sorted(rates[rise:], reverse=True)
    assert learning_rate_factor(total, total, warmup) == 0


def test_updates_are_counted_over_whole_epochs() -> None:
    assert updates(RECIPE, 17) == 30 * 3
    assert updates(RECIPE.model_copy(update={"max_steps": 5}), 17) == 5


@pytest.mark.parametrize("name", ["CoLA", "MNLI", "RTE"])
def test_a_word_that_gives_the_label_away_is_learned(name: str, tmp_path: Path) -> None:
    learner = Learner(tmp_path, name, RECIPE)
    assert np.array_equal(learner.learn()[1], learner.expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("standardise", [True, False])
def test_scores_are_learned_on_their_own_scale(standardise: bool, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(
        update={"standardise": standardise, "swap_pairs": True, "epochs": 100, "learning_rate": 1e-2}
    )
    learner = Learner(tmp_path, "STS-B", recipe)
    assert np.abs(learner.learn()[1] - learner.expected).mean() < 0.7


def test_a_seed_determines_everything_and_another_one_differs(tmp_path: Path) -> None:
    recipe = FineTuning(epochs=2, batch=8, learning_rate=1e-3, swap_pairs=True)
    learner = Learner(tmp_path, "STS-B", recipe)
    first, again, other = learner.learn(0)[1], learner.learn(0)[1], learner.learn(1)[1]
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_first_update_is_as_large_as_the_rate_because_adam_is_corrected_for_its_bias(tmp_path: Path) -> None:
    """Without the correction it would be (1 − 0.9) / √(1 − 0.999) = 3.2 times as large (Zhang et al., 2021)."""
    recipe = FineTuning(epochs=1, batch=24, learning_rate=1e-3, head="zero", max_steps=1)
    model, _ = Learner(tmp_path, "CoLA", recipe).learn()
    assert model.head.weight.detach().abs().max().item() == pytest.approx(1e-3, rel=1e-3)


def test_gradients_are_clipped_only_where_the_recipe_says_so(tmp_path: Path) -> None:
    """With an epsilon that dwarfs the gradient, Adam's first update is proportional to it."""
    base = FineTuning(epochs=1, batch=24, learning_rate=1.0, head="zero", max_steps=1, epsilon=1e6, dropout=0.0)
    heads = []
    for clip in (0.0, 1e-3):
        learner = Learner(tmp_path / str(clip), "CoLA", base.model_copy(update={"clip": clip}))
        heads.append(learner.learn()[0].head.weight.detach().norm().item())
    assert heads[1] < 0.1 * heads[0]


def test_predictions_do_not_depend_on_the_order_of_the_examples(tmp_path: Path) -> None:
    learner = Learner(tmp_path, "STS-B", FineTuning(epochs=1, batch=8, learning_rate=1e-3))
    model, predicted = learner.learn()
    model.eval()
    with torch.no_grad():
        alone = [model(learner.dev.batch(np.array([number])))[0, 0].item() for number in range(len(predicted))]
    assert predicted == pytest.approx(alone, abs=1e-5)
