"""Cross-entropy in Triton: reads the logits once forward, reads and writes them once backward, and holds none in fp32.

`stacking.model.cross_entropy` computes the same with PyTorch, in several passes over fp32 copies.
The forward pass keeps a running maximum and sum for each row: Milakov and Gimelshein (2018), arXiv 1805.02867.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
"""Number of a row's logits in registers at a time."""
_WARPS = 8


def one_pass_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums the cross-entropy of ``logits`` [N, C], stored by row, against ``labels`` int64 [N]: an fp32 scalar.

    The backward pass overwrites the logits with their gradient, so they must not be used afterwards, and it can run
    only once.
    """
    loss: Tensor = _OnePassCrossEntropy.apply(logits, labels)
    return loss


class _OnePassCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        losses, normalisers = torch.empty(2, len(labels), dtype=torch.float32, device=logits.device).unbind()
        if len(labels):
            sizes = (logits.stride(0), logits.size(1), _BLOCK)
            _forward[(len(labels),)](logits, labels, losses, normalisers, *sizes, num_warps=_WARPS)
        ctx.save_for_backward(logits, labels, normalisers)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        logits, labels, normalisers = ctx.saved_tensors
        if len(labels):
            sizes = (logits.stride(0), logits.size(1), _BLOCK)
            _backward[(len(labels),)](logits, labels, normalisers, gradient, *sizes, num_warps=_WARPS)
        return logits, None


@triton.jit  # type: ignore[untyped-decorator]
def _forward(logits, labels, losses, normalisers, stride, CLASSES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    scores = logits + row * stride
    highest = float("-inf")
    total = 0.0
    for start in range(0, CLASSES, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        block = tl.load(scores + columns, mask=columns < CLASSES, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(block))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(block - higher))
        highest = higher
    normaliser = highest + tl.log(total)
    tl.store(normalisers + row, normaliser)
    tl.store(losses + row, normaliser - tl.load(scores + tl.load(labels + row)).to(tl.float32))


@triton.jit  # type: ignore[untyped-decorator]
def _backward(logits, labels, normalisers, gradient, stride, CLASSES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    scores = logits + row * stride
    label = tl.load(labels + row)
    normaliser = tl.load(normalisers + row)
    factor = tl.load(gradient)
    for start in range(0, CLASSES, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < CLASSES
        block = tl.load(scores + columns, mask=inside, other=float("-inf")).to(tl.float32)
        slope = tl.exp(block - normaliser) - tl.where(columns == label, 1.0, 0.0)
        tl.store(scores + columns, (slope * factor).to(logits.dtype.element_ty), mask=inside)
