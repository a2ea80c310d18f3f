"""Embeds token ids for the encoder. Shapes: T tokens of many sequences in one row, H hidden."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stacking.model.config import ModelConfig
from stacking.model.layers import Dropout, layer_norm
from stacking.model.sinusoids import sinusoids
from stacking.model.tokens import Tokens


class LearnedPositions(nn.Embedding):
    """One trained vector for each position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.max_positions, config.hidden)


class SinusoidalPositions(nn.Module):
    """Fixed sines, then cosines, in geometrically spaced wavelengths up to 10,000 · 2π (Vaswani et al., 2017)."""

    table: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        table = torch.from_numpy(sinusoids(config.max_positions, config.hidden))
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Returns the vectors [T, H] of ``positions`` int64 [T]."""
        return self.table.index_select(0, positions)


POSITIONS: dict[str, type[nn.Module]] = {"learned": LearnedPositions, "sinusoidal": SinusoidalPositions}


class PostLNEmbeddings(nn.Module):
    """Tokens, positions and segments, summed and normalised: Devlin et al. (2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.hidden, padding_idx=config.padding_id)
        self.positions = LearnedPositions(config)
        self.segments = nn.Embedding(config.segments, config.hidden)
        self.norm = layer_norm(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: Tokens) -> Tensor:
        """Maps T tokens to [T, H]."""
        positions = self.positions(tokens.layout.positions)
        total = self.tokens(tokens.input_ids) + self.segments(tokens.segment_ids) + positions
        return self.dropout(self.norm(total))


class PreLNEmbeddings(nn.Module):
    """Tokens scaled by √H, so that they weigh as much as the positions, plus positions and segments; not normalised.

    The first segment's vector is and stays zero, as in the original: only the second sentence is marked. It is the
    ``padding_idx`` of its embedding, so its gradient is zero, and Adam and weight decay leave a zero row at zero.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(config.hidden)
        self.tokens = nn.Embedding(config.vocabulary, config.hidden, padding_idx=config.padding_id)
        self.positions = POSITIONS[config.positions](config)
        self.segments = nn.Embedding(config.segments, config.hidden, padding_idx=0)
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: Tokens) -> Tensor:
        """Maps T tokens to [T, H]."""
        scaled = self.scale * self.tokens(tokens.input_ids)
        # The sinusoids are a buffer, which ZeRO-3 leaves in fp32 when it casts the parameters.
        positions = self.positions(tokens.layout.positions).to(scaled.dtype)
        return self.dropout(scaled + self.segments(tokens.segment_ids) + positions)
