"""How Hugging Face spells our ``post_ln`` model: tensor names and ``config.json``. Names only, no tensors, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stacking.errors import UserError
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes

NAMES = {
    "embeddings.tokens.weight": ("bert.embeddings.word_embeddings.weight",),
    "embeddings.positions.weight": ("bert.embeddings.position_embeddings.weight",),
    "embeddings.segments.weight": ("bert.embeddings.token_type_embeddings.weight",),
    "embeddings.norm": ("bert.embeddings.LayerNorm",),
    "pooler": ("bert.pooler.dense",),
    "mlm_head.transform": ("cls.predictions.transform.dense",),
    "mlm_head.norm": ("cls.predictions.transform.LayerNorm",),
    "mlm_head.bias": ("cls.predictions.bias",),
    "nsp_head": ("cls.seq_relationship",),
}
"""A parameter or a module of ours to theirs."""

LAYER_NAMES = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.up": ("intermediate.dense",),
    "feed_forward.down": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
"""The same inside ``layers.N`` and ``bert.encoder.layer.N``; several of theirs are one of ours, row after row."""

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
REQUIRED_KEYS = ("layers", "hidden", "heads", "intermediate", "vocabulary")

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
ACTIVATION_NAMES = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}


def hugging_face_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """For every parameter of ours, in order, the tensors of BertForPreTraining whose rows it holds, in order."""
    return {name: _theirs(name) for name in parameter_shapes(config)}


def _theirs(name: str) -> tuple[str, ...]:
    """One parameter's names in BertForPreTraining."""
    if name in NAMES:
        return NAMES[name]
    module, _, kind = name.rpartition(".")
    if module in NAMES:
        return tuple(f"{theirs}.{kind}" for theirs in NAMES[module])
    _, layer, module = module.split(".", 2)
    return tuple(f"bert.encoder.layer.{layer}.{theirs}.{kind}" for theirs in LAYER_NAMES[module])


def to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The content of ``config.json`` for a ``post_ln`` model."""
    return {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        **{theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()},
        "hidden_act": ACTIVATIONS[config.activation],
        "tie_word_embeddings": True,
    }


def from_hugging_face(content: Any, where: Path) -> ModelConfig:
    """The model that a ``config.json`` with this ``content`` describes.

    Raises:
        UserError: it is not a BERT encoder, or has something that ``post_ln`` has not; names the key of ``where``.
    """
    if not isinstance(content, dict):
        raise UserError(where, "is not a JSON object", "take a complete Hugging Face BERT folder")
    _expect(content, where, "model_type", ("bert",), "")
    _expect(content, where, "position_embedding_type", ("absolute",), "absolute")
    _expect(content, where, "hidden_act", tuple(ACTIVATION_NAMES), "gelu")
    _expect(content, where, "is_decoder", (False,), False)
    _expect(content, where, "add_cross_attention", (False,), False)
    for ours in REQUIRED_KEYS:
        if CONFIG_KEYS[ours] not in content:
            raise UserError(f"{where}: {CONFIG_KEYS[ours]}", "is missing", "take a complete Hugging Face BERT folder")
    fields = {ours: content[theirs] for ours, theirs in CONFIG_KEYS.items() if content.get(theirs) is not None}
    activation = ACTIVATION_NAMES[content.get("hidden_act", "gelu")]
    try:
        return ModelConfig.model_validate({"variant": "post_ln", "activation": activation, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        key = CONFIG_KEYS.get(str(first["loc"][0]), "") if first["loc"] else ""
        raise UserError(f"{where}: {key}" if key else where, first["msg"], "take the config of a BERT model") from None


def _expect(content: dict[str, Any], where: Path, key: str, allowed: tuple[Any, ...], default: Any) -> None:
    if content.get(key, default) not in allowed:
        choices = " or ".join(str(value) for value in allowed)
        raise UserError(f"{where}: {key}", f"is {content.get(key, default)!r}", f"only {choices} can be used here")
