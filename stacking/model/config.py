"""Defines the description of a model that plans, states and checkpoints share, and the variants, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stacking.model.shapes import (
    Part,
    affine_norm,
    attention,
    encoder_norm,
    feed_forward,
    gated_feed_forward,
    half_feed_forward,
    one_score,
    position_embedding,
    segment_embedding,
    square,
    token_bias,
    token_embedding,
    two_scores,
    without_biases,
)

MOST_LAYERS, WIDEST = 10_000, 1_000_000
"""Far beyond any BERT: a larger value is a typo."""
ROTARY_BASE = 10_000.0
"""Sets the longest wavelength of rotary positions, nearly 2π times as many tokens: Su et al. (2021), and ModernBERT
while it trained on 1,024 tokens."""


class ModelConfig(BaseModel):
    """Shape and constants of one BERT, at one depth."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    variant: str = "post_ln"
    """``post_ln`` is Google's and Hugging Face's BERT, ``pre_ln`` that of Gong et al. (2019), ``macaron`` that of Lu et
    al. (2019), ``modern`` that of Warner et al. (2024)."""
    layers: int = Field(gt=0, le=MOST_LAYERS)
    hidden: int = Field(gt=0, le=WIDEST)
    heads: int = Field(gt=0)
    intermediate: int = Field(gt=0, le=WIDEST)
    """Width of the feed-forward layer; ``modern`` has three matrices of this width, not two."""
    vocabulary: int = Field(gt=0)
    """Rows of the token embedding."""
    max_positions: int = Field(default=512, gt=0)
    """Longest sequence, in tokens."""
    segments: int = Field(default=2, gt=0)
    """Rows of the segment embedding, which ``modern`` does not have."""
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    """Unless given, the first of the variant's choices."""
    norm_affine: bool = True
    """Whether the encoder's LayerNorms have a scale and a bias; those of ``modern`` have a scale only."""
    norm_eps: float = Field(default=1e-12, gt=0)
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights (``post_ln``, ``modern``; the others follow their original's rule)."""
    padding_id: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _with_the_only_choices(cls, given: Any) -> Any:
        variant = VARIANTS.get(str(given.get("variant"))) if isinstance(given, dict) else None
        return given if variant is None else {key: first for key, (first, *_) in variant.choices.items()} | given

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} does not divide into {self.heads} heads")
        if self.padding_id >= self.vocabulary:
            raise ValueError(f"padding_id {self.padding_id} is outside the vocabulary of {self.vocabulary}")
        if self.variant not in VARIANTS:
            raise ValueError(f"there is no variant {self.variant!r}; use one of {', '.join(VARIANTS)}")
        for key, choices in VARIANTS[self.variant].choices.items():
            if (value := getattr(self, key)) not in choices:
                others = " or ".join(name for name, variant in VARIANTS.items() if variant.allows(key, value))
                raise ValueError(f"{key} of {self.variant} cannot be {value!r}; for that use variant {others}")
        for key, factor in VARIANTS[self.variant].multiples.items():
            if getattr(self, key) % factor:
                raise ValueError(f"{key} of {self.variant} is {getattr(self, key)}; give a multiple of {factor}")
        if self.positions == "sinusoidal" and (self.hidden % 2 or self.hidden < 4):
            raise ValueError(f"sinusoidal positions need an even hidden of at least 4, not {self.hidden}")
        if self.positions == "rotary" and self.hidden // self.heads % 2:
            raise ValueError(f"rotary positions need heads of an even width, not {self.hidden // self.heads}")
        return self

    def with_layers(self, layers: int) -> ModelConfig:
        """Returns the same model at another depth."""
        return self.model_copy(update={"layers": layers})

    @property
    def has_hugging_face_class(self) -> bool:
        """Whether the model can be exported."""
        return bool(VARIANTS[self.variant].hugging_face)


@dataclass(frozen=True)
class Variant:
    """One kind of BERT. Shapes, memory, FLOPs and growth follow from the parts listed here.

    The parts are in the order of the class's parameters, and those of a layer in the order of their computation.
    """

    model: str
    """Module and class, which is imported when a model is built: plans do not import torch."""
    embeddings: Mapping[str, Part]
    layer: Mapping[str, Part]
    heads: Mapping[str, Part]
    """All that follows the layers."""
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys of `ModelConfig` that cannot have every value, and their values; the first is the default."""
    multiples: Mapping[str, int] = field(default_factory=dict)
    """Keys of `ModelConfig` whose value must be a multiple of a number."""
    hugging_face: str = ""
    """Module and class that write it as a Hugging Face folder and read it again; empty: it cannot be exported."""

    def allows(self, key: str, value: Any) -> bool:
        """Returns whether a key of `ModelConfig` may have this value."""
        return key not in self.choices or value in self.choices[key]


_SUMMED_EMBEDDINGS: Mapping[str, Part] = {
    "embeddings.tokens": token_embedding,
    "embeddings.positions": position_embedding,
    "embeddings.segments": segment_embedding,
}
_TRANSFORMER_LAYER: Mapping[str, Part] = {
    "attention": attention,
    "attention_norm": encoder_norm,
    "feed_forward": feed_forward,
    "feed_forward_norm": encoder_norm,
}
_PRE_LN_HEADS: Mapping[str, Part] = {
    "final_norm": encoder_norm,
    "mlm_head.transform": square,
    "mlm_head.norm": affine_norm,
    "nsp_head": one_score,
}
_ADDED_POSITIONS: Mapping[str, tuple[Any, ...]] = {"positions": ("learned", "sinusoidal")}

VARIANTS: dict[str, Variant] = {
    "post_ln": Variant(
        "stacking.model.bert:PostLNBert",
        embeddings={**_SUMMED_EMBEDDINGS, "embeddings.norm": affine_norm},
        layer=_TRANSFORMER_LAYER,
        heads={
            "pooler": square,
            "mlm_head.bias": token_bias,
            "mlm_head.transform": square,
            "mlm_head.norm": affine_norm,
            "nsp_head": two_scores,
        },
        choices={"positions": ("learned",), "norm_affine": (True,)},
        hugging_face="stacking.huggingface.bert:BertFolder",
    ),
    "pre_ln": Variant(
        "stacking.model.bert:PreLNBert",
        embeddings=_SUMMED_EMBEDDINGS,
        layer=_TRANSFORMER_LAYER,
        heads=_PRE_LN_HEADS,
        choices=_ADDED_POSITIONS,
        hugging_face="stacking.huggingface.megatron:MegatronFolder",
    ),
    "macaron": Variant(
        "stacking.model.macaron:MacaronBert",
        embeddings=_SUMMED_EMBEDDINGS,
        layer={
            "feed_forward_before": half_feed_forward,
            "feed_forward_before_norm": encoder_norm,
            "attention": attention,
            "attention_norm": encoder_norm,
            "feed_forward": half_feed_forward,
            "feed_forward_norm": encoder_norm,
        },
        heads=_PRE_LN_HEADS,
        choices=_ADDED_POSITIONS,
        multiples={"intermediate": 2},
        hugging_face="stacking.huggingface.macaron:MacaronFolder",
    ),
    "modern": Variant(
        "stacking.model.modern:ModernBert",
        embeddings={"embeddings.tokens": token_embedding},
        layer={
            "attention": without_biases(attention),
            "attention_norm": without_biases(affine_norm),
            "feed_forward": gated_feed_forward,
            "feed_forward_norm": without_biases(affine_norm),
        },
        heads={
            "final_norm": without_biases(affine_norm),
            "mlm_head.bias": token_bias,
            "mlm_head.transform": without_biases(square),
            "mlm_head.norm": without_biases(affine_norm),
            "nsp_head": one_score,
        },
        choices={"positions": ("rotary",), "norm_affine": (True,)},
        hugging_face="stacking.huggingface.modern:ModernFolder",
    ),
}
