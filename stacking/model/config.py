"""The description of a model that plans, states and checkpoints share, and the variants. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stacking.model.shapes import Shapes, linear, norm

MOST_LAYERS, WIDEST = 10_000, 1_000_000
"""Far beyond any BERT: a larger value is a typo."""


class ModelConfig(BaseModel):
    """Shape and constants of one BERT, at one depth."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    variant: str = "post_ln"
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
        if self.variant not in VARIANTS:
            raise ValueError(f"there is no variant {self.variant!r}; use one of {', '.join(VARIANTS)}")
        for key, value in VARIANTS[self.variant].fixed.items():
            if getattr(self, key) != value:
                others = " or ".join(name for name, variant in VARIANTS.items() if key not in variant.fixed)
                raise ValueError(f"{key} of {self.variant} is {value!r}; for anything else use variant {others}")
        if self.positions == "sinusoidal" and (self.hidden % 2 or self.hidden < 4):
            raise ValueError(f"sinusoidal positions need an even hidden of at least 4, not {self.hidden}")
        return self

    def with_layers(self, layers: int) -> ModelConfig:
        """Return the same model at another depth."""
        return self.model_copy(update={"layers": layers})

    @property
    def has_hugging_face_class(self) -> bool:
        """Whether the model can be exported."""
        return VARIANTS[self.variant].hugging_face


def _post_ln_heads(config: ModelConfig) -> Shapes:
    return {
        **linear("pooler", config.hidden, config.hidden),
        "mlm_head.bias": (config.vocabulary,),
        **linear("mlm_head.transform", config.hidden, config.hidden),
        **norm("mlm_head.norm", config.hidden),
        **linear("nsp_head", config.hidden, 2),
    }


def _pre_ln_heads(config: ModelConfig) -> Shapes:
    return {
        **norm("final_norm", config.hidden, config.norm_affine),
        **linear("mlm_head.transform", config.hidden, config.hidden),
        **norm("mlm_head.norm", config.hidden),
        **linear("nsp_head", config.hidden, 1),
    }


@dataclass(frozen=True)
class Variant:
    """One kind of BERT."""

    model: str
    """Module and class, which is imported when a model is built: plans do not import torch."""
    heads: Callable[[ModelConfig], Shapes]
    """The parameters after the layers, in the order of the class."""
    norms_embeddings: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `ModelConfig` that have only one value."""
    hugging_face: bool = False
    """Whether it is ``transformers.BertForPreTraining``."""


VARIANTS: dict[str, Variant] = {
    "post_ln": Variant(
        "stacking.model.bert:PostLNBert",
        _post_ln_heads,
        norms_embeddings=True,
        fixed={"positions": "learned", "norm_affine": True},
        hugging_face=True,
    ),
    "pre_ln": Variant("stacking.model.bert:PreLNBert", _pre_ln_heads),
}
