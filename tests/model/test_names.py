"""Parameter names are an interface: checkpoints, states, growth and export are keyed by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.model.tokens import padded_tokens
from tests.model.conftest import CONFIGS

POST_LN = """
embeddings.tokens.weight embeddings.positions.weight embeddings.segments.weight
embeddings.norm.weight embeddings.norm.bias
layers.0.attention.qkv.weight layers.0.attention.qkv.bias
layers.0.attention.output.weight layers.0.attention.output.bias
layers.0.attention_norm.weight layers.0.attention_norm.bias
layers.0.feed_forward.up.weight layers.0.feed_forward.up.bias
layers.0.feed_forward.down.weight layers.0.feed_forward.down.bias
layers.0.feed_forward_norm.weight layers.0.feed_forward_norm.bias
layers.1.attention.qkv.weight layers.1.attention.qkv.bias
layers.1.attention.output.weight layers.1.attention.output.bias
layers.1.attention_norm.weight layers.1.attention_norm.bias
layers.1.feed_forward.up.weight layers.1.feed_forward.up.bias
layers.1.feed_forward.down.weight layers.1.feed_forward.down.bias
layers.1.feed_forward_norm.weight layers.1.feed_forward_norm.bias
pooler.weight pooler.bias
mlm_head.bias mlm_head.transform.weight mlm_head.transform.bias mlm_head.norm.weight mlm_head.norm.bias
nsp_head.weight nsp_head.bias
"""

PRE_LN = """
embeddings.tokens.weight embeddings.segments.weight
layers.0.attention.qkv.weight layers.0.attention.qkv.bias
layers.0.attention.output.weight layers.0.attention.output.bias
layers.0.feed_forward.up.weight layers.0.feed_forward.up.bias
layers.0.feed_forward.down.weight layers.0.feed_forward.down.bias
layers.1.attention.qkv.weight layers.1.attention.qkv.bias
layers.1.attention.output.weight layers.1.attention.output.bias
layers.1.feed_forward.up.weight layers.1.feed_forward.up.bias
layers.1.feed_forward.down.weight layers.1.feed_forward.down.bias
mlm_head.transform.weight mlm_head.transform.bias mlm_head.norm.weight mlm_head.norm.bias
nsp_head.weight nsp_head.bias
"""

MACARON = """
embeddings.tokens.weight embeddings.segments.weight
layers.0.feed_forward_before.up.weight layers.0.feed_forward_before.up.bias
layers.0.feed_forward_before.down.weight layers.0.feed_forward_before.down.bias
layers.0.attention.qkv.weight layers.0.attention.qkv.bias
layers.0.attention.output.weight layers.0.attention.output.bias
layers.0.feed_forward.up.weight layers.0.feed_forward.up.bias
layers.0.feed_forward.down.weight layers.0.feed_forward.down.bias
layers.1.feed_forward_before.up.weight layers.1.feed_forward_before.up.bias
layers.1.feed_forward_before.down.weight layers.1.feed_forward_before.down.bias
layers.1.attention.qkv.weight layers.1.attention.qkv.bias
layers.1.attention.output.weight layers.1.attention.output.bias
layers.1.feed_forward.up.weight layers.1.feed_forward.up.bias
layers.1.feed_forward.down.weight layers.1.feed_forward.down.bias
mlm_head.transform.weight mlm_head.transform.bias mlm_head.norm.weight mlm_head.norm.bias
nsp_head.weight nsp_head.bias
"""

MODERN = """
embeddings.tokens.weight
layers.0.attention.qkv.weight layers.0.attention.output.weight layers.0.attention_norm.weight
layers.0.feed_forward.up.weight layers.0.feed_forward.down.weight layers.0.feed_forward_norm.weight
layers.1.attention.qkv.weight layers.1.attention.output.weight layers.1.attention_norm.weight
layers.1.feed_forward.up.weight layers.1.feed_forward.down.weight layers.1.feed_forward_norm.weight
final_norm.weight
mlm_head.bias mlm_head.transform.weight mlm_head.norm.weight
nsp_head.weight nsp_head.bias
"""
NAMES = {"post_ln": POST_LN, "pre_ln": PRE_LN, "macaron": MACARON, "modern": MODERN}


@pytest.mark.parametrize(("variant", "names"), NAMES.items(), ids=NAMES)
def test_parameter_names_of_two_layers_are_exactly_the_documented_ones(variant: str, names: str) -> None:
    assert [name for name, _ in build(CONFIGS[variant]).named_parameters()] == names.split()


def test_names_and_shapes_follow_from_the_config_alone(config: ModelConfig) -> None:
    built = {name: tuple(parameter.shape) for name, parameter in build(config).named_parameters()}
    assert list(built.items()) == list(parameter_shapes(config).items())


def test_decoder_is_the_token_embedding_itself(config: ModelConfig) -> None:
    parameters = dict(build(config).named_parameters(remove_duplicate=False))
    assert parameters["mlm_head.decoder.weight"] is parameters["embeddings.tokens.weight"]


def test_only_parameters_are_saved(config: ModelConfig) -> None:
    model = build(config)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters(remove_duplicate=False)}


def test_every_module_with_parameters_runs_its_own_forward(config: ModelConfig) -> None:
    # ZeRO-3 gathers a parameter around the forward of the modules that own it: no other module may use it.
    model = build(config)
    ran: set[nn.Module] = set()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: ran.add(module))
    tokens = np.array([[1, 2, 3]])
    model(padded_tokens(tokens, tokens * 0, None, np.array([1])), torch.tensor([2]), torch.tensor([0]))
    assert {module for module in model.modules() if list(module.parameters(recurse=False))} <= ran
