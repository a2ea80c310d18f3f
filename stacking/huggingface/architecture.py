"""Defines how a Hugging Face folder holds the models of a variant. Needs neither tensors nor torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from reprlib import repr as short_repr
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import ValidationError

from stacking.errors import UserError
from stacking.model.config import VARIANTS, ModelConfig
from stacking.model.size import parameter_shapes
from stacking.storage.partition import Shape

OWN_MODEL = "stacking_model"
"""The key of ``config.json`` with the exported model's own description: Hugging Face's keys do not tell all of it."""
NEXT_SENTENCE = "nsp_head.safetensors"
"""Holds the next-sentence head where Hugging Face's class has no place for it."""


class Written(NamedTuple):
    """One tensor of an export."""

    name: str
    shape: Shape
    values: np.ndarray | None = None
    """None: only the shape is asked for."""


class Architecture(ABC):
    """One class of `transformers` that computes what a variant does."""

    model_type: ClassVar[str]
    tied: ClassVar[bool] = False
    """Whether a stored decoder must be the word embedding."""
    code: ClassVar[str] = ""
    """The modelling file, beside this one, that an export needs and includes; empty: the class is in transformers."""
    use: ClassVar[str] = ""
    """A sentence for the model card."""
    rival: ClassVar[bool] = False
    """Whether `stacking bench` compares with this class; otherwise with BERT, whose matrices are of the same sizes."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """What the tokenizer must return for the class; empty: what it returns anyway."""
    aside: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the parameters that the class has no place for; they go to `NEXT_SENTENCE`."""
    outside: ClassVar[dict[str, str]] = {}
    """Their name of every parameter or module outside the layers."""
    layers: ClassVar[str] = ""
    """Their name of the list of layers."""
    inside: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Their modules for every module of a layer; several of theirs are stacked by rows in one."""

    @abstractmethod
    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the content of ``config.json``."""

    def names(self, model: ModelConfig) -> dict[str, tuple[str, ...]]:
        """Maps every parameter, in order, to the tensors whose rows it holds unchanged, in order."""
        return {name: self._theirs(name) for name in parameter_shapes(model)}

    def _theirs(self, name: str) -> tuple[str, ...]:
        if name in self.outside:
            return (self.outside[name],)
        module, _, kind = name.rpartition(".")
        if module in self.outside:
            return (f"{self.outside[module]}.{kind}",)
        _, layer, module = module.split(".", 2)
        return tuple(f"{self.layers}.{layer}.{theirs}.{kind}" for theirs in self.inside[module])

    def model(self, content: dict[str, Any], where: Path) -> ModelConfig:
        """Returns the model of a ``config.json`` that `config` wrote.

        Raises:
            UserError: it does not describe an exported model, or contradicts itself.
        """
        if content.get(OWN_MODEL) is None:
            problem = f"is missing, so `stacking export` did not write this {self.model_type} model"
            raise UserError(f"{where}: {OWN_MODEL}", problem, "only BERT and exports of this program can be used here")
        try:
            model = ModelConfig.model_validate(content[OWN_MODEL])
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, (OWN_MODEL, *first["loc"])))
            raise UserError(f"{where}: {key}", first["msg"], "export the model again") from None
        for key, value in self.config(model).items():
            if key in content and content[key] != value and key != "architectures":
                problem = f"is {short_repr(content[key])}, but {OWN_MODEL} says {short_repr(value)}"
                raise UserError(f"{where}: {key}", problem, "export the model again")
        return model

    def exported(self, model: ModelConfig, name: str, values: np.ndarray | None = None) -> Iterator[Written]:
        """Yields the tensors that are written for the parameter ``name``."""
        theirs = self.names(model)[name]
        rows, *rest = parameter_shapes(model)[name]
        pieces = [None] * len(theirs) if values is None else np.split(values, len(theirs))
        for their, piece in zip(theirs, pieces, strict=True):
            yield Written(their, (rows // len(theirs), *rest), piece)

    def constants(self, model: ModelConfig) -> dict[str, np.ndarray]:
        """Returns the tensors of the class that are no parameters of the model."""
        return {}

    def notes(self, content: dict[str, Any]) -> list[str]:
        """Returns notes on a ``config.json`` that `model` accepts."""
        return []


def architecture_of(model: ModelConfig) -> Architecture:
    """Returns the architecture to which the model's variant is exported."""
    return _loaded(VARIANTS[model.variant].hugging_face)


def model_in(content: Any, where: Path) -> ModelConfig:
    """Returns the model described by the ``content`` of a ``config.json``.

    Raises:
        UserError: it is not the model of a known architecture; the message names the key.
    """
    return architecture_in(content).model(content, where)


def architecture_in(content: Any) -> Architecture:
    """Returns the architecture that ``config.json`` names; BERT's if it names none that is known here."""
    named = content.get("model_type") if isinstance(content, dict) else None
    found = [_loaded(variant.hugging_face) for variant in VARIANTS.values() if variant.hugging_face]
    return next((one for one in found if one.model_type == named), found[0])


def _loaded(path: str) -> Architecture:
    architecture: type[Architecture] = resolve_name(path)
    return architecture()
