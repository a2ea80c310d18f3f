"""Computes attention within sequences of different lengths that are concatenated in one row.

Shapes: T query rows and U key rows, A heads of D dimensions; a ``Layout`` says which rows form a sequence. Queries and
keys may be different rows of the same sequences, as in the last layer, which needs few queries.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stacking.model.dropout import keep
from stacking.model.tokens import Layout


def sdpa(query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, dropout: float) -> Tensor:
    """Computes [T, A, D] from [T, A, D] and twice [U, A, D], group by group, with PyTorch's choice of kernel.

    PyTorch chooses flash from sm_80 on for groups without empty places; memory-efficient attention otherwise and on
    Pascal and Volta; on a CPU a fused kernel without dropout.
    """
    triples = zip(_rectangles(query, queries), _rectangles(key, keys), _rectangles(value, keys), strict=True)
    mixed = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, dropout_p=dropout)
        for (q, k, v), group in zip(triples, keys.groups, strict=True)
    ]
    return _in_order(mixed, queries)


def explicit(query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, dropout: float) -> Tensor:
    """Computes the same as `sdpa` with explicit probabilities, for CPUs.

    Their fused kernel has no dropout, and is slow in bf16.
    """
    if not dropout and query.dtype is torch.float32:
        return sdpa(query, key, value, queries, keys, dropout)
    query = query * (1 / math.sqrt(query.size(-1)))
    triples = zip(_rectangles(query, queries), _rectangles(key, keys), _rectangles(value, keys), strict=True)
    mixed = []
    for (q, k, v), group in zip(triples, keys.groups, strict=True):
        scores = q @ k.transpose(-1, -2)
        if group.mask is not None:
            scores = scores.masked_fill(~group.mask, -math.inf)
        probabilities = scores.softmax(-1)
        if dropout:
            kept, factor = keep(probabilities.shape, dropout, probabilities.device)
            probabilities, v = torch.where(kept, probabilities, 0.0), v * factor
        mixed.append(probabilities @ v)
    return _in_order(mixed, queries)


def varlen_flash(query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, dropout: float) -> Tensor:
    """Computes the same as `sdpa` with FlashAttention's kernel for different lengths: sm_80 and newer, fp16 and bf16.

    ``torch.nn.attention.varlen`` only offers it without dropout; the underlying operator supports dropout.
    """
    if queries.rows is None and keys.rows is None:
        return sdpa(query, key, value, queries, keys, dropout)
    attend: Any = torch.ops.aten._flash_attention_forward
    sizes = (queries.offsets, keys.offsets, queries.longest, keys.longest)
    return attend(query, key, value, *sizes, dropout, False, False)[0]


def _rectangles(rows: Tensor, layout: Layout) -> list[Tensor]:
    """Gathers the rows [T, A, D] of each group as [sequences, A, length, D]."""
    if layout.rows is not None:
        rows = _ToPlaces.apply(rows, layout.rows, layout.places)
    sizes = [group.sequences * group.length for group in layout.groups]
    return [
        part.view(group.sequences, group.length, *rows.shape[1:]).transpose(1, 2)
        for part, group in zip(rows.split(sizes), layout.groups, strict=True)
    ]


def _in_order(mixed: list[Tensor], layout: Layout) -> Tensor:
    """Converts each group's [sequences, A, length, D] back to rows [T, A, D]."""
    flat = [part.transpose(1, 2).flatten(0, 1) for part in mixed]
    return flat[0] if layout.places is None else _FromPlaces.apply(torch.cat(flat), layout.places)


class _ToPlaces(torch.autograd.Function):
    """Moves rows to places. Each row has exactly one place, so the backward pass is a selection rather than a sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, chosen: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return rows.index_select(0, chosen)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


class _FromPlaces(torch.autograd.Function):
    """Moves places to rows; the content of empty places is dropped."""

    @staticmethod
    def forward(ctx: Any, filled: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = filled.size(0)
        return filled.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, *gradient.shape[1:]).index_copy_(0, places, gradient), None
