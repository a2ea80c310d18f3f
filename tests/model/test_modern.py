"""A ``modern`` model computes ModernBERT's equations; its lowest layer's attention norm is that of the embeddings."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stacking.config.recipe import load_recipe
from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.model.modern import RotaryPositions
from stacking.model.size import parameter_shapes
from stacking.planning.make_plan import make_plan
from tests.model.conftest import CONFIGS, Inputs
from tests.small_recipe import MACHINE
from tests.states import SMALL, random_weights

CONFIG = CONFIGS["modern"]
WIDTH = CONFIG.hidden // CONFIG.heads


def by_complex_numbers(head: torch.Tensor) -> torch.Tensor:
    """Rotate rows [S, D]: dimensions j and j + D/2 are one complex number, times exp(i · position · 10,000^(−2j/D))."""
    real, imaginary = head.chunk(2, dim=-1)
    rates = 10_000.0 ** (-2 * torch.arange(WIDTH // 2, dtype=torch.float64) / WIDTH)
    angles = torch.arange(len(head), dtype=torch.float64)[:, None] * rates
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def test_the_logits_match_the_equations(inputs: Inputs) -> None:
    """Implemented independently, in double precision: x = N₀(e), then x + A(x) below and x + A(N(x)) above it."""
    weights = {name: tensor.double() for name, tensor in random_weights(CONFIG, seed=4).items()}
    model = build(CONFIG).double().eval()
    model.load_state_dict(weights, strict=False)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        spread = torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + CONFIG.norm_eps)
        return (x - x.mean(-1, keepdim=True)) / spread * weights[f"{name}.weight"]

    def attention(x: torch.Tensor, layer: str) -> torch.Tensor:
        query, key, value = (x @ weights[f"{layer}.attention.qkv.weight"].T).chunk(3, dim=-1)
        mixed = []
        for at in range(0, CONFIG.hidden, WIDTH):
            q, k, v = (part[:, at : at + WIDTH] for part in (query, key, value))
            scores = by_complex_numbers(q) @ by_complex_numbers(k).T / math.sqrt(WIDTH)
            mixed.append(scores.softmax(-1) @ v)
        return torch.cat(mixed, dim=-1) @ weights[f"{layer}.attention.output.weight"].T

    def feed_forward(x: torch.Tensor, layer: str) -> torch.Tensor:
        value, gate = (x @ weights[f"{layer}.feed_forward.up.weight"].T).chunk(2, dim=-1)
        return (F.gelu(value) * gate) @ weights[f"{layer}.feed_forward.down.weight"].T

    ids = inputs.input_ids[:1]
    x = norm(weights["embeddings.tokens.weight"][ids[0]], "layers.0.attention_norm")
    x = x + attention(x, "layers.0")
    x = x + feed_forward(norm(x, "layers.0.feed_forward_norm"), "layers.0")
    x = x + attention(norm(x, "layers.1.attention_norm"), "layers.1")
    x = norm(x + feed_forward(norm(x, "layers.1.feed_forward_norm"), "layers.1"), "final_norm")
    predicted = norm(F.gelu(x @ weights["mlm_head.transform.weight"].T), "mlm_head.norm")
    expected = predicted @ weights["embeddings.tokens.weight"].T + weights["mlm_head.bias"]
    follows = x[0] @ weights["nsp_head.weight"][0] + weights["nsp_head.bias"]

    mlm, nsp = model.logits(ids, inputs.segment_ids[:1], torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(mlm[0], expected, rtol=0, atol=1e-5)  # the table of angles is in fp32
    torch.testing.assert_close(nsp[0], torch.cat([follows, torch.zeros(1)]), rtol=0, atol=1e-5)


def test_scores_depend_only_on_the_distance_of_two_tokens() -> None:
    turn, pair = RotaryPositions(CONFIG), torch.randn(2, 1, WIDTH)

    def score(query: int, key: int) -> float:
        q, k = (turn(row[None], torch.tensor([at])) for row, at in zip(pair, (query, key), strict=True))
        return float((q * k).sum())

    assert score(3, 9) == pytest.approx(score(20, 26), abs=1e-5)
    assert score(3, 9) != pytest.approx(score(9, 3), abs=1e-3)


def test_sixteen_bit_values_are_rotated_in_fp32() -> None:
    turn, rows = RotaryPositions(CONFIG), torch.randn(40, 4, WIDTH).bfloat16()
    found, expected = (turn(part, torch.arange(40)) for part in (rows, rows.float()))
    assert torch.equal(found, expected.bfloat16())


def test_segments_make_no_difference(inputs: Inputs) -> None:
    model = build(CONFIG).eval()
    other = inputs._replace(segment_ids=1 - inputs.segment_ids)
    assert torch.equal(model.encode(inputs.tokens), model.encode(other.tokens))


def test_it_is_initialised_like_modernbert() -> None:
    torch.manual_seed(0)
    config = ModelConfig(variant="modern", layers=8, hidden=128, heads=2, intermediate=256, vocabulary=1_000)
    cut = 0.88  # the standard deviation of a normal distribution truncated at two standard deviations
    for name, parameter in build(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 10_000:
            std = 0.02 / 4 if name.split(".")[-2] in ("output", "down", "transform") else 0.02
            assert parameter.std().item() == pytest.approx(cut * std, rel=0.05), name
            assert parameter.abs().max().item() <= 2 * std, name


def test_the_shipped_recipe_has_the_parameters_of_modernbert_base_and_a_next_sentence_head() -> None:
    stage = make_plan(load_recipe("modern-base-a100"), None, None, MACHINE).stages[-1]
    assert (stage.layers, stage.parameters) == (22, 149_655_232 + 769)  # of transformers' ModernBertConfig()


def test_layers_have_no_biases() -> None:
    names = parameter_shapes(CONFIG)
    assert [name for name in names if name.endswith("bias")] == ["mlm_head.bias", "nsp_head.bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "learned"}, "positions of modern cannot be 'learned'; for that use variant post_ln or pre_ln"),
        ({"norm_affine": False}, "norm_affine of modern cannot be False; for that use variant pre_ln or macaron"),
        ({"hidden": 36}, "rotary positions need heads of an even width, not 9"),
        ({"variant": "pre_ln", "positions": "rotary"}, "for that use variant modern"),
    ],
)
def test_settings_that_modernbert_does_not_support_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**SMALL, "variant": "modern", **change})


def test_positions_default_to_those_of_the_variant() -> None:
    assert [ModelConfig(**{**SMALL, "variant": name}).positions for name in ("modern", "macaron")] == [
        "rotary",
        "learned",
    ]
