"""One encoder layer: a class for each variant. Both have the same sub-modules, so that growth treats them alike."""

from __future__ import annotations

from torch import Tensor, nn

from stacking.model.config import ModelConfig
from stacking.model.layers import FeedForward, SelfAttention, layer_norm


class PostLNBlock(nn.Module):
    """Norm after each residual sum: Vaswani et al. (2017), Devlin et al. (2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = layer_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, key_mask: Tensor | None) -> Tensor:
        """``hidden`` [B, S, H] to [B, S, H]; ``key_mask`` as in ``SelfAttention``."""
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, key_mask)))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))


class PreLNBlock(nn.Module):
    """Norm before each half, an untouched residual path between: the layer of Gong et al. (2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = layer_norm(config, config.norm_affine)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config, config.norm_affine)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, key_mask: Tensor | None) -> Tensor:
        """``hidden`` [B, S, H] to [B, S, H]; ``key_mask`` as in ``SelfAttention``."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), key_mask))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
