"""A BERT with Macaron layers (Lu et al., 2019, arXiv 1906.02762) for `transformers`, as `stacking export` writes it.

Load it with ``trust_remote_code=True``. Shapes: B sequences of S tokens, H hidden, V vocabulary.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput


class MacaronBertConfig(PretrainedConfig):
    """The shape of the model, under BERT's names; ``norm_affine``: whether LayerNorms have a scale and a bias."""

    model_type = "macaron-bert"


class MacaronBertEmbeddings(nn.Module):
    """Tokens times √H, plus positions and segments."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.scale = math.sqrt(config.hidden_size)
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.segments = nn.Embedding(config.type_vocab_size, config.hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Maps [B, S] to [B, S, H]."""
        embedded = self.scale * self.tokens(input_ids)
        embedded = embedded + self.segments(input_ids * 0 if token_type_ids is None else token_type_ids)
        return self.dropout(embedded + self.positions.weight[: input_ids.size(1)])


class MacaronBertAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Maps [B, S, H] to [B, S, H]; ``mask``: bool [B, 1, 1, S], True at tokens."""
        parts = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(2))


class MacaronBertFeedForward(nn.Module):
    """A feed-forward network of half the width."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.up = nn.Linear(config.hidden_size, config.intermediate_size // 2)
        self.down = nn.Linear(config.intermediate_size // 2, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [B, S, H] to [B, S, H]."""
        return self.down(self.activation(self.up(hidden)))


class MacaronBertLayer(nn.Module):
    """Half a feed-forward step, attention, half a feed-forward step, each after a norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.feed_forward_before = MacaronBertFeedForward(config)
        self.feed_forward_before_norm = _norm(config, config.norm_affine)
        self.attention = MacaronBertAttention(config)
        self.attention_norm = _norm(config, config.norm_affine)
        self.feed_forward = MacaronBertFeedForward(config)
        self.feed_forward_norm = _norm(config, config.norm_affine)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Maps [B, S, H] to [B, S, H]."""
        hidden = hidden + self.dropout(0.5 * self.feed_forward_before(self.feed_forward_before_norm(hidden)))
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), mask))
        return hidden + self.dropout(0.5 * self.feed_forward(self.feed_forward_norm(hidden)))


class MacaronBertPreTrainedModel(PreTrainedModel):
    """What the encoder and the model with a head share."""

    config_class = MacaronBertConfig
    base_model_prefix = "encoder"


class MacaronBertModel(MacaronBertPreTrainedModel):
    """The encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embeddings = MacaronBertEmbeddings(config)
        self.layers = nn.ModuleList(MacaronBertLayer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = _norm(config, config.norm_affine)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding."""
        return self.embeddings.tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """Maps token ids [B, S] to the encoder's output [B, S, H]."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        hidden = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden))


class MacaronBertMLMHead(nn.Module):
    """Linear, activation, norm; the decoder is the token embedding."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = _norm(config, True)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [B, S, H] to [B, S, H]."""
        return self.norm(self.activation(self.transform(hidden)))


class MacaronBertForMaskedLM(MacaronBertPreTrainedModel):
    """The encoder with scores for every token of the vocabulary."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = MacaronBertModel(config)
        self.mlm_head = MacaronBertMLMHead(config)
        self.post_init()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> MaskedLMOutput:
        """Maps token ids [B, S] to scores [B, S, V]; ``labels`` [B, S] are -100 where nothing is predicted."""
        hidden = self.mlm_head(self.encoder(input_ids, **inputs).last_hidden_state)
        logits = F.linear(hidden, self.encoder.embeddings.tokens.weight)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


def _norm(config: Any, affine: bool) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=affine)
