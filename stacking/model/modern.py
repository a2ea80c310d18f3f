"""Defines ModernBERT (Warner et al., 2024, arXiv 2412.13663) with full attention in every layer.

It has rotary positions instead of embedded ones (Su et al., 2021), a gated feed-forward network (Shazeer, 2020), a norm
before each half, and biases in the heads alone. It has no segment embedding: only separators tell sentences apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stacking.model.bert import FinallyNormedBert, zero_padding_row
from stacking.model.config import ROTARY_BASE, ModelConfig
from stacking.model.heads import TiedDecoder
from stacking.model.kernels import ACTIVATIONS
from stacking.model.layers import Dropout, Residual, SelfAttention, layer_norm
from stacking.model.tokens import Layout, Tokens

_CUTOFF = 2.0
"""Initial weights stay within this many standard deviations."""


class RotaryPositions(nn.Module):
    """Turns the two halves of each head's dimensions, as D/2 planes, by angles that grow with the position.

    The table is rounded as in `transformers`: angles in fp32, then, in 16-bit training, to the parameters' precision.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden // config.heads
        frequencies = 1.0 / ROTARY_BASE ** (torch.arange(0, width, 2).float() / width)
        angles = torch.arange(config.max_positions).float()[:, None] * frequencies
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Turns ``rows`` [T, A, D] by their ``positions`` int64 [T], in fp32 at least."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        cosines, sines = (part.index_select(0, positions)[:, None].to(wide) for part in (self.cosines, self.sines))
        first, second = rows.chunk(2, dim=-1)
        turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
        return turned.to(rows.dtype)


class RotaryAttention(SelfAttention):
    """Attention without biases whose scores depend on the distance of two tokens."""

    def __init__(self, config: ModelConfig, positions: RotaryPositions) -> None:
        super().__init__(config, bias=False)
        self.positions = positions

    def placed(self, rows: Tensor, layout: Layout) -> Tensor:
        """Turns queries or keys [T, A, D] by their positions."""
        return self.positions(rows, layout.positions)


class GatedFeedForward(nn.Module):
    """An activated value times a gate between two matrices, without biases: GeGLU where the activation is GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.hidden, 2 * config.intermediate, bias=False)
        self.dropout = Dropout(config.dropout)
        self.down = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [..., H] to [..., H]."""
        value, gate = self.up(hidden).chunk(2, dim=-1)
        return self.down(self.dropout(self.activation(value) * gate))


class ModernBlock(nn.Module):
    """Attention, then a gated feed-forward network, each after a norm and added to the residual stream.

    Dropout acts where ModernBERT's does: ``attention_dropout`` on probabilities and on what attention adds, ``dropout``
    inside the feed-forward network.
    """

    def __init__(self, config: ModelConfig, positions: RotaryPositions) -> None:
        super().__init__()
        self.attention = RotaryAttention(config, positions)
        self.attention_norm = layer_norm(config, bias=False)
        self.feed_forward = GatedFeedForward(config)
        self.feed_forward_norm = layer_norm(config, bias=False)
        self.add = Residual(config.attention_dropout)

    def forward(
        self, hidden: Tensor, layout: Layout, rows: Tensor | None = None, queries: Layout | None = None
    ) -> Tensor:
        """Maps ``hidden`` [T, H] to [T, H]; with ``rows`` [R], laid out as ``queries``, only to these rows [R, H]."""
        residual, normed = self.read(hidden)
        chosen = None if rows is None else normed.index_select(0, rows)
        residual = residual if rows is None else residual.index_select(0, rows)
        hidden = self.add(residual, self.attention(normed, layout, chosen, queries))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))

    def read(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the residual stream [T, H] and what attention reads of it [T, H]."""
        return hidden, self.attention_norm(hidden)


class FirstModernBlock(ModernBlock):
    """The lowest layer, whose attention norm is ModernBERT's norm of the embeddings: the stream begins after it.

    So all layers have the same parameters, and growth may copy any of them anywhere. A copy of this layer higher up has
    the embeddings' norm as its attention norm; a layer that becomes the lowest normalises the embeddings with its own.
    """

    def __init__(self, config: ModelConfig, positions: RotaryPositions) -> None:
        super().__init__(config, positions)
        self.dropout = Dropout(config.dropout)

    def read(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the normalised embeddings [T, H] twice."""
        normed = self.dropout(self.attention_norm(hidden))
        return normed, normed


class ModernEmbeddings(nn.Module):
    """Tokens alone; the lowest layer normalises them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.hidden, padding_idx=config.padding_id)

    def forward(self, tokens: Tokens) -> Tensor:
        """Maps T tokens to [T, H]."""
        return self.tokens(tokens.input_ids)


class ModernMLMHead(nn.Module):
    """Linear, activation, norm, tied decoder; only the decoder has a bias."""

    def __init__(self, config: ModelConfig, tokens: nn.Embedding) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.transform = nn.Linear(config.hidden, config.hidden, bias=False)
        self.norm = layer_norm(config, bias=False)
        self.decoder = TiedDecoder(tokens)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [N, H] to [N, V]."""
        return self.decoder(self.norm(self.activation(self.transform(hidden))), self.bias)


class ModernBert(FinallyNormedBert):
    """ModernBERT, with the next-sentence head of ``pre_ln``."""

    embeddings: ModernEmbeddings

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embeddings = ModernEmbeddings(config)
        positions = RotaryPositions(config)
        blocks = [FirstModernBlock, *[ModernBlock] * (config.layers - 1)]
        self.layers = nn.ModuleList(block(config, positions) for block in blocks)
        self.final_norm = layer_norm(config, bias=False)
        self.mlm_head = ModernMLMHead(config, self.embeddings.tokens)
        self.nsp_head = nn.Linear(config.hidden, 1)
        self.initialise()

    def initialise(self) -> None:
        """Applies ModernBERT's rule: truncated N(0, ``initializer_range``), over √2L for what writes into the stream.

        L is the depth of the model that is drawn; if it grows later, the depth of the first stage.
        """
        narrow = self.config.initializer_range / math.sqrt(2 * self.config.layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                written = name.endswith((".output", ".down", ".transform"))
                std = narrow if written else self.config.initializer_range
                _draw(module.weight, std)
        zero_padding_row(self.embeddings.tokens)
        nn.init.zeros_(self.nsp_head.bias)


@torch.no_grad()
def _draw(weight: Tensor, std: float) -> None:
    """Draws from N(0, std) cut at ``_CUTOFF`` deviations, each value once.

    From torch 2.13 on, ``trunc_normal_`` draws again until all values are within, which never happens where drawing is
    skipped because the weights will be loaded.
    """
    edge = math.erf(_CUTOFF / math.sqrt(2))
    weight.uniform_(-edge, edge).erfinv_().mul_(math.sqrt(2) * std)
