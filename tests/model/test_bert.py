"""What a model computes: losses, masks, heads, initial weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stacking.model.bert import build
from stacking.model.config import VARIANTS, ModelConfig
from stacking.model.embeddings import SinusoidalPositions
from tests.model.conftest import CONFIGS, Inputs
from tests.states import SMALL

ORIGINAL = CONFIGS["pre_ln"]


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-5, atol=1e-5)


def test_losses_are_fp32_sums_of_cross_entropies(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config).eval()
    mlm_loss, nsp_loss = model(*inputs.arguments)
    mlm_logits, nsp_logits = model.logits(*inputs[:3])
    chosen = mlm_logits.flatten(0, 1)[inputs.mlm_positions]
    assert mlm_loss.shape == nsp_loss.shape == ()
    assert mlm_loss.dtype == nsp_loss.dtype == torch.float32
    assert close(mlm_loss, F.cross_entropy(chosen, inputs.mlm_labels, reduction="sum"))
    assert close(nsp_loss, F.cross_entropy(nsp_logits, inputs.nsp_labels, reduction="sum"))


def test_losses_stay_fp32_when_the_model_is_bf16(config: ModelConfig, inputs: Inputs) -> None:
    losses = build(config).bfloat16()(*inputs.arguments)
    assert [loss.dtype for loss in losses] == [torch.float32, torch.float32]
    assert all(loss.isfinite() for loss in losses)


def test_parameters_may_be_bf16_while_buffers_stay_fp32(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    assert model.encode(inputs.tokens).dtype == torch.bfloat16


def test_the_head_at_masked_positions_equals_the_dense_head_gathered(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config).eval()
    masked, first = model.heads(inputs.tokens)
    dense, nsp_logits = model.logits(*inputs[:3])
    assert masked.shape == (5, config.vocabulary)
    assert close(masked, dense.flatten(0, 1)[inputs.mlm_positions])
    assert close(first, nsp_logits)


def test_losses_of_a_split_batch_add_up(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config).eval()
    rows = [slice(0, 1), slice(1, 3)]
    positions = [inputs.mlm_positions[:2], inputs.mlm_positions[2:] - 16]
    labels = [inputs.mlm_labels[:2], inputs.mlm_labels[2:]]
    halves = [
        model(*Inputs(*(x[part] for x in inputs[:3]), *masked, inputs.nsp_labels[part]).arguments)
        for part, *masked in zip(rows, positions, labels, strict=True)
    ]
    for whole, first, second in zip(model(*inputs.arguments), *halves, strict=True):
        assert close(whole, first + second)


def test_omitting_the_mask_equals_a_mask_of_real_tokens(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config).eval()
    everything = inputs._replace(attention_mask=torch.ones_like(inputs.attention_mask))
    assert close(model.encode(inputs._replace(attention_mask=None).tokens), model.encode(everything.tokens))


def test_padding_does_not_change_real_tokens(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config).eval()
    padded = model.encode(inputs.tokens).unflatten(0, (3, 16))[2, :9]
    alone = Inputs(inputs.input_ids[2:, :9], inputs.segment_ids[2:, :9], None, torch.tensor([6]), *inputs[4:])
    assert close(padded, model.encode(alone.tokens))


def test_without_nsp_labels_the_nsp_loss_is_zero(config: ModelConfig, inputs: Inputs) -> None:
    _, nsp_loss = build(config)(*inputs._replace(nsp_labels=None).arguments)
    assert nsp_loss == 0


def test_a_batch_without_masked_tokens_has_no_loss_and_no_nan(config: ModelConfig, inputs: Inputs) -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    mlm_loss, _ = build(config)(*inputs._replace(mlm_positions=nothing, mlm_labels=nothing).arguments)
    assert mlm_loss == 0


def test_every_parameter_gets_a_gradient(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config)
    sum(model(*inputs.arguments)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_dropout_is_active_only_in_training(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config)
    assert not torch.equal(model(*inputs.arguments)[0], model(*inputs.arguments)[0])
    model.eval()
    assert torch.equal(model(*inputs.arguments)[0], model(*inputs.arguments)[0])


def test_the_same_seed_gives_the_same_model(config: ModelConfig) -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(build(config).parameters())

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_every_variant_of_the_config_can_be_built() -> None:
    for name, variant in VARIANTS.items():
        values = {"variant": name, "layers": 1, "hidden": 8, "heads": 2, "intermediate": 16, "vocabulary": 9}
        model = build(ModelConfig.model_validate(values))
        assert f"{type(model).__module__}:{type(model).__name__}" == variant.model


def test_post_ln_is_initialised_like_bert() -> None:
    torch.manual_seed(0)
    config = ModelConfig(layers=2, hidden=128, heads=2, intermediate=256, vocabulary=1_000, padding_id=3)
    parameters = dict(build(config).named_parameters())
    for name, parameter in parameters.items():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 10_000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
    padding = parameters["embeddings.tokens.weight"].any(dim=1).logical_not().nonzero().flatten()
    assert padding.tolist() == [3]


def test_pre_ln_is_initialised_like_the_original() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        variant="pre_ln", layers=1, hidden=128, heads=2, intermediate=512, vocabulary=1_000, norm_affine=False
    )
    parameters = dict(build(config).named_parameters())
    deviations = {
        "embeddings.tokens.weight": 128**-0.5,
        "embeddings.positions.weight": 128**-0.5,
        "layers.0.attention.qkv.weight": 128**-0.5,
        "layers.0.attention.output.weight": 128**-0.5,
        "layers.0.feed_forward.up.weight": 128**-0.5,
        "layers.0.feed_forward.down.weight": (2 / 512) ** 0.5,
        "mlm_head.transform.weight": (3 * 128) ** -0.5,
    }
    for name, deviation in deviations.items():
        assert parameters[name].std().item() == pytest.approx(deviation, rel=0.05), name
    assert not any(p.any() for name, p in parameters.items() if name.startswith("layers.") and name.endswith("bias"))


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_pre_ln_first_segment_stays_a_zero_vector(inputs: Inputs, weight_decay: float) -> None:
    model = build(ORIGINAL)
    before = model.embeddings.segments.weight.detach().clone()  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=weight_decay)
    for _ in range(3):
        optimizer.zero_grad()
        sum(model(*inputs.arguments)).backward()
        optimizer.step()
    after = model.embeddings.segments.weight  # type: ignore[union-attr]
    assert not before[0].any() and not after[0].any()
    assert not torch.equal(before[1], after[1])


def test_pre_ln_next_sentence_loss_is_the_binary_cross_entropy(inputs: Inputs) -> None:
    model = build(ORIGINAL).eval()
    follows = model.nsp_head(model.encode(inputs.tokens).unflatten(0, (3, 16))[:, 0]).squeeze(1)  # type: ignore[operator]
    is_next = (inputs.nsp_labels == 0).float()
    assert close(model(*inputs.arguments)[1], F.binary_cross_entropy_with_logits(follows, is_next, reduction="sum"))


def test_pre_ln_encoder_output_is_normalised(inputs: Inputs) -> None:
    hidden = build(ORIGINAL).eval().encode(inputs.tokens)
    assert close(hidden.mean(-1), torch.zeros(48))
    assert torch.allclose(hidden.var(-1, unbiased=False), torch.ones(48), atol=1e-3)


def test_sinusoids_range_from_one_radian_per_token_to_a_ten_thousandth() -> None:
    vectors = SinusoidalPositions(ORIGINAL)(torch.arange(7))
    assert vectors.shape == (7, 32)
    for position in (0, 1, 6):
        assert vectors[position, 0].item() == pytest.approx(math.sin(position), abs=1e-6)
        assert vectors[position, 15].item() == pytest.approx(math.sin(position / 10_000), abs=1e-6)
        assert vectors[position, 16].item() == pytest.approx(math.cos(position), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "does not divide into 5 heads"),
        ({"padding_id": 101}, "outside the vocabulary"),
        ({"positions": "sinusoidal"}, "use variant pre_ln"),
        ({"norm_affine": False}, "use variant pre_ln"),
        ({"variant": "pre_ln", "positions": "sinusoidal", "hidden": 33, "heads": 3}, "even hidden"),
    ],
)
def test_impossible_shapes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**SMALL, **change})
