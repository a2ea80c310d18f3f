"""Provides a synthetic training state whose tensors are filled with noise, so that misplaced bytes are detected."""

from __future__ import annotations

from typing import Any

import numpy as np

from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.format import MOMENTS, WEIGHTS, TrainingState
from stacking.storage.partition import Shape
from stacking.storage.safetensors_file import TensorSpec

_LENGTH = 1_000_003
"""Of the noise that is repeated: prime, so that it meets no size of a model."""


class NoisyState(TrainingState):
    """Imitates the state of an engine after ``optimizer_step`` updates."""

    def __init__(self, model: ModelConfig, optimizer_step: int = 1_000) -> None:
        self.model: ModelConfig | None = model
        self._shapes = parameter_shapes(model)
        self.names = tuple(self._shapes)
        self.buffers: dict[str, TensorSpec] = {}
        self.moments = True
        self.optimizer_step = optimizer_step
        self.progress: dict[str, Any] | None = None
        noise = np.random.default_rng(0).standard_normal(_LENGTH, np.float32)
        self._noise = {WEIGHTS: 0.02 * noise, MOMENTS[0]: 1e-3 * noise, MOMENTS[1]: 1e-6 * noise**2}

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        fill_with(self._noise[kind], start, into)


def fill_with(noise: np.ndarray, start: int, into: np.ndarray) -> None:
    """Fills ``into`` with repeated ``noise``, beginning at its element ``start``."""
    done = 0
    while done < into.size:
        first = (start + done) % noise.size
        count = min(noise.size - first, into.size - done)
        into[done : done + count] = noise[first : first + count]
        done += count
