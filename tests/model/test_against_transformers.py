"""``post_ln`` is Hugging Face's BERT: the same losses and gradients from the same weights."""

from __future__ import annotations

import pytest
import torch

from stacking.huggingface.bert import BertFolder
from stacking.model.bert import build
from stacking.model.config import ModelConfig
from tests.model.conftest import Inputs
from tests.states import SMALL

transformers = pytest.importorskip("transformers")

CONFIG = ModelConfig(**{**SMALL, "dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.2})


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_losses_and_gradients_in_training_are_the_same(activation: str, inputs: Inputs) -> None:
    config = CONFIG.model_copy(update={"activation": activation})
    torch.manual_seed(1)
    ours = build(config).train()
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**BertFolder().config(config))).train()
    their_parameters = dict(theirs.named_parameters())
    names = BertFolder().names(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            for their_name, rows in zip(names[name], parameter.chunk(len(names[name])), strict=True):
                their_parameters[their_name].copy_(rows)

    mlm_loss, nsp_loss = ours(*inputs.arguments)
    loss = mlm_loss / len(inputs.mlm_labels) + nsp_loss / len(inputs.nsp_labels)
    loss.backward()
    labels = torch.full(inputs.input_ids.shape, -100)
    labels.view(-1)[inputs.mlm_positions] = inputs.mlm_labels
    their_loss = theirs(
        input_ids=inputs.input_ids,
        token_type_ids=inputs.segment_ids,
        attention_mask=inputs.attention_mask.long(),
        labels=labels,
        next_sentence_label=inputs.nsp_labels,
    ).loss
    their_loss.backward()

    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    for name, parameter in ours.named_parameters():
        expected = torch.cat([their_parameters[their_name].grad for their_name in names[name]])
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_names_and_shapes_are_exactly_those_of_bert_for_pre_training() -> None:
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**BertFolder().config(CONFIG)))
    expected = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    names = BertFolder().names(CONFIG)
    mapped = {
        their_name: tuple(rows.shape)
        for name, parameter in build(CONFIG).named_parameters()
        for their_name, rows in zip(names[name], parameter.chunk(len(names[name])), strict=True)
    }
    assert mapped == expected
