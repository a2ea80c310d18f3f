"""Defines names that several of the models in `transformers` share. Needs neither tensors nor torch."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
    "max_positions": "max_position_embeddings",
    "segments": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
    "padding_id": "pad_token_id",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
ACTIVATION_NAMES = {
    **{theirs: ours for ours, theirs in ACTIVATIONS.items()},
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
}
"""Names of the same functions: ``gelu_python`` is the exact one, the others its tanh approximation."""

BIAS, DECODER_WEIGHT = "cls.predictions.bias", "cls.predictions.decoder.weight"
DECODER_BIAS = "cls.predictions.decoder.bias"
"""The decoder is tied to the embedding and the bias, but some checkpoints also store it, or store only it."""


def with_bias(stored: dict[str, T]) -> dict[str, T]:
    """Adds the MLM head's bias to named tensors, which some versions store only as the decoder's."""
    return {BIAS: stored[DECODER_BIAS], **stored} if DECODER_BIAS in stored and BIAS not in stored else stored
