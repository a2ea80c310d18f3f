"""Stands in for NVIDIA's apex, which needs a GPU: its interface, as in NVIDIA/apex, computed by plain PyTorch.

It says nothing about apex' own numbers or speed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def fused_layer_norm_affine(
    input: Tensor, weight: Tensor, bias: Tensor, normalized_shape: Sequence[int], eps: float = 1e-6
) -> Tensor:
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def fused_layer_norm(input: Tensor, normalized_shape: Sequence[int], eps: float = 1e-6) -> Tensor:
    return F.layer_norm(input, normalized_shape, eps=eps)


class SoftmaxCrossEntropyLoss(torch.autograd.Function):
    """Losses of rows; as in apex, those whose label is ``padding_idx`` are zero, and no rows are an error."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        smoothing: float = 0.0,
        padding_idx: int = 0,
        half_to_float: bool = False,
    ) -> Tensor:
        assert logits.numel() and labels.dtype == torch.int64 and not smoothing
        assert half_to_float == (logits.dtype != torch.float32), "conversion is supported for 16 bits only"
        kept = labels != padding_idx
        ctx.save_for_backward(logits, labels, kept)
        return F.cross_entropy(logits.float(), labels, reduction="none") * kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, labels, kept = ctx.saved_tensors
        off = logits.float().softmax(1) - F.one_hot(labels, logits.size(1))
        return ((gradient * kept)[:, None] * off).to(logits.dtype), None, None, None, None


def install(patch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Make ``import apex`` find the stand-in; return its modules by name."""
    modules = {
        "apex": {},
        "apex.normalization": {},
        "apex.normalization.fused_layer_norm": {
            "fused_layer_norm_affine": fused_layer_norm_affine,
            "fused_layer_norm": fused_layer_norm,
        },
        "apex.contrib": {},
        "apex.contrib.xentropy": {"SoftmaxCrossEntropyLoss": SoftmaxCrossEntropyLoss},
    }
    made = {name: ModuleType(name) for name in modules}
    for name, content in modules.items():
        vars(made[name]).update(content)
        patch.setitem(sys.modules, name, made[name])
    return made
