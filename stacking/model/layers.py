"""Defines the two halves of an encoder layer. Shapes: T tokens of many sequences in one row, H hidden, A heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stacking.model.config import ModelConfig
from stacking.model.kernels import ACTIVATIONS, PLAIN
from stacking.model.tokens import Layout


class QueryKeyValue(nn.Linear):
    """Queries, keys and values from one matrix [3H, H] where all rows need all three."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns three [T, H] of ``hidden`` [T, H]; with ``chosen`` [R, H], queries [R, H] of these instead."""
        width = self.in_features
        if chosen is None:
            query, key, value = super().forward(hidden).view(-1, 3, width).unbind(1)
            return query, key, value
        parts = [width, 2 * width]
        weights, biases = self.weight.split(parts), (None, None) if self.bias is None else self.bias.split(parts)
        key, value = F.linear(hidden, weights[1], biases[1]).view(-1, 2, width).unbind(1)
        return F.linear(chosen, weights[0], biases[0]), key, value


class SelfAttention(nn.Module):
    """Multi-head attention of each sequence's tokens to all tokens of that sequence."""

    def __init__(self, config: ModelConfig, bias: bool = True) -> None:
        super().__init__()
        self.kernels = PLAIN
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = QueryKeyValue(config.hidden, 3 * config.hidden, bias)
        self.output = nn.Linear(config.hidden, config.hidden, bias)

    def forward(
        self, hidden: Tensor, keys: Layout, chosen: Tensor | None = None, queries: Layout | None = None
    ) -> Tensor:
        """Maps ``hidden`` [T, H], laid out as ``keys``, to [T, H].

        With ``chosen``, rows [R, H] of ``hidden`` laid out as ``queries``, the result is only for these: [R, H].
        """
        dropout = self.dropout if self.training else 0.0
        queries = queries or keys
        query, key, value = (part.view(part.size(0), self.heads, -1) for part in self.qkv(hidden, chosen))
        query, key = self.placed(query, queries), self.placed(key, keys)
        mixed = self.kernels.attend(query, key, value, queries, keys, dropout)
        return self.output(mixed.flatten(1))

    def placed(self, rows: Tensor, layout: Layout) -> Tensor:
        """Returns queries or keys [T, A, D] marked with their positions; unchanged if the embeddings have done so."""
        return rows


class FeedForward(nn.Module):
    """Two matrices with an activation in between, applied to each position separately."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.hidden, config.intermediate)
        self.down = nn.Linear(config.intermediate, config.hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [..., H] to [..., H]."""
        return self.down(self.activation(self.up(hidden)))


class Residual(nn.Module):
    """``residual + dropout(hidden)``."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.kernels = PLAIN
        self.probability = probability

    def forward(self, residual: Tensor, hidden: Tensor) -> Tensor:
        """Maps two [..., H] to [..., H]."""
        return self.kernels.add(residual, hidden, self.probability if self.training else 0.0)


class Dropout(nn.Module):
    """Dropout with the device's kernel."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.kernels = PLAIN
        self.probability = probability

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [...] to [...]."""
        return self.kernels.drop(hidden, self.probability if self.training else 0.0)


class LayerNorm(nn.LayerNorm):
    """A LayerNorm with the device's kernel."""

    def __init__(self, width: int, eps: float, affine: bool, bias: bool) -> None:
        super().__init__(width, eps=eps, elementwise_affine=affine, bias=bias)
        self.kernels = PLAIN

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [..., H] to [..., H]."""
        return self.kernels.normalise(hidden, self.weight, self.bias, self.eps)


def layer_norm(config: ModelConfig, affine: bool = True, bias: bool = True) -> nn.Module:
    """A LayerNorm over the hidden dimension that reduces in fp32 for any precision of the input."""
    return LayerNorm(config.hidden, config.norm_eps, affine, bias)
