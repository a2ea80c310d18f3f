"""Reads a checkpoint of another program as the state of a model that the user describes."""

from __future__ import annotations

from typing import Any

import numpy as np

from stacking.errors import UserError
from stacking.huggingface.bert import BertFolder
from stacking.huggingface.names import DECODER_WEIGHT, with_bias
from stacking.huggingface.tensor_names import modern_names
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.format import BUFFERS, TrainingState, step_of
from stacking.state.zero import ZeroCheckpoint
from stacking.storage.partition import Shape, numel
from stacking.storage.safetensors_file import TensorSpec

_REMEDY = "give this checkpoint's own --config"


class DescribedCheckpoint(TrainingState):
    """Views ``source`` as a state of ``model``; parameters may have this project's names or BertForPreTraining's.

    Some parameters of this project are several of Hugging Face's matrices, stacked by rows; so are their moments.

    Raises:
        UserError: the checkpoint lacks a parameter of the model, has an unknown one, or one with another shape.
    """

    model: ModelConfig

    def __init__(self, source: ZeroCheckpoint, model: ModelConfig) -> None:
        if source.model is not None and source.model != model:
            problem = "contradicts the model that the checkpoint itself records"
            raise UserError("--config", problem, "omit the option")
        self._source, self.model = source, model
        self._shapes = parameter_shapes(model)
        self.names = tuple(self._shapes)
        own = {name.removeprefix("module."): name for name in source.names}
        ours = own.keys() >= self._shapes.keys()
        self._parts = {name: (own[name],) for name in self.names} if ours else self._theirs()
        self._check()
        self.buffers: dict[str, TensorSpec] = dict(source.buffers) if ours else {}
        self.moments, self.optimizer_step = source.moments, source.optimizer_step
        steps = {name: step_of(source, parts[0]) for name, parts in self._parts.items()}
        self.parameter_steps = {name: step for name, step in steps.items() if step != self.optimizer_step}
        self.progress: dict[str, Any] | None = source.progress

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        if kind == BUFFERS:
            self._source.fill(kind, name, start, into)
            return
        size = numel(self._shapes[name]) // len(self._parts[name])
        for index, part in enumerate(self._parts[name]):
            low, high = max(index * size, start), min((index + 1) * size, start + into.size)
            if low < high:
                self._source.fill(kind, part, low - index * size, into[low - start : high - start])

    def _theirs(self) -> dict[str, tuple[str, ...]]:
        """Maps each parameter to the checkpoint's, by Hugging Face's names."""
        path = self._source.path
        stored = with_bias(modern_names(self._source.names, path))
        if DECODER_WEIGHT in stored:
            raise UserError(path, "has a decoder of its own", "only models with tied embeddings can be used")
        names = BertFolder().names(self.model) if self.model.variant == "post_ln" else {}
        for theirs in (their for group in names.values() for their in group if their not in stored):
            raise UserError(path, f"has no parameter {theirs}", f"{_REMEDY}; a state needs the pooler and both heads")
        if not names:
            raise UserError(path, f"does not have the parameters of a {self.model.variant} model", _REMEDY)
        return {name: tuple(stored[their] for their in theirs) for name, theirs in names.items()}

    def _check(self) -> None:
        for name, parts in self._parts.items():
            rows, *columns = self._shapes[name]
            needed = (rows // len(parts), *columns)
            for part in parts:
                if self._source.shape(part) != needed:
                    problem = f"has {part} as {list(self._source.shape(part))} where the model needs {list(needed)}"
                    raise UserError(self._source.path, problem, _REMEDY)
        used = {part for parts in self._parts.values() for part in parts}
        for name in self._source.names:
            if name not in used:
                raise UserError(self._source.path, f"has the parameter {name}, which the model does not have", _REMEDY)
