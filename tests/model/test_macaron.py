"""A Macaron layer computes the equations of Lu et al. (2019) and has the parameters of a Transformer's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.model.shapes import named
from stacking.model.size import count_parameters, executed_flops, training_flops
from tests.model.conftest import Inputs
from tests.states import SMALL, random_weights

ORIGINAL = {"positions": "sinusoidal", "norm_affine": False, "norm_eps": 1e-5}
BASE = {"hidden": 768, "heads": 12, "intermediate": 3072, "vocabulary": 32_768, **ORIGINAL}


def layer_parameters(variant: str) -> int:
    two, one = (count_parameters(ModelConfig(variant=variant, layers=n, **BASE)) for n in (2, 1))
    return two - one


def test_a_layer_has_the_parameters_of_a_transformer_layer_plus_one_bias() -> None:
    assert (layer_parameters("macaron"), layer_parameters("pre_ln")) == (7_085_568, 7_084_800)


def test_a_layer_takes_half_a_feed_forward_step_then_attention_then_half_a_step(inputs: Inputs) -> None:
    """The equations, implemented independently, in double precision: x + ½ F(x), x + A(x), x + ½ G(x)."""
    config = ModelConfig(variant="macaron", **{**SMALL, **ORIGINAL, "layers": 1})
    weights = {name: tensor.double() for name, tensor in random_weights(config, seed=4).items()}
    model = build(config).double().eval()
    model.load_state_dict(weights, strict=False)
    hidden = torch.randn(16, config.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    def of(name: str) -> torch.Tensor:
        return weights[f"layers.0.{name}"]

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + config.norm_eps)

    def feed_forward(part: str, x: torch.Tensor) -> torch.Tensor:
        up = norm(x) @ of(f"{part}.up.weight").T + of(f"{part}.up.bias")
        return F.gelu(up) @ of(f"{part}.down.weight").T + of(f"{part}.down.bias")

    x = hidden + 0.5 * feed_forward("feed_forward_before", hidden)
    query, key, value = (norm(x) @ of("attention.qkv.weight").T + of("attention.qkv.bias")).chunk(3, dim=-1)
    width = config.hidden // config.heads
    heads = [slice(head * width, (head + 1) * width) for head in range(config.heads)]
    mixed = torch.cat([(query[:, h] @ key[:, h].T / math.sqrt(width)).softmax(-1) @ value[:, h] for h in heads], dim=-1)
    x = x + mixed @ of("attention.output.weight").T + of("attention.output.bias")
    x = x + 0.5 * feed_forward("feed_forward", x)

    one = inputs._replace(
        input_ids=inputs.input_ids[:1], segment_ids=inputs.segment_ids[:1], attention_mask=None,
        mlm_positions=inputs.mlm_positions[:2],
    ).tokens  # fmt: skip
    torch.testing.assert_close(model.layers[0](hidden, one.layout), x, rtol=0, atol=1e-10)
    needed = model.layers[0](hidden, one.layout, one.needed, one.needed_layout)
    torch.testing.assert_close(needed, x[one.needed], rtol=0, atol=1e-10)


def test_the_cost_equals_pre_lns_except_for_the_last_layers_first_half_step_at_every_token() -> None:
    macaron, pre_ln = (ModelConfig(variant=variant, layers=3, **BASE) for variant in ("macaron", "pre_ln"))
    assert training_flops(macaron, 128, 19) == training_flops(pre_ln, 128, 19)
    at_every_token = 6 * (128 - 20) * 2 * 768 * 1536
    assert executed_flops(macaron, 128, 19) - executed_flops(pre_ln, 128, 19) == at_every_token


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="intermediate of macaron is 49; give a multiple of 2"):
        ModelConfig(variant="macaron", **{**SMALL, "intermediate": 49})


def test_the_shape_of_a_part_is_derived_from_its_row() -> None:
    assert named({"a": lambda _: {"": (1,), "weight": (2, 3)}}, ModelConfig(**SMALL)) == {"a": (1,), "a.weight": (2, 3)}
