"""Defines the encoder layers of ``post_ln`` and ``pre_ln``, whose sub-modules are the same for growth's sake."""

from __future__ import annotations

from torch import Tensor, nn

from stacking.model.config import ModelConfig
from stacking.model.layers import FeedForward, Residual, SelfAttention, layer_norm
from stacking.model.tokens import Layout


class PostLNBlock(nn.Module):
    """Norm after each residual sum: Vaswani et al. (2017), Devlin et al. (2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = layer_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config)
        self.add = Residual(config.dropout)

    def forward(
        self, hidden: Tensor, layout: Layout, rows: Tensor | None = None, queries: Layout | None = None
    ) -> Tensor:
        """Maps ``hidden`` [T, H] to [T, H]; with ``rows`` [R], laid out as ``queries``, only to these rows [R, H]."""
        chosen = None if rows is None else hidden.index_select(0, rows)
        mixed = self.attention(hidden, layout, chosen, queries)
        hidden = self.attention_norm(self.add(hidden if chosen is None else chosen, mixed))
        return self.feed_forward_norm(self.add(hidden, self.feed_forward(hidden)))


class PreLNBlock(nn.Module):
    """Norm before each half, with a direct residual path: the layer of Gong et al. (2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = layer_norm(config, config.norm_affine)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config, config.norm_affine)
        self.add = Residual(config.dropout)

    def forward(
        self, hidden: Tensor, layout: Layout, rows: Tensor | None = None, queries: Layout | None = None
    ) -> Tensor:
        """Maps ``hidden`` [T, H] to [T, H]; with ``rows`` [R], laid out as ``queries``, only to these rows [R, H]."""
        normed = self.attention_norm(hidden)
        chosen = None if rows is None else normed.index_select(0, rows)
        residual = hidden if rows is None else hidden.index_select(0, rows)
        hidden = self.add(residual, self.attention(normed, layout, chosen, queries))
        return self.add(hidden, self.feed_forward(self.feed_forward_norm(hidden)))
