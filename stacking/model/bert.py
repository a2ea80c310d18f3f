"""BERT with masked-LM and next-sentence prediction, on one device, without any knowledge of how it is trained.

Shapes: B sequences, S tokens each, H hidden, V vocabulary, P masked positions in the whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from stacking.model.blocks import PostLNBlock, PreLNBlock
from stacking.model.config import ModelConfig
from stacking.model.embeddings import PostLNEmbeddings, PreLNEmbeddings
from stacking.model.heads import PostLNMLMHead, PreLNMLMHead
from stacking.model.kernels import KERNELS
from stacking.model.layers import FeedForward, SelfAttention, layer_norm


class Bert(nn.Module, ABC):
    """What every variant does: encode, predict masked tokens, tell whether B follows A, sum the losses.

    A variant adds ``embeddings``, ``layers``, ``mlm_head``, ``nsp_head`` and the methods below.
    """

    embeddings: nn.Module
    layers: nn.ModuleList
    mlm_head: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def final(self, hidden: Tensor) -> Tensor:
        """What comes after the last layer: [B, S, H] to [B, S, H]."""

    @abstractmethod
    def nsp_logits(self, hidden: Tensor) -> Tensor:
        """[B, S, H] to [B, 2]; column 0: B follows A, column 1: B is random, as in Hugging Face."""

    @abstractmethod
    def initialise(self) -> None:
        """Draw the initial weights from torch's default generator."""

    def encode(self, input_ids: Tensor, segment_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The encoder's output [B, S, H].

        Args:
            input_ids: int64 [B, S].
            segment_ids: int64 [B, S].
            attention_mask: bool [B, S], True = real token; None when nothing is padded.
        """
        key_mask = None if attention_mask is None else attention_mask[:, None, None, :]
        hidden = self.embeddings(input_ids, segment_ids)
        for layer in self.layers:
            hidden = layer(hidden, key_mask)
        return self.final(hidden)

    def mlm_logits(self, hidden: Tensor, mlm_positions: Tensor) -> Tensor:
        """Vocabulary scores [P, V] at the flat indices ``mlm_positions`` [P] of ``hidden`` [B, S, H] only.

        With three layers a head over all positions would cost more than the encoder.
        """
        return self.mlm_head(hidden.flatten(0, 1).index_select(0, mlm_positions))

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        attention_mask: Tensor | None,
        mlm_positions: Tensor,
        mlm_labels: Tensor,
        nsp_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The two losses as fp32 sums, so that any split of a batch adds up to the same total.

        Args:
            input_ids, segment_ids, attention_mask: as in ``encode``.
            mlm_positions: int64 [P], flat indices ``b * S + s`` of the masked tokens.
            mlm_labels: int64 [P], the tokens that stood there.
            nsp_labels: int64 [B], 0 = B follows A, 1 = B is random; None for samples without pairs.

        Returns:
            The sum of the cross-entropies over the P masked tokens, and over the B pairs (0 without labels).
        """
        hidden = self.encode(input_ids, segment_ids, attention_mask)
        mlm_loss = summed_cross_entropy(self.mlm_logits(hidden, mlm_positions), mlm_labels)
        if nsp_labels is None:
            return mlm_loss, torch.zeros_like(mlm_loss)
        return mlm_loss, summed_cross_entropy(self.nsp_logits(hidden), nsp_labels)

    def logits(self, input_ids: Tensor, segment_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores at every position: vocabulary [B, S, V] and next sentence [B, 2]."""
        hidden = self.encode(input_ids, segment_ids, attention_mask)
        return self.mlm_head(hidden), self.nsp_logits(hidden)


class PostLNBert(Bert):
    """Google's and Hugging Face's BERT (Devlin et al., 2019), to the last detail."""

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
        """The last layer ends with its norm: nothing is left to do."""
        return hidden

    def nsp_logits(self, hidden: Tensor) -> Tensor:
        """[B, S, H] to [B, 2], through the pooler: a tanh layer on the first token."""
        return self.nsp_head(torch.tanh(self.pooler(hidden[:, 0])))

    def initialise(self) -> None:
        """All matrices from N(0, ``initializer_range``), biases and the padding row zero, norms at identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        zero_padding_row(self.embeddings.tokens)


class PreLNBert(Bert):
    """The BERT of Gong et al. (2019): norms before each half and one at the end, no pooler, one NSP logit."""

    embeddings: PreLNEmbeddings

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embeddings = PreLNEmbeddings(config)
        self.layers = nn.ModuleList(PreLNBlock(config) for _ in range(config.layers))
        self.final_norm = layer_norm(config, config.norm_affine)
        self.mlm_head = PreLNMLMHead(config, self.embeddings.tokens)
        self.nsp_head = nn.Linear(config.hidden, 1)
        self.initialise()

    def final(self, hidden: Tensor) -> Tensor:
        """The norm that the residual path has not met yet."""
        return self.final_norm(hidden)

    def nsp_logits(self, hidden: Tensor) -> Tensor:
        """[B, S, H] to [B, 2]: the one logit for "B follows A" beside a zero.

        Softmax over (z, 0) is the sigmoid of z, so cross-entropy over the pair is the original's binary one.
        """
        follows = self.nsp_head(hidden[:, 0])
        return torch.cat([follows, torch.zeros_like(follows)], dim=1)

    def initialise(self) -> None:
        """The original's rule: N(0, H^-½) for embeddings and attention, Kaiming-normal for the feed-forward layers.

        The heads keep torch's default, as they do there.
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


VARIANTS: dict[str, type[Bert]] = {"post_ln": PostLNBert, "pre_ln": PreLNBert}


def build(config: ModelConfig) -> Bert:
    """A freshly initialised model in fp32; the same for the same ``torch.manual_seed``."""
    return VARIANTS[config.variant](config)


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` [N, C] against ``labels`` [N], summed in fp32; 0 for N = 0."""
    return KERNELS["cross_entropy"](logits.float(), labels, reduction="sum")


def zero_padding_row(embedding: nn.Embedding) -> None:
    """Set the row that is never trained to zero."""
    if embedding.padding_idx is not None:
        nn.init.zeros_(embedding.weight[embedding.padding_idx])
