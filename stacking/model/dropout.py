"""Applies dropout with few random numbers, which take most of its time on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 1 << 16
_LOWEST = -(1 << 15)


def keep(shape: torch.Size, probability: float, device: torch.device) -> tuple[Tensor, float]:
    """Draws which elements are kept: bool of ``shape``, and the factor that preserves the expectation.

    Each element uses 16 bits of torch's generator, four elements per 64-bit number. So ``probability`` is exact to
    1 / 65,536, the factor matches the effective probability, and the cost is a seventh of ``torch.bernoulli``.
    """
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(1 << 63), None)
    level = round(probability * _LEVELS)
    return bits.view(torch.int16)[:count].view(shape) >= level + _LOWEST, _LEVELS / (_LEVELS - level)


def dropout_bits(hidden: Tensor, probability: float) -> Tensor:
    """Applies ``torch.nn.functional.dropout`` with random numbers from `keep`."""
    if not probability:
        return hidden
    kept, factor = keep(hidden.shape, probability, hidden.device)
    return torch.where(kept, hidden * factor, 0.0)


def add_dropout_bits(residual: Tensor, hidden: Tensor, probability: float) -> Tensor:
    """Returns ``residual + dropout(hidden)`` with random numbers from `keep`."""
    if not probability:
        return residual + hidden
    kept, factor = keep(hidden.shape, probability, hidden.device)
    factors = torch.where(kept, hidden.new_tensor(factor), hidden.new_zeros(()))
    return torch.addcmul(residual, hidden, factors)
