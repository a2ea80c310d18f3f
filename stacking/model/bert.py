"""Defines BERT with masked-LM and next-sentence prediction, on one device, independent of how it is trained.

Shapes: T tokens of B sequences in one row, R of them needed by a head, P of them masked; H hidden, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pkgutil import resolve_name

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stacking.model.blocks import PostLNBlock, PreLNBlock
from stacking.model.config import VARIANTS, ModelConfig
from stacking.model.embeddings import PostLNEmbeddings, PreLNEmbeddings
from stacking.model.heads import PostLNMLMHead, PreLNMLMHead
from stacking.model.kernels import PLAIN
from stacking.model.layers import FeedForward, SelfAttention, layer_norm
from stacking.model.tokens import Layout, Tokens, padded_tokens


class Bert(nn.Module, ABC):
    """The common part of all variants: encode, predict masked tokens and next sentences, sum the losses.

    A variant adds ``embeddings``, ``layers``, ``mlm_head``, ``nsp_head`` and the methods below.
    """

    embeddings: nn.Module
    layers: nn.ModuleList
    mlm_head: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.kernels = PLAIN
        self.recompute = False
        """Whether the backward pass recomputes each layer instead of storing its activations (Chen et al., 2016)."""

    @abstractmethod
    def final(self, hidden: Tensor) -> Tensor:
        """Maps the last layer's output [..., H] to the encoder's output [..., H]."""

    @abstractmethod
    def nsp_logits(self, first: Tensor) -> Tensor:
        """Maps first tokens [B, H] to [B, 2]; column 0: B follows A, column 1: B is random, as in Hugging Face."""

    def pooled(self, first: Tensor) -> Tensor:
        """Maps first tokens [B, H] to what a classifier of whole sequences takes, [B, H]: themselves."""
        return first

    @abstractmethod
    def initialise(self) -> None:
        """Draws the initial weights from torch's default generator."""

    def encode(self, tokens: Tokens) -> Tensor:
        """Returns the encoder's output [T, H] at every token."""
        hidden = self.embeddings(tokens)
        for layer in self.layers:
            hidden = self._run(layer, hidden, tokens.layout)
        return self.final(hidden)

    def encode_needed(self, tokens: Tokens) -> Tensor:
        """Returns the encoder's output [R, H] at the tokens that a head needs.

        The last layer computes keys and values of all tokens, but everything else only at these tokens: with three
        layers that saves a fifth of the encoder.
        """
        *layers, last = self.layers
        hidden = self.embeddings(tokens)
        for layer in layers:
            hidden = self._run(layer, hidden, tokens.layout)
        return self.final(self._run(last, hidden, tokens.layout, tokens.needed, tokens.needed_layout))

    def heads(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Returns vocabulary scores [P, V] at the masked tokens and next-sentence scores [B, 2].

        With three layers, a head over all tokens would cost more than the encoder.
        """
        hidden = self.encode_needed(tokens)
        masked, first = hidden.index_select(0, tokens.masked), hidden.index_select(0, tokens.first)
        return self.mlm_head(masked), self.nsp_logits(first)

    def forward(self, tokens: Tokens, mlm_labels: Tensor, nsp_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the two losses as fp32 sums, so that any split of a batch adds up to the same total.

        Args:
            mlm_labels: int64 [P], the original tokens at the masked positions.
            nsp_labels: int64 [B], 0 = B follows A, 1 = B is random; None for samples without pairs.

        Returns:
            The sum of the cross-entropies over the P masked tokens, and over the B pairs (0 without labels).
        """
        mlm_logits, nsp_logits = self.heads(tokens)
        mlm_loss = self.kernels.loss(mlm_logits, mlm_labels)
        if nsp_labels is None:
            return mlm_loss, torch.zeros_like(mlm_loss)
        return mlm_loss, self.kernels.loss(nsp_logits, nsp_labels)

    def logits(self, input_ids: Tensor, segment_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the scores at every position of padded sequences [B, S] on the CPU: [B, S, V] and [B, 2]."""
        none = torch.empty(0, dtype=torch.int64)
        tokens = padded_tokens(*(x.numpy() for x in (input_ids, segment_ids, attention_mask, none)))
        hidden = self.encode(tokens)
        mlm_logits = self.mlm_head(hidden).unflatten(0, input_ids.shape)
        return mlm_logits, self.nsp_logits(hidden.unflatten(0, input_ids.shape)[:, 0])

    def _run(self, layer: nn.Module, hidden: Tensor, *layouts: Layout | Tensor) -> Tensor:
        if self.recompute and self.training:
            recomputed: Tensor = checkpoint(layer, hidden, *layouts, use_reentrant=False)
            return recomputed
        output: Tensor = layer(hidden, *layouts)
        return output


class PostLNBert(Bert):
    """Google's and Hugging Face's BERT (Devlin et al., 2019), exactly."""

    embeddings: PostLNEmbeddings

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embeddings = PostLNEmbeddings(config)
        self.layers = nn.ModuleList(PostLNBlock(config) for _ in range(config.layers))
        self.pooler = nn.Linear(config.hidden, config.hidden)
        self.mlm_head = PostLNMLMHead(config, self.embeddings.tokens)
        self.nsp_head = nn.Linear(config.hidden, 2)
        self.initialise()

    def final(self, hidden: Tensor) -> Tensor:
        """Returns ``hidden``: the last layer already ends with its norm."""
        return hidden

    def pooled(self, first: Tensor) -> Tensor:
        """Maps first tokens [B, H] to [B, H]: a tanh layer, pre-trained with the next-sentence head."""
        return torch.tanh(self.pooler(first))

    def nsp_logits(self, first: Tensor) -> Tensor:
        """Maps first tokens [B, H] to [B, 2], through the pooler."""
        return self.nsp_head(self.pooled(first))

    def initialise(self) -> None:
        """Draws all matrices from N(0, ``initializer_range``); biases and the padding row are zero, norms identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        zero_padding_row(self.embeddings.tokens)


class FinallyNormedBert(Bert):
    """A BERT with norms before each half and ``final_norm`` at the end, no pooler, and an ``nsp_head`` of one logit."""

    final_norm: nn.Module
    nsp_head: nn.Linear

    def final(self, hidden: Tensor) -> Tensor:
        """Applies the final norm, which the residual path has not passed yet."""
        return self.final_norm(hidden)

    def nsp_logits(self, first: Tensor) -> Tensor:
        """Maps first tokens [B, H] to [B, 2]: the single logit for "B follows A", and a zero.

        Softmax over (z, 0) is the sigmoid of z, so cross-entropy over the pair is the original's binary one.
        """
        follows = self.nsp_head(first)
        return torch.cat([follows, torch.zeros_like(follows)], dim=1)


class PreLNBert(FinallyNormedBert):
    """The BERT of Gong et al. (2019)."""

    embeddings: PreLNEmbeddings
    block: Callable[[ModelConfig], nn.Module] = PreLNBlock

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embeddings = PreLNEmbeddings(config)
        self.layers = nn.ModuleList(type(self).block(config) for _ in range(config.layers))
        self.final_norm = layer_norm(config, config.norm_affine)
        self.mlm_head = PreLNMLMHead(config, self.embeddings.tokens)
        self.nsp_head = nn.Linear(config.hidden, 1)
        self.initialise()

    def initialise(self) -> None:
        """Applies the original's rule: N(0, H^-½) for embeddings and attention, Kaiming-normal for feed-forward layers.

        The heads keep torch's default, as in the original.
        """
        std = self.config.hidden**-0.5
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
                zero_padding_row(module)
            elif isinstance(module, SelfAttention):
                for linear in (module.qkv, module.output):
                    nn.init.normal_(linear.weight, std=std)
                    nn.init.zeros_(linear.bias)
            elif isinstance(module, FeedForward):
                nn.init.kaiming_normal_(module.up.weight, nonlinearity="linear")
                nn.init.kaiming_normal_(module.down.weight, nonlinearity="relu")
                nn.init.zeros_(module.up.bias)
                nn.init.zeros_(module.down.bias)


def build(config: ModelConfig) -> Bert:
    """Builds a freshly initialised model in fp32; the same for the same ``torch.manual_seed``."""
    variant: type[Bert] = resolve_name(VARIANTS[config.variant].model)
    return variant(config)


def zero_padding_row(embedding: nn.Embedding) -> None:
    """Sets the row that is never trained to zero."""
    if embedding.padding_idx is not None:
        nn.init.zeros_(embedding.weight[embedding.padding_idx])
