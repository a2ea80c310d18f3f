"""Carries a growth operator out: from the state of a shallow model to that of a deep one, as a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stacking.errors import UserError
from stacking.growth.operators import (
    LayerSource,
    becomes_zero,
    layer_of,
    layer_sources,
    optimizer_state_rule,
    with_layer,
)
from stacking.model.config import MOST_LAYERS, ModelConfig
from stacking.state.format import BUFFERS, Progress, State, write_state
from stacking.state.partition import Shape, numel
from stacking.state.safetensors_file import TensorSpec


class GrownState:
    """A view of ``source`` as the deeper model's state; nothing is read before it is asked for."""

    def __init__(self, source: State, sources: tuple[LayerSource, ...], moments: bool, keeps_step: bool) -> None:
        self._source = source
        self._origins = _origins(source.names, sources)
        self._buffer_origins = _origins(tuple(source.buffers), sources)
        self.names = tuple(self._origins)
        self.buffers: dict[str, TensorSpec] = {n: source.buffers[o[0]] for n, o in self._buffer_origins.items()}
        self.moments = moments and source.moments
        self.optimizer_step = source.optimizer_step if keeps_step else 0
        self.model: ModelConfig | None = source.model and source.model.with_layers(len(sources))
        self.progress: dict[str, Any] | None = source.progress

    def shape(self, name: str) -> Shape:
        return self._source.shape(self._origins[name][0])

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if kind == BUFFERS:
            return self._source.read(kind, self._buffer_origins[name][0], start, stop)
        origin, zero = self._origins[name]
        if zero:
            return np.zeros((numel(self.shape(name)) if stop is None else stop) - start, np.float32)
        return self._source.read(kind, origin, start, stop)


def grow(
    source: State | Path,
    out: Path,
    layers: int,
    operator: str = "stack",
    optimizer_state: str = "reset",
    on_progress: Progress | None = None,
) -> State:
    """Write the state of a model with ``layers`` layers, each copied from ``source`` as ``operator`` says.

    Args:
        source: a state; it is never changed. Every tensor of the result is a copy of its own.
        out: the new state folder; it appears when it is complete.
        operator: a key of `OPERATORS`.
        optimizer_state: a key of `OPTIMIZER_STATES`. With ``reset`` the result has no moments, which loading takes
            for zero.
        on_progress: called with the bytes written and those in all.

    Raises:
        UserError: the depth cannot be reached, or the state has no layers.
        DamagedFile: a file of ``source`` is not as it was written.
        NoSpace: the disk is full; nothing is left at ``out``.
    """
    if layers > MOST_LAYERS:
        raise UserError("--layers", f"{layers:,} are more than any model has", f"give {MOST_LAYERS:,} or fewer")
    source = State(source.path if isinstance(source, State) else source, checksums=True)
    depth = 1 + max((layer_of(name) or 0 for name in source.names if layer_of(name) is not None), default=-1)
    if depth == 0:
        raise UserError(source.path, "has no layers to grow", "give the state of a model of this project")
    try:
        sources = layer_sources(operator, depth, layers)
        rule = optimizer_state_rule(optimizer_state)
    except ValueError as error:
        raise UserError(source.path, str(error), "choose one of these") from None
    grown = GrownState(source, sources, rule.copies_moments, rule.keeps_step)
    provenance = {
        "operator": operator,
        "optimizer_state": optimizer_state,
        "sources": [f"{s.layer} {s.treatment}" for s in sources],
        "parent": source.digest,
    }
    write_state(out, grown, provenance, on_progress)
    return State(out)


def _origins(names: tuple[str, ...], sources: tuple[LayerSource, ...]) -> dict[str, tuple[str, bool]]:
    """Of every tensor of the grown model, in order: the tensor that it comes from, and whether it becomes zero."""
    of_layer: dict[int, list[str]] = {}
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            of_layer.setdefault(layer, []).append(name)
    origins: dict[str, tuple[str, bool]] = {}
    grown = False
    for name in names:
        if layer_of(name) is None:
            origins[name] = (name, False)
        elif not grown:
            grown = True
            for target, (layer, treatment) in enumerate(sources):
                for origin in of_layer.get(layer, ()):
                    origins[with_layer(origin, target)] = (origin, becomes_zero(origin, treatment))
    return origins
