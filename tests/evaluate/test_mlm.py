"""Scores are means over masked tokens and pairs, whatever the batches, and leave the model as it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from stacking.data.batch import Batch
from stacking.data.corpus import Corpus
from stacking.data.prepare import prepare
from stacking.data.unpad import Unpadded
from stacking.errors import UserError
from stacking.evaluate.mlm import Scores, evaluate, evaluate_state
from stacking.model.bert import Bert, build
from stacking.model.config import ModelConfig
from tests.data.conftest import write_corpus
from tests.model.conftest import CONFIGS, Inputs, example
from tests.states import SMALL, random_weights, write_state
from tests.unpadding import unpad


def as_batch(inputs: Inputs, rows: slice = slice(None)) -> Unpadded:
    """Some rows of ``inputs`` as a sampler would return them."""
    first, last, _ = rows.indices(len(inputs.input_ids))
    length = inputs.input_ids.size(1)
    inside = (inputs.mlm_positions >= first * length) & (inputs.mlm_positions < last * length)
    tensors = [
        *(tensor[rows] for tensor in inputs[:3]),
        inputs.mlm_positions[inside] - first * length,
        inputs.mlm_labels[inside],
        inputs.nsp_labels[rows],
    ]
    return unpad(Batch(*(tensor.numpy() for tensor in tensors)))


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request: pytest.FixtureRequest) -> Bert:
    torch.manual_seed(0)
    return build(request.param)


def test_scores_are_means_of_the_models_own_losses(model: Bert) -> None:
    inputs = example()
    scores = evaluate(model, [as_batch(inputs)])
    mlm_sum, nsp_sum = model.eval()(*inputs.arguments)
    assert scores.mlm_loss == pytest.approx(mlm_sum.item() / 5, rel=1e-6)
    assert scores.nsp_loss == pytest.approx(nsp_sum.item() / 3, rel=1e-6)


def test_accuracy_counts_the_most_probable_answers(model: Bert) -> None:
    inputs = example()
    mlm_logits, nsp_logits = model.eval().logits(*inputs[:3])
    best = mlm_logits.flatten(0, 1)[inputs.mlm_positions].argmax(-1)
    labels = torch.where(torch.arange(5) < 2, best, (best + 1) % 101)
    nsp_labels = nsp_logits.argmax(-1)
    nsp_labels[0] = 1 - nsp_labels[0]
    scores = evaluate(model, [as_batch(inputs._replace(mlm_labels=labels, nsp_labels=nsp_labels))])
    assert scores.mlm_accuracy == pytest.approx(2 / 5)
    assert scores.nsp_accuracy == pytest.approx(2 / 3)


def test_scores_do_not_depend_on_the_batches(model: Bert) -> None:
    inputs = example()
    whole = evaluate(model, [as_batch(inputs)])
    split = evaluate(model, [as_batch(inputs, slice(0, 1)), as_batch(inputs, slice(1, 3))])
    assert split == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model: Bert, training: bool) -> None:
    model.train(training)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    assert evaluate(model, [as_batch(example())]) == evaluate(model, [as_batch(example())])
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), before)


def test_samples_without_pairs_have_no_nsp_scores(model: Bert) -> None:
    scores = evaluate(model, [as_batch(example())._replace(nsp_labels=None)])
    assert math.isfinite(scores.mlm_loss)
    assert math.isnan(scores.nsp_loss)
    assert math.isnan(scores.nsp_accuracy)


def test_no_batches_give_no_scores(model: Bert) -> None:
    assert all(math.isnan(score) for score in evaluate(model, []))


def test_a_model_without_knowledge_scores_the_uniform_distribution() -> None:
    model = build(CONFIGS["post_ln"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    scores = evaluate(model, [as_batch(example())])
    assert scores[:2] == pytest.approx((math.log(101), math.log(2)))
    assert isinstance(scores, Scores)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    prepare([str(write_corpus(folder / "text"))], folder / "data", vocabulary_size=120, held_out=0.2, workers=1)
    return folder / "data"


def small_state(folder: Path, **changes: int) -> Path:
    config = ModelConfig(**{**SMALL, "vocabulary": 160, **changes})
    return write_state(folder / "state", config, random_weights(config))


@pytest.mark.parametrize("kind", ["sentence-pair", "segment-pair", "packed"])
def test_a_state_is_scored_on_held_out_samples(data: Path, tmp_path: Path, kind: str) -> None:
    state = small_state(tmp_path)
    assert Corpus(data, "held_out").vocabulary <= 160

    def score(seed: int, batch_size: int) -> Scores:
        return evaluate_state(state, data, 20, seed, kind=kind, sequence_length=32, batch_size=batch_size)

    assert score(1, 7) == pytest.approx(score(1, 20), rel=1e-4, nan_ok=True)
    assert score(1, 20) != pytest.approx(score(2, 20), rel=1e-4, nan_ok=True)
    assert math.isnan(score(1, 20).nsp_loss) == (kind == "packed")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"vocabulary": 50}, "packed", "but the model embeds 50 tokens"),
        ({"max_positions": 16}, "packed", "32 tokens are more than the model's 16 positions; use 16 or less"),
        ({}, "sentences", "there is no kind 'sentences'"),
    ],
)
def test_mismatched_data_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, int], kind: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_state(small_state(tmp_path, **changes), data, 20, seed=0, kind=kind, sequence_length=32)
