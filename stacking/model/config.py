"""The description of a model that plans, states and checkpoints share. Does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Variant = Literal["post_ln", "pre_ln"]
MOST_LAYERS, WIDEST = 10_000, 1_000_000
"""Far beyond any BERT: a larger value is a typo."""


class ModelConfig(BaseModel):
    """Shape and constants of one BERT, at one depth."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    variant: Variant = "post_ln"
    """``post_ln`` is Google's and Hugging Face's BERT; ``pre_ln`` is that of Gong et al. (2019)."""
    layers: int = Field(gt=0, le=MOST_LAYERS)
    hidden: int = Field(gt=0, le=WIDEST)
    heads: int = Field(gt=0)
    intermediate: int = Field(gt=0, le=WIDEST)
    """Width of the feed-forward layer."""
    vocabulary: int = Field(gt=0)
    """Rows of the token embedding."""
    max_positions: int = Field(default=512, gt=0)
    """Longest sequence, in tokens."""
    segments: int = Field(default=2, gt=0)
    positions: Literal["learned", "sinusoidal"] = "learned"
    norm_affine: bool = True
    """Whether the encoder's LayerNorms have a scale and a bias."""
    norm_eps: float = Field(default=1e-12, gt=0)
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights (``post_ln``; ``pre_ln`` follows the original's rule)."""
    padding_id: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} does not divide into {self.heads} heads")
        if self.padding_id >= self.vocabulary:
            raise ValueError(f"padding_id {self.padding_id} is outside the vocabulary of {self.vocabulary}")
        if self.variant == "post_ln" and not (self.positions == "learned" and self.norm_affine):
            raise ValueError("post_ln has learned positions and affine norms; for anything else use variant pre_ln")
        if self.positions == "sinusoidal" and (self.hidden % 2 or self.hidden < 4):
            raise ValueError(f"sinusoidal positions need an even hidden of at least 4, not {self.hidden}")
        return self

    def with_layers(self, layers: int) -> ModelConfig:
        """Return the same model at another depth."""
        return self.model_copy(update={"layers": layers})
