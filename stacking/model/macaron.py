"""Defines the Macaron Net of Lu et al. (2019, arXiv 1906.02762), with the norms, embeddings and heads of ``pre_ln``.

The paper reads a Transformer layer as one step of a splitting scheme for an ordinary differential equation. Strang's
scheme is of higher order than Lie and Trotter's; it takes half a step of the feed-forward network, a whole step of
attention, and half a step of a second feed-forward network. The BERT released with the paper is that of Gong et al.
"""

from __future__ import annotations

from torch import Tensor, nn

from stacking.model.bert import PreLNBert
from stacking.model.config import ModelConfig
from stacking.model.layers import FeedForward, Residual, SelfAttention, layer_norm
from stacking.model.tokens import Layout

_STEP = 0.5


class MacaronBlock(nn.Module):
    """Half a feed-forward step, attention, half a feed-forward step, each after a norm.

    Both networks have half of ``intermediate``, so that a layer has the parameters of ``pre_ln``'s, plus one bias [H].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        half = config.model_copy(update={"intermediate": config.intermediate // 2})
        self.feed_forward_before = FeedForward(half)
        self.feed_forward_before_norm = layer_norm(config, config.norm_affine)
        self.attention = SelfAttention(config)
        self.attention_norm = layer_norm(config, config.norm_affine)
        self.feed_forward = FeedForward(half)
        self.feed_forward_norm = layer_norm(config, config.norm_affine)
        self.add = Residual(config.dropout)

    def forward(
        self, hidden: Tensor, layout: Layout, rows: Tensor | None = None, queries: Layout | None = None
    ) -> Tensor:
        """Maps ``hidden`` [T, H] to [T, H]; with ``rows`` [R], laid out as ``queries``, only to these rows [R, H].

        The first half-step is taken at every token, because keys and values depend on it.
        """
        hidden = self.add(hidden, _STEP * self.feed_forward_before(self.feed_forward_before_norm(hidden)))
        normed = self.attention_norm(hidden)
        chosen = None if rows is None else normed.index_select(0, rows)
        residual = hidden if rows is None else hidden.index_select(0, rows)
        hidden = self.add(residual, self.attention(normed, layout, chosen, queries))
        return self.add(hidden, _STEP * self.feed_forward(self.feed_forward_norm(hidden)))


class MacaronBert(PreLNBert):
    """``pre_ln`` with Macaron layers."""

    block = MacaronBlock
