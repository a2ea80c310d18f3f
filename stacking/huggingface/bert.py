"""Maps ``post_ln`` models to `transformers.BertForPreTraining`, and reads the BERTs of other programs."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, ClassVar

from pydantic import ValidationError

from stacking.errors import UserError
from stacking.huggingface.architecture import Architecture
from stacking.huggingface.foreign_keys import check_foreign_keys, foreign_keys
from stacking.huggingface.names import ACTIVATION_NAMES, ACTIVATIONS, CONFIG_KEYS
from stacking.model.config import ModelConfig

_REQUIRED = ("layers", "hidden", "heads", "intermediate", "vocabulary")
_EXPECTED = ("model_type", "position_embedding_type", "hidden_act", "is_decoder", "add_cross_attention")
_REMEDY = "use a complete Hugging Face BERT folder"


class BertFolder(Architecture):
    """Holds every parameter unchanged."""

    model_type = "bert"
    tied = True
    use = "`BertForPreTraining` loads the next-sentence head as well."
    outside: ClassVar = {
        "embeddings.tokens": "bert.embeddings.word_embeddings",
        "embeddings.positions": "bert.embeddings.position_embeddings",
        "embeddings.segments": "bert.embeddings.token_type_embeddings",
        "embeddings.norm": "bert.embeddings.LayerNorm",
        "pooler": "bert.pooler.dense",
        "mlm_head.transform": "cls.predictions.transform.dense",
        "mlm_head.norm": "cls.predictions.transform.LayerNorm",
        "mlm_head.bias": "cls.predictions.bias",
        "nsp_head": "cls.seq_relationship",
    }
    layers = "bert.encoder.layer"
    inside: ClassVar = {
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "feed_forward.up": ("intermediate.dense",),
        "feed_forward.down": ("output.dense",),
        "feed_forward_norm": ("output.LayerNorm",),
    }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return {
            "architectures": ["BertForPreTraining"],
            "model_type": self.model_type,
            **{theirs: getattr(model, ours) for ours, theirs in CONFIG_KEYS.items()},
            "hidden_act": ACTIVATIONS[model.activation],
            "tie_word_embeddings": True,
        }

    def model(self, content: Any, where: Path) -> ModelConfig:
        """Returns the model of any BERT's ``config.json``, in which a null key counts as absent.

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
        for ours in _REQUIRED:
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
            raise UserError(
                f"{where}: {key}" if key else where, first["msg"], "take the config of a BERT model"
            ) from None

    def notes(self, content: dict[str, Any]) -> list[str]:
        found = []
        if not content.get("model_type"):
            found.append("has no model_type; read as a BERT, whose keys it has")
        others = [name for name in _classes(content) if not name.startswith("Bert")]
        if others:
            found.append(f"architectures names {', '.join(others)}; read as a BERT")
        if content.get("auto_map"):
            found.append("auto_map names the model's own code, which is not run; check that it is an ordinary BERT")
        unknown = foreign_keys(content, {*CONFIG_KEYS.values(), *_EXPECTED})
        if unknown:
            found.append(f"keys that BERT does not have are left out: {', '.join(sorted(unknown))}")
        return found


def _check_kind(given: dict[str, Any], where: Path) -> None:
    """Checks that the model is a BERT; files of 2018 and 2019 have no ``model_type``, but must have BERT's keys."""
    if given.get("model_type"):
        _expect(given, where, "model_type", ("bert",), "bert")
        return
    for name in _classes(given):
        if not name.startswith("Bert"):
            raise UserError(f"{where}: architectures", f"is {short_repr(name)}", "only BERT can be used here")


def _classes(content: dict[str, Any]) -> list[str]:
    classes = content.get("architectures") or []
    return [short_repr(name).strip("'") for name in (classes if isinstance(classes, list) else [classes])]


def _expect(content: dict[str, Any], where: Path, key: str, allowed: tuple[Any, ...], default: Any) -> None:
    if content.get(key, default) not in allowed:
        choices = " or ".join(str(value) for value in allowed)
        problem = f"is {short_repr(content.get(key, default))}"
        raise UserError(f"{where}: {key}", problem, f"only {choices} can be used here")
