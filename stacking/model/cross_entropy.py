"""Computes cross-entropy over a large vocabulary, with a single copy of the logits and little memory in fp32."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 25
"""Number of logits converted to fp32 at a time."""
_NO_PADDING = -1
"""No label: every label counts."""


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums the cross-entropy of ``logits`` [N, C] against ``labels`` int64 [N]: an fp32 scalar, 0 for N = 0.

    It is computed in fp32 chunk by chunk. The backward pass overwrites the logits with their gradient, so they must not
    be used afterwards, and it can run only once.
    """
    loss: Tensor = _SummedCrossEntropy.apply(logits, labels)
    return loss


def triton_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the same with kernels of this project: `stacking.model.triton_cross_entropy`, which needs Triton."""
    kernels = import_module("stacking.model.triton_cross_entropy")
    loss: Tensor = kernels.one_pass_cross_entropy(logits, labels)
    return loss


def apex_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the same with the kernel of NVIDIA's apex: ``apex/contrib/xentropy/softmax_xentropy.py``.

    It accumulates in fp32, keeps the logits and needs as much memory again for their gradient. It refuses N = 0.
    """
    if not len(labels):
        return summed_cross_entropy(logits, labels)
    apex = import_module("apex.contrib.xentropy")
    wide = logits.dtype is not torch.float32
    # Its backward pass writes row by row into memory of the logits' own layout.
    losses: Tensor = apex.SoftmaxCrossEntropyLoss.apply(logits.contiguous(), labels, 0.0, _NO_PADDING, wide)
    return losses.sum()


def _log_softmax(logits: Tensor) -> Tensor:
    """Reduces over the classes in fp32; by column if stored that way, because torch would transpose them first."""
    if logits.stride(0) == 1:
        return torch.log_softmax(logits.t(), dim=0, dtype=torch.float32).t()
    return torch.log_softmax(logits, dim=1, dtype=torch.float32)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        rows = max(1, _CHUNK // logits.size(1))
        normalisers = torch.empty(len(labels), 1, dtype=torch.float32, device=logits.device)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for chunk, answers, normaliser in zip(
            logits.split(rows), labels.split(rows), normalisers.split(rows), strict=True
        ):
            chosen = answers[:, None]
            scores = _log_softmax(chunk).gather(1, chosen)
            normaliser.copy_(chunk.gather(1, chosen).float() - scores)
            total -= scores.sum()
        ctx.save_for_backward(logits, labels, normalisers)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        logits, labels, normalisers = ctx.saved_tensors
        rows = max(1, _CHUNK // logits.size(1))
        for chunk, answers, normaliser in zip(
            logits.split(rows), labels.split(rows), normalisers.split(rows), strict=True
        ):
            probabilities = chunk.float().sub_(normaliser).exp_()
            probabilities.scatter_add_(1, answers[:, None], -torch.ones_like(normaliser))
            chunk.copy_(probabilities.mul_(gradient))
        return logits, None
