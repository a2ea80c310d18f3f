"""Maps the ``post_ln`` model to Hugging Face's tensor names and ``config.json``. Needs neither tensors nor torch."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, TypeVar

from pydantic import ValidationError

from stacking.errors import UserError
from stacking.huggingface.foreign_keys import check_foreign_keys, foreign_keys
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes

T = TypeVar("T")

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
"""Maps parameters and modules to Hugging Face's."""

LAYER_NAMES = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.up": ("intermediate.dense",),
    "feed_forward.down": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
"""Maps modules of ``layers.N`` to those of ``bert.encoder.layer.N``; several of theirs are stacked by rows in one."""

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
ACTIVATION_NAMES = {
    **{theirs: ours for ours, theirs in ACTIVATIONS.items()},
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
}
"""Names of the same functions: ``gelu_python`` is the exact one, the others its tanh approximation."""

_EXPECTED = ("model_type", "position_embedding_type", "hidden_act", "is_decoder", "add_cross_attention")
_REMEDY = "use a complete Hugging Face BERT folder"


BIAS, DECODER_WEIGHT = "cls.predictions.bias", "cls.predictions.decoder.weight"
DECODER_BIAS = "cls.predictions.decoder.bias"
"""The decoder is tied to the embedding and the bias, but some checkpoints also store it, or store only it."""


def with_bias(stored: dict[str, T]) -> dict[str, T]:
    """Adds the MLM head's bias to named tensors, which some versions store only as the decoder's."""
    return {BIAS: stored[DECODER_BIAS], **stored} if DECODER_BIAS in stored and BIAS not in stored else stored


def hugging_face_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Maps every parameter, in order, to the tensors of BertForPreTraining whose rows it holds, in order."""
    return {name: _theirs(name) for name in parameter_shapes(config)}


def _theirs(name: str) -> tuple[str, ...]:
    """Returns one parameter's names in BertForPreTraining."""
    if name in NAMES:
        return NAMES[name]
    module, _, kind = name.rpartition(".")
    if module in NAMES:
        return tuple(f"{theirs}.{kind}" for theirs in NAMES[module])
    _, layer, module = module.split(".", 2)
    return tuple(f"bert.encoder.layer.{layer}.{theirs}.{kind}" for theirs in LAYER_NAMES[module])


def to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """Returns the content of ``config.json`` for a ``post_ln`` model."""
    return {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        **{theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()},
        "hidden_act": ACTIVATIONS[config.activation],
        "tie_word_embeddings": True,
    }


def from_hugging_face(content: Any, where: Path) -> ModelConfig:
    """Returns the model described by the ``content`` of a ``config.json``; a null key counts as absent.

    Raises:
        UserError: the model is not a BERT encoder, or differs from ``post_ln``; the message names the key.
    """
    if not isinstance(content, dict):
        raise UserError(where, "is not a JSON object", _REMEDY)
    given = {key: value for key, value in content.items() if value is not None}
    _check_kind(given, where)
    _expect(given, where, "position_embedding_type", ("absolute",), "absolute")
    _expect(given, where, "hidden_act", tuple(ACTIVATION_NAMES), "gelu")
    _expect(given, where, "is_decoder", (False,), False)
    _expect(given, where, "add_cross_attention", (False,), False)
    for ours in REQUIRED_KEYS:
        if CONFIG_KEYS[ours] not in given:
            raise UserError(f"{where}: {CONFIG_KEYS[ours]}", "is missing", _REMEDY)
    check_foreign_keys(given, {*CONFIG_KEYS.values(), *_EXPECTED}, where)
    fields = {ours: given[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in given}
    activation = ACTIVATION_NAMES[given.get("hidden_act", "gelu")]
    try:
        return ModelConfig.model_validate({"variant": "post_ln", "activation": activation, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        key = CONFIG_KEYS.get(str(first["loc"][0]), "") if first["loc"] else ""
        raise UserError(f"{where}: {key}" if key else where, first["msg"], "take the config of a BERT model") from None


def config_notes(content: dict[str, Any]) -> list[str]:
    """Returns notes on a ``config.json`` that `from_hugging_face` accepts."""
    notes = []
    if not content.get("model_type"):
        notes.append("has no model_type; read as a BERT, whose keys it has")
    others = [name for name in _classes(content) if not name.startswith("Bert")]
    if others:
        notes.append(f"architectures names {', '.join(others)}; read as a BERT")
    if content.get("auto_map"):
        notes.append("auto_map names the model's own code, which is not run; check that it is an ordinary BERT")
    unknown = foreign_keys(content, {*CONFIG_KEYS.values(), *_EXPECTED})
    if unknown:
        notes.append(f"keys that BERT does not have are left out: {', '.join(sorted(unknown))}")
    return notes


def _check_kind(given: dict[str, Any], where: Path) -> None:
    """Checks that the model is a BERT; files of 2018 and 2019 have no ``model_type``, but must have BERT's keys."""
    if given.get("model_type"):
        _expect(given, where, "model_type", ("bert",), "bert")
        return
    for name in _classes(given):
        if not name.startswith("Bert"):
            raise UserError(f"{where}: architectures", f"is {short_repr(name)}", "only BERT can be used here")


def _classes(content: dict[str, Any]) -> list[str]:
    """Returns the class names under ``architectures``."""
    classes = content.get("architectures") or []
    return [short_repr(name).strip("'") for name in (classes if isinstance(classes, list) else [classes])]


def _expect(content: dict[str, Any], where: Path, key: str, allowed: tuple[Any, ...], default: Any) -> None:
    if content.get(key, default) not in allowed:
        choices = " or ".join(str(value) for value in allowed)
        problem = f"is {short_repr(content.get(key, default))}"
        raise UserError(f"{where}: {key}", problem, f"only {choices} can be used here")
