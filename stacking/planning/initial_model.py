"""What a run starts from when it is not random weights: whose model is in that folder, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from stacking.config.recipe import Model, Recipe
from stacking.errors import UserError
from stacking.hardware.presets import SHAPES
from stacking.huggingface.names import from_hugging_face
from stacking.model.config import ModelConfig
from stacking.storage.files import MANIFEST, read_json

_FREE = {"dropout", "attention_dropout", "initializer_range"}
"""What a recipe may change about a trained model."""


@dataclass(frozen=True)
class Start:
    """A trained model to go on from."""

    path: Path
    format: Literal["state", "huggingface"]
    model: ModelConfig


def read_start(recipe: Recipe) -> Start | None:
    """The model at the recipe's ``start``; None for random weights.

    Raises:
        UserError: there is neither a state nor a Hugging Face BERT.
    """
    if recipe.start is None:
        return None
    folder, where = Path(recipe.start).absolute(), recipe.key("start")
    if not folder.is_dir():
        raise UserError(where, f"{recipe.start} is not a folder", "give a state folder or a Hugging Face folder")
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    if not isinstance(manifest, dict):
        raise UserError(folder / MANIFEST, "is not a JSON object", "give a state folder or a Hugging Face folder")
    if manifest.get("kind") == "state":
        return Start(folder, "state", _state_model(where, manifest.get("model")))
    if (folder / "config.json").is_file():
        config = folder / "config.json"
        return Start(folder, "huggingface", from_hugging_face(read_json(config), config))
    raise UserError(where, f"{recipe.start} holds no model", "give a state folder or a Hugging Face folder")


def model_config(recipe: Recipe, start: Start | None, vocabulary: int) -> ModelConfig:
    """The model of the recipe, at the depth of its first stage.

    What the recipe leaves open is taken from ``start``, if there is one, else from the recipe's shape.

    Args:
        vocabulary: rows of the token embedding where nothing else says.

    Raises:
        UserError: widths that do not fit each other, or that contradict the model to start from.
    """
    wanted, layers = recipe.model, recipe.stages[0].layers
    if start is None:
        return _checked(recipe, {"layers": layers, **_widths(recipe), **_the_rest(wanted, vocabulary)})
    given = {name: value for name in wanted.model_fields_set if (value := getattr(wanted, name)) is not None}
    if "shape" in given:
        given = {**_widths(recipe), **given}
    found = start.model.model_dump()
    for name in sorted(set(given) & set(found)):
        if name not in _FREE and given[name] != found[name]:
            problem = f"is {given[name]!r}, but the model to start from has {found[name]!r}"
            raise UserError(recipe.key("model", name), problem, "remove the key")
    return start.model.with_layers(layers).model_copy(update={k: v for k, v in given.items() if k in _FREE})


def _checked(recipe: Recipe, values: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        problem, _, remedy = error.errors()[0]["msg"].removeprefix("Value error, ").partition("; ")
        raise UserError(recipe.key("model"), problem, remedy or "change one of the two") from None


def _widths(recipe: Recipe) -> dict[str, Any]:
    wanted, shape = recipe.model, SHAPES[recipe.model.shape]
    hidden = wanted.hidden or shape.hidden
    heads = wanted.heads or (shape.heads if wanted.hidden is None else max(1, hidden // 64))
    if hidden % heads:
        divisors = [n for n in range(1, hidden + 1) if hidden % n == 0]
        near = min(divisors, key=lambda n: abs(n - heads))
        problem = f"is {heads}, which does not divide hidden {hidden}"
        raise UserError(recipe.key("model", "heads"), problem, f"give {near}")
    return {"hidden": hidden, "heads": heads, "intermediate": wanted.intermediate or 4 * hidden}


def _the_rest(wanted: Model, vocabulary: int) -> dict[str, Any]:
    named = wanted.model_dump(exclude={"shape", "hidden", "heads", "intermediate", "vocabulary"})
    return {**named, "vocabulary": wanted.vocabulary or vocabulary}


def _state_model(where: str, content: Any) -> ModelConfig:
    try:
        return ModelConfig.model_validate(content)
    except ValidationError:
        raise UserError(where, "is a state that does not describe its model", "consolidate it again") from None
