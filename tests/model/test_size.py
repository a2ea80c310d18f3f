"""Parameters and FLOPs from the config alone agree with the modules, with the original and with the formula."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.model.size import count_parameters, executed_flops, kept_values, training_flops
from tests.model.conftest import Inputs

BASE = {"hidden": 768, "heads": 12, "intermediate": 3072}


def test_parameter_count_matches_the_built_module(config: ModelConfig) -> None:
    assert count_parameters(config) == sum(parameter.numel() for parameter in build(config).parameters())


@pytest.mark.parametrize(("layers", "millions"), [(3, 47.0), (6, 68.3), (12, 110.8)])
def test_pre_ln_has_as_many_parameters_as_the_original(layers: int, millions: float) -> None:
    config = ModelConfig(
        variant="pre_ln", layers=layers, vocabulary=32_768, positions="sinusoidal", norm_affine=False, **BASE
    )
    assert round(count_parameters(config) / 1e6, 1) == millions


def test_post_ln_has_as_many_parameters_as_bert_base() -> None:
    # 109,482,240 of google-bert/bert-base-uncased with its pooler, the MLM head with its bias, and two NSP logits.
    config = ModelConfig(layers=12, vocabulary=30_522, **BASE)
    assert count_parameters(config) == 109_482_240 + (768 * 768 + 768 + 2 * 768 + 30_522) + (2 * 768 + 2)


@pytest.mark.parametrize(("layers", "encoder", "head"), [(3, 16.8, 2.9), (6, 33.5, 2.9), (12, 67.0, 2.9)])
def test_training_flops_of_bert_base_at_128_tokens(layers: int, encoder: float, head: float) -> None:
    config = ModelConfig(layers=layers, vocabulary=30_522, **BASE)
    assert training_flops(config, 128, 0) / 1e9 == pytest.approx(encoder, abs=0.05)
    assert (training_flops(config, 128, 20) - training_flops(config, 128, 0)) / 1e9 == pytest.approx(head, abs=0.05)


def test_training_flops_are_three_times_the_forward_flops_counted_by_torch(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        hidden = model.encode(inputs._replace(attention_mask=None).tokens)
        model.mlm_head(hidden.index_select(0, inputs.mlm_positions))
    sequences, length = inputs.input_ids.shape
    expected = sequences * training_flops(config, length, len(inputs.mlm_positions) / sequences)
    assert 3 * counter.get_total_flops() == expected


def test_executed_flops_match_torchs_count_when_the_last_layer_computes_only_what_the_heads_need(
    config: ModelConfig, inputs: Inputs
) -> None:
    model = build(config).eval()
    tokens = inputs._replace(attention_mask=None).tokens
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        hidden = model.encode_needed(tokens)
        model.mlm_head(hidden.index_select(0, tokens.masked))
    sequences, length = inputs.input_ids.shape
    masked = torch.bincount(inputs.mlm_positions // length, minlength=sequences).tolist()
    executed = sum(executed_flops(config, length, count) for count in masked)
    attention = 12 * config.hidden * length * (max(masked) * sequences - sum(masked))  # queries share a rectangle
    assert 3 * counter.get_total_flops() == executed + attention


def test_kept_values_match_those_saved_by_torch_except_for_small_ones(config: ModelConfig, inputs: Inputs) -> None:
    """A layer's values per token, except the statistics of norms and softmax, and the angles' sines and cosines."""
    config = config.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    tokens = inputs._replace(attention_mask=None).tokens

    def saved(layers: int) -> int:
        model, sizes = build(config.with_layers(layers)), {}
        given = {part.untyped_storage().data_ptr() for part in (*model.parameters(), *model.buffers())}

        def count(kept: torch.Tensor) -> torch.Tensor:
            storage = kept.untyped_storage()
            if kept.is_floating_point() and storage.data_ptr() not in given:
                sizes[storage.data_ptr()] = storage.nbytes() // kept.element_size()
            return kept

        with torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
            output = model.encode(tokens)
        assert output.requires_grad
        return sum(sizes.values())

    small = (saved(3) - saved(2)) / len(tokens.input_ids) - kept_values(config)[0]
    assert 0 <= small < config.hidden


def test_dropout_masks_cover_values_that_enter_the_residual_stream_or_leave_a_gate(config: ModelConfig) -> None:
    hidden, intermediate = config.hidden, config.intermediate
    masks = {"post_ln": 2 * hidden, "pre_ln": 2 * hidden, "macaron": 3 * hidden, "modern": hidden + intermediate}
    assert kept_values(config)[1] == masks[config.variant]


def test_sizes_are_known_without_torch() -> None:
    code = "import sys, stacking.model.size, stacking.huggingface.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
