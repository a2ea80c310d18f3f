"""Maps ``pre_ln`` models to `transformers.MegatronBertForMaskedLM`, whose layers have their norms before each half."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from stacking.huggingface.architecture import OWN_MODEL, Architecture, Written
from stacking.huggingface.names import ACTIVATIONS, CONFIG_KEYS, DECODER_WEIGHT
from stacking.model.config import ModelConfig
from stacking.model.sinusoids import sinusoids
from stacking.model.size import parameter_shapes

_EMBEDDINGS = "bert.embeddings"
_POSITIONS = f"{_EMBEDDINGS}.position_embeddings.weight"
_WORDS = f"{_EMBEDDINGS}.word_embeddings.weight"
_BIASES = ("cls.predictions.bias", "cls.predictions.decoder.bias")


class MegatronFolder(Architecture):
    """Holds an untied decoder: the decoder is the token embedding, the word embeddings are the same times √H.

    Sinusoids are written as learned positions, and ones and zeros for norms without scale and bias. The class has a
    tanh pooler before its next-sentence scores, so it cannot express a single linear layer on the encoder's output; the
    head is in a file of its own.
    """

    model_type = "megatron-bert"
    use = (
        "`MegatronBertForPreTraining` has a tanh pooler that this model lacks, so the next-sentence head is in "
        "`nsp_head.safetensors`: one logit of the first token's vector."
    )
    aside = ("nsp_head.",)
    outside: ClassVar = {
        "embeddings.tokens": DECODER_WEIGHT.removesuffix(".weight"),
        "embeddings.positions": f"{_EMBEDDINGS}.position_embeddings",
        "embeddings.segments": f"{_EMBEDDINGS}.token_type_embeddings",
        "final_norm": "bert.encoder.ln",
        "mlm_head.transform": "cls.predictions.transform.dense",
        "mlm_head.norm": "cls.predictions.transform.LayerNorm",
        "nsp_head": "nsp_head",
    }
    layers = "bert.encoder.layer"
    inside: ClassVar = {
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output": ("attention.output.dense",),
        "attention_norm": ("attention.ln",),
        "feed_forward.up": ("intermediate.dense",),
        "feed_forward.down": ("output.dense",),
        "feed_forward_norm": ("ln",),
    }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return {
            "architectures": ["MegatronBertForMaskedLM"],
            "model_type": self.model_type,
            **{theirs: getattr(model, ours) for ours, theirs in CONFIG_KEYS.items()},
            "hidden_act": ACTIVATIONS[model.activation],
            "tie_word_embeddings": False,
            OWN_MODEL: model.model_dump(),
        }

    def exported(self, model: ModelConfig, name: str, values: np.ndarray | None = None) -> Iterator[Written]:
        yield from super().exported(model, name, values)
        if name == "embeddings.tokens.weight":
            scaled = None if values is None else _scaled(model, values)
            yield Written(_WORDS, parameter_shapes(model)[name], scaled)

    def constants(self, model: ModelConfig) -> dict[str, np.ndarray]:
        found = {name: np.zeros(model.vocabulary, np.float32) for name in _BIASES}
        if model.positions == "sinusoidal":
            found[_POSITIONS] = sinusoids(model.max_positions, model.hidden)
        if not model.norm_affine:
            layers = [f"bert.encoder.layer.{i}.{norm}" for i in range(model.layers) for norm in ("attention.ln", "ln")]
            for norm in (*layers, "bert.encoder.ln"):
                found[f"{norm}.weight"] = np.ones(model.hidden, np.float32)
                found[f"{norm}.bias"] = np.zeros(model.hidden, np.float32)
        return found


def _scaled(model: ModelConfig, values: np.ndarray) -> np.ndarray:
    """Multiplies by √H in fp32, as the model does."""
    scaled: np.ndarray = values * np.float32(math.sqrt(model.hidden))
    return scaled
