"""Finds the model from which a run starts instead of random weights, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from stacking.config.recipe import Recipe
from stacking.errors import UserError
from stacking.hardware.presets import SHAPES
from stacking.huggingface.architecture import model_in
from stacking.huggingface.folder import read_config
from stacking.huggingface.model_folder import kind_of
from stacking.model.config import ModelConfig
from stacking.storage.files import MANIFEST, read_sealed

_FREE = {"dropout", "attention_dropout", "initializer_range"}
"""Keys that a recipe may change about a trained model."""


@dataclass(frozen=True)
class Start:
    """A trained model to start from."""

    path: Path
    format: Literal["state", "huggingface"]
    model: ModelConfig


def read_start(recipe: Recipe) -> Start | None:
    """Returns the model at the recipe's ``start``; None for random weights.

    Raises:
        UserError: the folder contains neither a state nor a Hugging Face BERT.
    """
    if recipe.start is None:
        return None
    folder, where = Path(recipe.start).absolute(), recipe.key("start")
    if not folder.is_dir():
        raise UserError(where, f"{recipe.start} is not a folder", "give a state folder or a Hugging Face folder")
    kind = kind_of(folder)
    if kind == "huggingface":
        config, content = read_config(folder)
        return Start(folder, kind, model_in(content, config))
    if kind == "state":
        try:
            return Start(folder, kind, ModelConfig.model_validate(read_sealed(folder / MANIFEST).get("model")))
        except ValidationError:
            problem = "is a state that does not describe its model"
            raise UserError(where, problem, "consolidate its checkpoint with --config") from None
    raise UserError(where, f"{recipe.start} holds no model", "give a state folder or a Hugging Face folder")


def model_config(recipe: Recipe, start: Start | None, vocabulary: int, padding_id: int | None = None) -> ModelConfig:
    """Returns the recipe's model, at the depth of its first stage.

    Values that the recipe leaves open come from ``start`` if given, else from the recipe's shape.

    Args:
        vocabulary: rows of the token embedding, unless set elsewhere.
        padding_id: the data's padding token; None without data.

    Raises:
        UserError: the widths do not fit each other or contradict the model to start from.
    """
    wanted, layers = recipe.model, recipe.stages[0].layers
    padding = {} if padding_id is None else {"padding_id": padding_id}
    if start is None:
        rest = wanted.model_dump(exclude={"shape"}, exclude_none=True)
        model = _checked(recipe, {"layers": layers, "vocabulary": vocabulary, **rest, **_widths(recipe)})
        return model.model_copy(update=padding)
    given = wanted.model_dump(exclude_unset=True, exclude_none=True)
    if "shape" in given:
        given = {**_widths(recipe), **given}
    found = start.model.model_dump()
    for name in sorted(set(given) & set(found)):
        if name not in _FREE and given[name] != found[name]:
            problem = f"is {given[name]!r}, but the model to start from has {found[name]!r}"
            raise UserError(recipe.key("model", name), problem, "remove the key")
    free = {name: value for name, value in given.items() if name in _FREE}
    return start.model.with_layers(layers).model_copy(update=free | padding)


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
