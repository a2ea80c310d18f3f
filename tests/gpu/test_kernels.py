"""The kernels that the card chooses give the values and gradients of plain PyTorch on the CPU, in every precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from stacking.data.unpad import Unpadded
from stacking.model import trials
from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.model.kernels import (
    ATTENTION,
    CROSS_ENTROPY,
    DECODERS,
    KERNELS,
    LAMBS,
    NORMS,
    PLAIN,
    Kernels,
    generation,
    kernels_for,
    use,
)
from stacking.model.tokens import to, unpadded_tokens
from stacking.model.trials import Kernel, Results, TrialInputs
from stacking.train.loader import without_padding
from tests.gpu.card import CPU, DEVICE, DTYPES, relative_error
from tests.model.test_tokens import batch

pytestmark = pytest.mark.gpu

HEAD = 64
LENGTHS = [128, 3, 77, 128, 1, 40]
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
"""Of the relative error of a tensor's norm."""
MODEL: dict[str, Any] = {"layers": 2, "hidden": 256, "heads": 4, "intermediate": 512, "vocabulary": 101}
MODEL |= {"max_positions": 128, "dropout": 0.0, "attention_dropout": 0.0}


def attention(attend: Kernel, inputs: TrialInputs) -> list[Tensor]:
    """Attends within sequences of many lengths, without dropout."""
    lengths = np.array(LENGTHS)
    nothing = np.zeros(int(lengths.sum()), dtype=np.int64)
    sequences = Unpadded(nothing, nothing, nothing, lengths, nothing[:0], nothing[:0], None)
    layout = to(unpadded_tokens(sequences), inputs.device).layout
    parts = inputs.drawn(0, len(nothing), 3, 4, inputs.head)
    mixed = attend(*parts.unbind(1), layout, layout, 0.0)
    return [mixed, *torch.autograd.grad((mixed * inputs.drawn(1, *mixed.shape)).sum(), parts)]


def decoder(decode: Kernel, inputs: TrialInputs) -> list[Tensor]:
    """Scores an odd number of words."""
    hidden, weight, bias = inputs.drawn(0, 40, 256), inputs.drawn(1, 101, 256), inputs.drawn(2, 101)
    scores = decode(hidden, weight, bias)
    gradients = torch.autograd.grad((scores * inputs.drawn(3, *scores.shape)).sum(), (hidden, weight, bias))
    return [scores, *gradients]


class Operation(NamedTuple):
    """One column of the kernel table."""

    kernels: Mapping[str, Kernel]
    results: Results


OPERATIONS = {
    "attention": Operation(ATTENTION, attention),
    "decoder": Operation(DECODERS, decoder),
    "norm": Operation(NORMS, trials.layer_norm),
    "cross_entropy": Operation(CROSS_ENTROPY, trials.cross_entropy),
    "lamb": Operation(LAMBS, trials.lamb),
}


def chosen(precision: str) -> Kernels:
    return kernels_for(DEVICE, DTYPES[precision], HEAD, 0.1, lamb=True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kernel_computes_what_plain_pytorch_does(operation: str, precision: str) -> None:
    kernels, results = OPERATIONS[operation]
    own, plain = (kernels[getattr(row, operation)] for row in (chosen(precision), PLAIN))
    found = results(own, TrialInputs(DEVICE, DTYPES[precision], HEAD, 0.0))
    expected = results(plain, TrialInputs(CPU, torch.float32, HEAD, 0.0))
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < TOLERANCE[precision]


def test_no_kernel_of_the_cards_row_is_refused_unless_it_is_of_another_package(precision: str) -> None:
    row, found = KERNELS[generation(DEVICE)], chosen(precision)
    refused = {name for name in OPERATIONS if getattr(found, name) != getattr(row, name)}
    others = {name for name in OPERATIONS if getattr(row, name) == "apex"}
    wide = {"attention"} if precision == "fp32" and row.attention == "varlen_flash" else set()
    assert refused - others == wide, found.why


def test_dropout_drops_at_its_rate_and_its_gradient_falls_on_what_is_left(precision: str) -> None:
    kernels, ones = chosen(precision), torch.ones(512, 512, device=DEVICE, dtype=DTYPES[precision])
    leaf = ones.clone().requires_grad_()
    dropped = kernels.drop(leaf, 0.1)
    (gradient,) = torch.autograd.grad(dropped.sum(), leaf)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert dropped.float().mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(gradient, dropped)
    assert kernels.add(ones, ones, 0.1).float().mean().item() == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("variant", ["post_ln", "pre_ln", "modern"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_models_losses_and_gradients_are_those_of_the_cpu(variant: str, compiled: bool, precision: str) -> None:
    kernels = chosen(precision)
    if compiled and not kernels.compiled:
        pytest.skip("layers are not compiled on this device")
    config, sequences = ModelConfig(variant=variant, **MODEL), batch(LENGTHS)
    expected = losses_and_gradients(config, PLAIN, CPU, torch.float32, sequences)
    own = replace(kernels, grouped=kernels.grouped and not compiled)
    found = losses_and_gradients(config, own, DEVICE, DTYPES[precision], sequences, compiled)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 2 * TOLERANCE[precision]


def losses_and_gradients(
    config: ModelConfig,
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    sequences: Unpadded,
    compiled: bool = False,
) -> list[Tensor]:
    """Returns both losses, and the gradient of their sum for all parameters as one tensor."""
    torch.manual_seed(1)
    model = build(config).to(device, dtype)
    use(model, kernels)
    for layer in model.layers if compiled else ():
        layer.compile()
    mlm, nsp = model(*without_padding(sequences, device, kernels.grouped).inputs)
    gradients = torch.autograd.grad(mlm + nsp, list(model.parameters()))
    return [mlm, nsp, torch.cat([gradient.flatten().float() for gradient in gradients])]
