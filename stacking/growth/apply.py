"""Applies growth operators: streams the state of a shallow model into that of a deep one."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stacking.errors import UserError
from stacking.growth.operators import (
    LISTED,
    OptimizerStateRule,
    added_layers,
    check_listed,
    layer_sources,
    listed_sources,
    optimizer_state_rule,
)
from stacking.model.config import MOST_LAYERS, ModelConfig
from stacking.state.finite import CHECKED, FiniteState, require_finite, was_checked
from stacking.state.format import BUFFERS, MOMENTS, Progress, State, TrainingState, manifest_of, step_of, write_state
from stacking.state.layers import LayerSource, composed, layer_of, origins
from stacking.storage.files import new_folder, require_outside
from stacking.storage.partition import Shape
from stacking.storage.safetensors_file import TensorSpec


class _NoLinks(Exception):
    """Raised if the file system does not support hard links."""


class GrownState(TrainingState):
    """Views ``source`` as the deeper model's state, reading lazily."""

    def __init__(self, source: TrainingState, sources: tuple[LayerSource, ...], rule: OptimizerStateRule) -> None:
        self._source = source
        added = frozenset(added_layers(sources))
        self._origins = origins(source.names, sources)
        self._buffer_origins = origins(source.buffers, sources)
        self.names = tuple(self._origins)
        self.buffers: dict[str, TensorSpec] = {n: source.buffers[o.name] for n, o in self._buffer_origins.items()}
        self.moments = source.moments and rule.moments != "none"
        self.fresh_layers = added if rule.moments == "old" else frozenset()
        self.optimizer_step = 0 if rule.steps == "none" else source.optimizer_step
        self.parameter_steps = {} if rule.steps == "none" else self._own_steps(added if rule.steps == "old" else ())
        self.model: ModelConfig | None = source.model and source.model.with_layers(len(sources))
        self.progress: dict[str, Any] | None = source.progress

    def shape(self, name: str) -> Shape:
        return self._source.shape(self._origins[name].name)

    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        origin = (self._buffer_origins if kind == BUFFERS else self._origins)[name]
        if origin.zero or (kind in MOMENTS and layer_of(name) in self.fresh_layers):
            into[:] = 0
        else:
            self._source.fill(kind, origin.name, start, into)

    def _own_steps(self, restarted: Collection[int]) -> dict[str, int]:
        """Returns the step counts that differ, given the layers whose count starts at zero."""
        steps = {
            name: 0 if layer_of(name) in restarted else step_of(self._source, origin.name)
            for name, origin in self._origins.items()
        }
        return {name: step for name, step in steps.items() if step != self.optimizer_step}


def grow(
    source: State | Path,
    out: Path,
    layers: int | None = None,
    operator: str = "stack",
    optimizer_state: str = "reset",
    on_progress: Progress | None = None,
    share: bool = False,
    allow_non_finite: bool = False,
    layers_from: Sequence[int | str] | None = None,
) -> State:
    """Writes the state of a model with ``layers`` layers, copied from ``source`` by ``operator`` or an explicit list.

    Args:
        source: a state; it is never changed. Without ``share``, every tensor of the result is a copy.
        out: the new state folder; it gets its name when it is complete.
        layers: the depth of the result, if there is no list.
        operator: a key of `OPERATORS`.
        optimizer_state: a key of `OPTIMIZER_STATES`. With ``reset`` the result has no moments, and loading sets them
            to zero.
        on_progress: called with the bytes written and the total.
        share: hard-link the files of ``source`` and record the source of each layer in the manifest, which takes
            neither time nor space. The checksums are kept, and tensors are verified when they are read. On a file
            system without hard links, files are copied.
        allow_non_finite: accept NaN and infinity. Otherwise a shared state is read for the check, unless its manifest
            records that it was checked when it was written.
        layers_from: the source of each layer, instead of ``layers`` and ``operator``; see `listed_sources`.

    Raises:
        UserError: the depth cannot be reached, the state has no layers, or a value is not finite.
        DamagedFile: a file of ``source`` is altered.
        NoSpace: the disk is full; nothing is left at ``out``.
    """
    source = State(source.path if isinstance(source, State) else source)
    require_outside(out, source.path)
    depth = 1 + max((layer_of(name) or 0 for name in source.names if layer_of(name) is not None), default=-1)
    if depth == 0:
        raise UserError(source.path, "has no layers to grow", "give a state of one of this project's models")
    sources = _sources(source.path, depth, layers, operator, layers_from)
    try:
        rule = optimizer_state_rule(optimizer_state)
    except ValueError as error:
        raise UserError(source.path, str(error), "choose one of these") from None
    grown = GrownState(source, sources, rule)
    provenance = {
        "operator": operator if layers_from is None else LISTED,
        "optimizer_state": optimizer_state,
        "sources": [str(source) for source in sources],
        "parent": source.digest,
        CHECKED: not allow_non_finite or was_checked(source.manifest),
    }
    if share and not allow_non_finite and not was_checked(source.manifest):
        require_finite(source, source.path)
    if share and _share(out, source, grown, sources, provenance):
        return State(out)
    view = grown if allow_non_finite else FiniteState(grown, source.path)
    write_state(out, view, provenance, on_progress, source.verified.verify_rest)
    return State(out)


def _sources(
    where: Path, depth: int, layers: int | None, operator: str, layers_from: Sequence[int | str] | None
) -> tuple[LayerSource, ...]:
    """Returns the source of each layer of the grown model.

    Raises:
        UserError: the depth cannot be reached, or the list is not one of existing layers.
    """
    wanted = layers if layers_from is None else len(layers_from)
    if wanted is None:
        raise UserError("--layers", "is missing", "give --layers or --layers-from")
    if not 0 < wanted <= MOST_LAYERS:
        raise UserError("--layers", f"{wanted:,} layers make no model", f"give 1 to {MOST_LAYERS:,}")
    if layers_from is None:
        try:
            return layer_sources(operator, depth, wanted)
        except ValueError as error:
            raise UserError(where, str(error), "choose one of these") from None
    try:
        sources = listed_sources(layers_from)
        check_listed(sources, depth)
    except ValueError as error:
        raise UserError("--layers-from", str(error), "list layers as in 0,1,2,1,2,3") from None
    return sources


def _share(
    out: Path, source: State, grown: GrownState, sources: tuple[LayerSource, ...], provenance: dict[str, Any]
) -> bool:
    """Creates the state ``out`` from links to the files of ``source``; returns False if links are not supported."""
    together = sources if source.sources is None else composed(sources, source.sources)
    inherited = {target for target, origin in enumerate(sources) if origin.layer in source.fresh_layers}
    manifest = manifest_of(
        grown.moments,
        grown.optimizer_step,
        grown.model,
        grown.progress,
        provenance,
        grown.parameter_steps,
        [str(source) for source in together],
        grown.fresh_layers | inherited if grown.moments else (),
    )
    left_out = () if grown.moments else MOMENTS
    files = {name: entry for name, entry in source.manifest["files"].items() if name.split(".")[0] not in left_out}
    try:
        with new_folder(out, manifest, files) as folder:
            for name in files:
                _link(source.path / name, folder / name)
    except _NoLinks:
        return False
    return True


def _link(file: Path, name: Path) -> None:
    if file.is_symlink():
        raise _NoLinks  # a link to its target would refer to a file outside the state
    try:
        os.link(file, name)
    except OSError:  # another file system, or no support; copying reports any other error
        raise _NoLinks from None
