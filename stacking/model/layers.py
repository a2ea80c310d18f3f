"""The two halves of an encoder layer. Shapes: B sequences, S tokens each, H hidden, A heads."""

from __future__ import annotations

from torch import Tensor, nn

from stacking.model.config import ModelConfig
from stacking.model.kernels import ACTIVATIONS, KERNELS


class SelfAttention(nn.Module):
    """Multi-head attention over all positions, with one matrix product for queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden)
        self.output = nn.Linear(config.hidden, config.hidden)

    def forward(self, hidden: Tensor, key_mask: Tensor | None) -> Tensor:
        """``hidden`` [B, S, H] to [B, S, H]; ``key_mask`` [B, 1, 1, S] bool, True where a key may be seen."""
        batch, length, width = hidden.shape
        split = self.qkv(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.transpose(1, 3).unbind(2)  # each [B, A, S, H / A]
        dropout = self.dropout if self.training else 0.0
        mixed = KERNELS["attention"](query, key, value, attn_mask=key_mask, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two matrices with an activation between, at each position by itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.hidden, config.intermediate)
        self.down = nn.Linear(config.intermediate, config.hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        return self.down(self.activation(self.up(hidden)))


def layer_norm(config: ModelConfig, affine: bool = True) -> nn.Module:
    """A LayerNorm over the hidden dimension."""
    return KERNELS["layer_norm"](config.hidden, eps=config.norm_eps, elementwise_affine=affine)
